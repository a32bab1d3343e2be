"""The two clients: twins, and good citizens of whatever HTTP library they are given."""

import asyncio
import inspect
from typing import get_type_hints

import httpx
import pytest

from darkroom import (
    AsyncComparisonResult,
    AsyncDarkroom,
    BadResponse,
    ComparisonResult,
    ConnectionFailed,
    Darkroom,
    GenerateRequest,
    Generation,
    Timeout,
    Timeouts,
    Unavailable,
)
from darkroom._options import Options
from darkroom.testing import FakeDarkroom


def public(kind):
    return {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


def test_the_twins_have_the_same_methods_and_arguments():
    assert public(Darkroom).keys() == public(AsyncDarkroom).keys()
    for name, method in public(Darkroom).items():
        signatures = [inspect.signature(method), inspect.signature(getattr(AsyncDarkroom, name))]
        if name.startswith("stream"):  # what they return is awaited, not they
            returned = [signature.return_annotation for signature in signatures]
            assert [public(kind).keys() for kind in returned] == [{"close"}, {"close"}]
            signatures = [signature.replace(return_annotation=None) for signature in signatures]
        else:
            assert inspect.iscoroutinefunction(getattr(AsyncDarkroom, name)), name
            returned = [signature.return_annotation for signature in signatures]
            if returned == [ComparisonResult, AsyncComparisonResult]:
                signatures = [signature.replace(return_annotation=None) for signature in signatures]
        assert signatures[0] == signatures[1], name
    ours, theirs = (dict(inspect.signature(kind).parameters) for kind in (Darkroom, AsyncDarkroom))
    assert ours.pop("http_client").annotation != theirs.pop("http_client").annotation
    assert ours == theirs


def test_generate_has_every_field_of_the_request_with_its_default():
    arguments = dict(inspect.signature(Darkroom.generate).parameters)
    del arguments["self"]
    fields = {name: field for name, field in GenerateRequest.model_fields.items() if name != "previews"}
    assert arguments.keys() == fields.keys()
    for name, field in fields.items():
        assert field.is_required() or arguments[name].default == field.default, name


def test_stream_has_the_keywords_of_generate_and_previews():
    arguments = inspect.get_annotations(Darkroom.generate, eval_str=True)
    for name in ("prompt", "return"):
        del arguments[name]
    assert get_type_hints(Options) == arguments
    stream = inspect.signature(Darkroom.stream).parameters
    assert list(stream) == ["self", "prompt", "previews", "options"]
    assert stream["previews"].default == GenerateRequest.model_fields["previews"].default


def test_the_twins_do_the_same(fake):
    fake.fail_next(503)
    with fake.client() as client:
        expected = client.generate("a fox", seed=7, num_images=2)

    async def generate():
        other = FakeDarkroom()
        other.fail_next(503)
        async with other.async_client() as client:
            await client.wait_until_ready(on_wait=print)
            await client.info()
            return await client.generate("a fox", seed=7, num_images=2)

    assert asyncio.run(generate()) == expected


def test_a_request_made_once_can_be_sent_by_either(fake):
    request = GenerateRequest(prompt="a fox", seed=7)

    async def generate():
        async with fake.async_client() as client:
            return await client.generate_request(request)

    with fake.client() as client:
        assert client.generate_request(request).images == asyncio.run(generate()).images


class Stream(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body that notes when it is closed."""

    def __init__(self, *chunks, then=None):
        self.chunks, self.then, self.closed = chunks, then, False

    def __iter__(self):
        yield from self.chunks

    async def __aiter__(self):
        for chunk in self.chunks:
            yield chunk
        await self.then()

    def close(self):
        self.closed = True

    async def aclose(self):
        self.closed = True


def test_a_cancelled_call_leaves_no_response_open():
    async def scenario():
        reading = asyncio.Event()

        async def never():
            reading.set()
            await asyncio.Event().wait()

        stream = Stream(b'{"id":', then=never)
        transport = httpx.MockTransport(lambda request: httpx.Response(200, stream=stream))
        async with httpx.AsyncClient(transport=transport) as http:
            call = asyncio.create_task(AsyncDarkroom(http_client=http).generate("a fox"))
            await reading.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
        return stream.closed

    assert asyncio.run(scenario())


def test_a_body_that_trickles_for_ever_meets_the_deadline_and_is_closed():
    stream = Stream(*[b" "] * 1000)
    http = httpx.Client(transport=httpx.MockTransport(lambda request: httpx.Response(200, stream=stream)))
    ticks = iter(range(1000))
    client = Darkroom(timeout=10, http_client=http)
    client._outside = type(client._outside)(now=lambda: float(next(ticks)))
    with pytest.raises(Timeout, match="did not answer POST /v1/generate within 10 s"):
        client.generate("a fox")
    assert stream.closed
    assert next(ticks) < 20


def test_the_callers_own_http_client_stays_open():
    http = httpx.Client()
    with Darkroom(http_client=http):
        pass
    assert not http.is_closed
    client = Darkroom()
    with client:
        pass
    assert client._http.is_closed


def test_a_redirect_is_not_followed_even_by_a_client_that_would():
    asked = []

    def elsewhere(request):
        asked.append(request.url.host)
        return httpx.Response(302, headers={"location": "http://evil/"})

    http = httpx.Client(transport=httpx.MockTransport(elsewhere), follow_redirects=True)
    with pytest.raises(BadResponse, match="was redirected to http://evil/"):
        Darkroom(api_key="k", http_client=http).info()
    assert asked == ["127.0.0.1"]


def test_nobody_listening_is_said_with_the_address():
    client = Darkroom("http://127.0.0.1:1", max_retries=0, timeout=Timeouts(total_seconds=5))
    with (
        client,
        pytest.raises(ConnectionFailed, match=r"127\.0\.0\.1:1 could not be reached .*refused"),
    ):
        client.info()


@pytest.mark.parametrize(
    ("failure", "expected", "attempts"),
    [
        ("ConnectError", ConnectionFailed, 4),
        ("ConnectTimeout", ConnectionFailed, 4),
        ("ProxyError", ConnectionFailed, 4),
        ("ReadTimeout", Timeout, 1),
        ("ReadError", ConnectionFailed, 1),
    ],
)
def test_a_client_of_httpx2_is_understood_as_well(failure, expected, attempts):
    httpx2 = pytest.importorskip("httpx2")
    asked = []

    def fail(request):
        asked.append(request)
        raise getattr(httpx2, failure)("no luck")

    client = Darkroom(http_client=httpx2.Client(transport=httpx2.MockTransport(fail)))
    client._sleep = lambda seconds: None
    with pytest.raises(expected):
        client.generate("a fox")
    assert len(asked) == attempts


def test_an_asgi_app_can_be_called_in_process():
    testclient = pytest.importorskip("starlette.testclient")

    async def app(scope, receive, send):
        headers = [(b"content-type", b"application/problem+json"), (b"retry-after", b"90")]
        body = b'{"title": "Busy", "status": 503, "detail": "full", "code": "overloaded"}'
        await send({"type": "http.response.start", "status": 503, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    client = Darkroom(http_client=testclient.TestClient(app))
    assert repr(client) == "Darkroom('http://testserver')"
    with pytest.raises(Unavailable) as caught:
        client.generate("a fox")
    assert caught.value.retry_after_seconds == 90


def test_the_timings_and_the_identity_of_a_generation_are_kept(client):
    generation = client.generate("a fox", tokens=True, negative_prompt="blurry sad fox")
    assert isinstance(generation, Generation)
    assert (generation.id, generation.model, generation.timings.total) == ("fake-1", "fake", 0)
    assert generation.tokens.negative_prompt.text_encoder.tokens == 3
