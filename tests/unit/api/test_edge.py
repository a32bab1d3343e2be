"""What holds on every route, whoever answers it."""

import asyncio
import json

import pytest
import structlog
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from service.api import body
from service.api.auth import KeyRing
from service.api.edge import Edge
from service.metrics import Metrics


async def a_list(_request):
    return JSONResponse([{"error": "as BentoML writes it"}], 400)


async def a_secret(_request):
    return PlainTextResponse("connection to 10.0.0.7 failed", 500)


async def bug(_request):
    raise KeyError("hunter2")


async def named_server(_request):
    return PlainTextResponse("hello", headers={"Server": "BentoML Service/x", "Cache-Control": "max-age=9"})


async def breaks_off(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    raise RuntimeError("half-way")


ROUTES = [
    Route("/list", a_list),
    Route("/secret", a_secret),
    Route("/bug", bug),
    Route("/things/{name}", named_server, methods=["GET"]),
]


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def ask(metrics, build_call):
    def ask(method, path, app=None, **more):
        edge = Edge(app or Starlette(routes=ROUTES), keys=KeyRing(()), metrics=metrics, max_body_bytes=100)
        return asyncio.run(build_call(method, path, **more).on(edge))

    return ask


def test_an_answer_carries_the_callers_request_id(ask):
    assert ask("GET", "/things/1", x_request_id="job-17:a").headers["x-request-id"] == "job-17:a"


@pytest.mark.parametrize("hostile", ["", "a b", "x\r\nSet-Cookie: a=b", "é", "x" * 129, "<script>"])
def test_a_request_id_that_could_do_harm_is_replaced(ask, hostile):
    given = ask("GET", "/things/1", x_request_id=hostile).headers["x-request-id"]
    assert given != hostile
    assert given.isalnum()


def test_a_frameworks_list_becomes_a_problem(ask):
    reply = ask("GET", "/list")
    assert reply.status == 400
    assert b"BentoML" not in reply.body
    assert reply.problem["code"]


def test_a_frameworks_message_of_a_failure_is_hidden(ask):
    reply = ask("GET", "/secret")
    assert reply.problem["code"] == "internal"
    assert b"10.0.0.7" not in reply.body


def test_a_wrong_method_says_which_are_right(ask):
    reply = ask("DELETE", "/things/1")
    assert reply.problem["code"] == "method_not_allowed"
    assert "GET" in reply.headers["allow"]
    assert "GET" in reply.problem["detail"]


def test_a_bug_is_answered_without_details_and_logged_with_them(ask):
    with structlog.testing.capture_logs(processors=[structlog.contextvars.merge_contextvars]) as events:
        reply = ask("GET", "/bug", x_request_id="r-1")
    assert reply.problem["code"] == "internal"
    assert b"hunter2" not in reply.body
    (event,) = [event for event in events if event["event"] == "request_failed"]
    assert isinstance(event["exc_info"], KeyError)
    assert event["request_id"] == "r-1"


def test_an_answer_that_breaks_off_is_not_made_to_look_whole(ask):
    with pytest.raises(RuntimeError, match="half-way"):
        ask("GET", "/", app=breaks_off)


def test_the_server_is_not_advertised_and_security_headers_are_there(ask):
    headers = ask("GET", "/things/1").headers
    assert "server" not in headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "max-age=9"
    assert "default-src 'self'" in headers["content-security-policy"]


def test_problems_carry_the_security_headers_too(ask):
    assert ask("GET", "/nowhere").headers["x-content-type-options"] == "nosniff"


def test_a_body_that_announces_too_much_is_refused_unread(ask):
    reply = ask("POST", "/list", body="{}", content_length="101")
    assert (reply.status, reply.problem["code"]) == (413, "body_too_large")


def test_a_body_that_announces_nothing_is_counted(ask, build_call, change, metrics):
    endless = change(
        build_call("POST", "/list", content_type="application/json", transfer_encoding="chunked"),
        chunks=(b" " * 60, b" " * 60, b"{}"),
    )
    edge = Edge(Starlette(routes=ROUTES), keys=KeyRing(()), metrics=metrics, max_body_bytes=100)
    assert asyncio.run(endless.on(edge)).problem["code"] == "body_too_large"


def test_a_body_in_pieces_reaches_the_app_whole(build_call, change, metrics):
    async def echo(request):
        return JSONResponse(await request.json())

    app = Starlette(routes=[Route("/echo", echo, methods=["POST"])])
    edge = Edge(app, keys=KeyRing(()), metrics=metrics, max_body_bytes=100)
    call = change(build_call("POST", "/echo", body='{"a": 1}'), chunks=(b'{"a"', b": ", b"1}"))
    assert json.loads(asyncio.run(call.on(edge)).body) == {"a": 1}


def test_a_body_that_never_comes_is_given_up(build_call, change, metrics, monkeypatch):
    monkeypatch.setattr(body, "MAX_SECONDS", 0.01)
    edge = Edge(Starlette(routes=ROUTES), keys=KeyRing(()), metrics=metrics, max_body_bytes=100)
    call = change(build_call("POST", "/list", body="{}"), never_sends=True)
    assert asyncio.run(call.on(edge)).problem["code"] == "body_too_slow"


@pytest.mark.parametrize(
    "headers",
    [
        {"content_type": "text/plain"},
        {"content_type": "application/vnd.bentoml+pickle"},
        {"content_type": "multipart/form-data; boundary=x"},
        {"content_type": "application/x-www-form-urlencoded"},
        {"content_type": ""},
        {"content_encoding": "gzip"},
    ],
    ids=str,
)
def test_a_body_that_is_not_plain_json_is_refused(ask, headers):
    reply = ask("POST", "/list", body="{}", **headers)
    assert (reply.status, reply.problem["code"]) == (415, "unsupported_media_type")


def test_json_may_name_its_charset(ask):
    assert ask("POST", "/list", body="{}", content_type="Application/JSON; charset=utf-8").status == 405


def test_a_path_with_control_characters_meets_no_route(ask):
    assert ask("GET", "/things/1\n").problem["code"] == "not_found"


def test_requests_are_counted_by_route_template(ask, metrics):
    ask("GET", "/things/1")
    ask("GET", "/things/2")
    labels = {"route": "/things/{name}", "method": "GET", "status": "200"}
    assert metrics.registry.get_sample_value("darkroom_request_duration_seconds_count", labels) == 2


def test_no_caller_can_make_new_series(ask, metrics):
    for n in range(50):
        ask("GET", f"/nowhere/{n}")
        ask(f"VERB{n}", "/nowhere")
    text = metrics.render().decode()
    assert "/nowhere" not in text
    assert "VERB" not in text
    labels = {"route": "unmatched", "method": "other", "status": "404"}
    assert metrics.registry.get_sample_value("darkroom_request_duration_seconds_count", labels) == 50


def test_refusals_are_counted_by_code(ask, metrics):
    ask("POST", "/list", body="{}", content_type="text/plain")
    labels = {"reason": "unsupported_media_type"}
    assert metrics.registry.get_sample_value("darkroom_rejected_total", labels) == 1


def test_a_websocket_is_closed(metrics):
    sent = []

    async def send(message):
        sent.append(message)

    edge = Edge(Starlette(routes=ROUTES), keys=KeyRing(()), metrics=metrics, max_body_bytes=100)
    asyncio.run(edge({"type": "websocket", "path": "/things/1", "headers": []}, None, send))
    assert sent == [{"type": "websocket.close", "code": 1008}]
