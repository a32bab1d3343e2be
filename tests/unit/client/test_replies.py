"""What an answer means."""

import json

import pytest

import darkroom
from darkroom import BadResponse, GenerateRequest, InvalidRequest
from darkroom import _calls as calls
from darkroom._replies import Reply, read, retry_after_seconds

INFO = calls.info()
FOX = calls.generate(GenerateRequest(prompt="a fox"))
WALL = 1_800_000_000.0


def reading(call, reply):
    return read(call, reply, wall_now_seconds=WALL)


def problem(status, **fields):
    body = {"title": "No", "status": status, "detail": "the fox is shy", "code": "shy", **fields}
    return Reply(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, darkroom.InvalidRequest),
        (401, darkroom.AuthenticationFailed),
        (403, darkroom.PermissionDenied),
        (404, darkroom.NotFound),
        (409, darkroom.Conflict),
        (413, darkroom.PayloadTooLarge),
        (415, darkroom.UnsupportedMedia),
        (418, darkroom.APIError),
        (422, darkroom.InvalidRequest),
        (429, darkroom.RateLimited),
        (500, darkroom.ServerError),
        (503, darkroom.Unavailable),
        (504, darkroom.DeadlineExceeded),
        (507, darkroom.ServerError),
    ],
)
def test_every_status_has_its_exception(status, error):
    with pytest.raises(darkroom.APIError) as caught:
        reading(INFO, problem(status))
    assert type(caught.value) is error
    assert (caught.value.status, caught.value.code) == (status, "shy")


def test_an_error_says_what_where_and_under_which_request_id():
    errors = [
        {"pointer": "/prompt", "message": "this parenthesis is never closed", "position": 12},
        {"pointer": "", "message": "too many pixels"},
    ]
    with pytest.raises(InvalidRequest) as caught:
        reading(FOX, problem(422, request_id="r-17", errors=errors))
    assert str(caught.value).splitlines() == [
        "the fox is shy (422 shy, request r-17)",
        "  /prompt, character 12: this parenthesis is never closed",
        "  the request as a whole: too many pixels",
    ]


def test_a_request_id_in_the_headers_will_do():
    reply = Reply(500, {"x-request-id": "r-18"}, problem(500).body)
    with pytest.raises(darkroom.ServerError, match="request r-18"):
        reading(INFO, reply)


def test_a_proxys_page_is_not_taken_for_an_answer():
    page = b"<html>\n<h1>502 Bad Gateway</h1>" + b"x" * 1000
    with pytest.raises(
        BadResponse, match=r"HTTP 502: GET /v1/info was answered with text/html, not by Darkroom"
    ) as caught:
        reading(INFO, Reply(502, {"content-type": "text/html"}, page))
    assert caught.value.status == 502
    assert caught.value.excerpt == page[:200].decode()


def test_a_login_page_with_status_200_is_not_taken_for_an_answer():
    with pytest.raises(BadResponse, match="The body begins '<html>'"):
        reading(INFO, Reply(200, {}, b"<html>"))


def test_json_of_another_service_is_not_taken_for_a_problem():
    with pytest.raises(BadResponse):
        reading(INFO, Reply(404, {"content-type": "application/json"}, b'{"detail": "Not Found"}'))


@pytest.mark.parametrize("length", [0, 1, 40])
def test_half_an_answer_is_not_taken_for_an_answer(length):
    body = b'{"id": "g1", "model": "pocket", "images": [], "timings": {}}'[:length]
    with pytest.raises(BadResponse, match="the answer to POST /v1/generate cannot be read"):
        reading(FOX, Reply(200, {}, body))


def test_an_answer_that_lacks_a_field_names_it():
    with pytest.raises(BadResponse, match=r"Field required \(at images\)"):
        reading(FOX, Reply(200, {}, b'{"id": "g1", "model": "pocket", "timings": {}}'))


def test_an_excerpt_of_a_body_that_is_not_text_is_still_200_characters():
    with pytest.raises(BadResponse) as caught:
        reading(INFO, Reply(502, {}, "é".encode() * 500))
    assert caught.value.excerpt == "é" * 200


def test_a_redirect_is_reported_and_not_followed():
    with pytest.raises(
        BadResponse, match="was redirected to https://elsewhere/; is base_url right"
    ) as caught:
        reading(INFO, Reply(307, {"location": "https://elsewhere/"}))
    assert caught.value.status == 307


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": " 0 "}, 0.0),
        ({"retry-after": "Fri, 15 Jan 2027 08:00:30 GMT"}, 30.0),
        ({"retry-after": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        # Clocks differ by an hour: the answer's own date counts.
        ({"retry-after": "Fri, 15 Jan 2027 09:00:30 GMT", "date": "Fri, 15 Jan 2027 09:00:00 GMT"}, 30.0),
        ({}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "Fri, 99 Jan 2027 08:00:30 GMT"}, None),
    ],
)
def test_retry_after_is_read_in_both_of_its_forms(headers, seconds):
    assert retry_after_seconds(Reply(503, headers), wall_now_seconds=WALL) == seconds


def test_unknown_fields_of_a_newer_service_are_skipped(client):
    body = json.loads(client.info().model_dump_json()) | {"colour_of_the_bike_shed": "red"}
    assert reading(INFO, Reply(200, {}, json.dumps(body).encode())) == client.info()
