"""Where a client finds its service and its key, and that it keeps the key to itself."""

import json
import logging

import httpx
import pytest

from darkroom import AsyncDarkroom, BadResponse, Darkroom, GenerateRequest, Timeouts
from darkroom import _calls as calls
from darkroom._connection import Connection, resolve

KEY = "dk-very-secret"


class Service:
    """Records the requests of an httpx client; answers what it is told."""

    def __init__(self, *answers):
        self.answers = list(answers) or [httpx.Response(404, text="no")]
        self.requests = []

    def http(self, **options):
        return httpx.Client(transport=httpx.MockTransport(self.answer), **options)

    def answer(self, request):
        self.requests.append(request)
        return self.answers.pop(0)


def sent_by(**options):
    """The request that a client with these options sends."""
    service = Service()
    with pytest.raises(BadResponse):
        Darkroom(http_client=service.http(), **options).info()
    return service.requests[0]


def test_without_any_setting_the_service_is_on_this_machine():
    request = sent_by()
    assert str(request.url) == "http://127.0.0.1:3000/v1/info"
    assert "authorization" not in request.headers


def test_the_environment_names_service_and_key(monkeypatch):
    monkeypatch.setenv("DARKROOM_URL", "https://images.internal/darkroom/")
    monkeypatch.setenv("DARKROOM_API_KEY", KEY)
    request = sent_by()
    assert str(request.url) == "https://images.internal/darkroom/v1/info"
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_arguments_win_over_the_environment(monkeypatch):
    monkeypatch.setenv("DARKROOM_URL", "http://wrong")
    monkeypatch.setenv("DARKROOM_API_KEY", "wrong")
    request = sent_by(base_url="http://right", api_key=KEY)
    assert request.url.host == "right"
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_empty_variables_count_as_absent(monkeypatch):
    monkeypatch.setenv("DARKROOM_URL", "")
    monkeypatch.setenv("DARKROOM_API_KEY", "  ")
    request = sent_by()
    assert request.url.port == 3000
    assert "authorization" not in request.headers


def test_an_http_client_that_knows_its_address_is_believed(monkeypatch):
    monkeypatch.setenv("DARKROOM_URL", "http://wrong")
    service = Service()
    with pytest.raises(BadResponse):
        Darkroom(http_client=service.http(base_url="http://testserver")).info()
    assert str(service.requests[0].url) == "http://testserver/v1/info"


def test_a_key_read_from_a_file_may_end_in_a_newline():
    assert sent_by(api_key=KEY + "\n").headers["authorization"] == f"Bearer {KEY}"


def test_a_key_that_cannot_be_sent_is_refused_without_being_shown():
    with pytest.raises(
        ValueError, match="the API key holds a character that no HTTP header may carry"
    ) as caught:
        Darkroom(api_key=f"{KEY}\nX-Evil: 1")
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("localhost:3000", "'localhost:3000' is not an address; write it like 'http://127.0.0.1:3000'"),
        ("ftp://host", "is not an address"),
        ("http://", "is not an address"),
        ("http://host?x=1", "has a query or a fragment"),
    ],
)
def test_an_address_that_cannot_work_is_refused_at_once(url, message):
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        Darkroom(url)


def test_a_password_in_the_address_is_refused_without_being_shown():
    with pytest.raises(ValueError, match="give a key as api_key instead") as caught:
        Darkroom(f"http://user:{KEY}@host")
    assert KEY not in str(caught.value)


def test_the_key_shows_nowhere(caplog):
    caplog.set_level(logging.DEBUG)
    loading = '{"title": "Busy", "status": 503, "detail": "loading", "code": "model_loading"}'
    service = Service(
        httpx.Response(503, text=loading, headers={"retry-after": "0"}), httpx.Response(404, text="no")
    )
    client = Darkroom(api_key=KEY, http_client=service.http())
    client._sleep = lambda seconds: None
    with pytest.raises(BadResponse) as caught:
        client.info()
    shown = [
        repr(client),
        str(client),
        repr(client._connection),
        repr(vars(client)),
        repr(caught.value),
        caplog.text,
    ]
    assert "trying again" in caplog.text
    assert not any(KEY in text for text in shown)
    assert KEY not in repr(AsyncDarkroom(api_key=KEY))


def test_a_prompt_shows_in_no_call():
    call = calls.generate(GenerateRequest(prompt="something private"))
    assert "private" not in repr(call)
    assert str(call) == "POST /v1/generate"


def test_what_is_at_its_default_is_left_to_the_service():
    service = Service()
    with pytest.raises(BadResponse):
        Darkroom(http_client=service.http()).generate(
            "a fox", seed=7, negative_prompt="", num_inference_steps=50
        )
    assert json.loads(service.requests[0].content) == {"prompt": "a fox", "negative_prompt": "", "seed": 7}
    assert service.requests[0].headers["content-type"] == "application/json"
    assert service.requests[0].headers["user-agent"].startswith("darkroom-python/")


def test_a_plain_number_is_the_limit_of_the_whole_call():
    assert resolve(None, None, 20, 3) == Connection(
        "http://127.0.0.1:3000", timeouts=Timeouts(total_seconds=20)
    )
    assert Timeouts() == Timeouts(connect_seconds=5, total_seconds=600)


def test_limits_reach_the_http_library():
    request = sent_by(timeout=Timeouts(connect_seconds=2, total_seconds=20))
    limits = request.extensions["timeout"]
    assert limits["connect"] == 2
    assert limits["read"] == pytest.approx(20, abs=1)


@pytest.mark.parametrize("options", [{"max_retries": -1}, {"timeout": 0}, {"timeout": Timeouts}])
def test_patience_below_nothing_is_refused(options):
    with pytest.raises((ValueError, TypeError)):
        Darkroom(**options)
