"""A picture in the making, as the clients tell of it."""

import asyncio
import base64
import io
import json

import httpx
import PIL.Image
import pytest

from darkroom import (
    Accepted,
    AsyncDarkroom,
    BadResponse,
    ConnectionFailed,
    Darkroom,
    DeadlineExceeded,
    GenerateRequest,
    Generation,
    InvalidRequest,
    Progress,
    Timeout,
    Unavailable,
)
from darkroom.testing import FakeDarkroom

ACCEPTED = b'id: 1\nevent: accepted\ndata: {"id": "gen_1", "estimated_seconds": 2}\n\n'
STEP = b'id: 2\nevent: progress\ndata: {"index": 0, "step": 1, "steps": 4}\n\n'
EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}


class Body(httpx.AsyncByteStream, httpx.SyncByteStream):
    """A body that notes when it is closed and may break at its end."""

    def __init__(self, *chunks, then=None):
        self.chunks, self.then, self.closed = chunks, then, False

    def __iter__(self):
        yield from self.chunks
        if self.then is not None:
            raise self.then

    async def __aiter__(self):
        for chunk in self:
            yield chunk

    def close(self):
        self.closed = True

    async def aclose(self):
        self.closed = True


def answering(body, status=200, headers=EVENT_STREAM):
    return httpx.MockTransport(lambda request: httpx.Response(status, headers=headers, stream=body))


def told_by_sync(transport, prompt="a fox", **options):
    with httpx.Client(transport=transport) as http:
        return [*Darkroom(http_client=http, max_retries=0).stream(prompt, **options)]


def told_by_async(transport, prompt="a fox", **options):
    async def main():
        async with httpx.AsyncClient(transport=transport) as http:
            client = AsyncDarkroom(http_client=http, max_retries=0)
            return [event async for event in client.stream(prompt, **options)]

    return asyncio.run(main())


BOTH = pytest.mark.parametrize("told_by", [told_by_sync, told_by_async], ids=["sync", "async"])


@BOTH
def test_steps_come_before_the_pictures(told_by):
    transport = httpx.MockTransport(FakeDarkroom()._answer)
    accepted, *steps, generation = told_by(transport, num_inference_steps=3, num_images=2, seed=7)
    assert accepted == Accepted(id="fake-1", estimated_seconds=1.0)
    assert steps == [Progress(index, step, 3) for step in (1, 2, 3) for index in (0, 1)]
    assert isinstance(generation, Generation)
    assert generation.id == accepted.id
    plain = FakeDarkroom().client().generate("a fox", seed=7, num_images=2, num_inference_steps=3)
    assert generation == plain


@BOTH
def test_previews_are_pictures_to_open_and_to_save(told_by, tmp_path):
    transport = httpx.MockTransport(FakeDarkroom()._answer)
    _, *steps, _ = told_by(transport, num_inference_steps=3, previews=True)
    assert [step.preview is None for step in steps] == [False, False, True]
    assert steps[0].preview.pil().size == (8, 8)
    assert steps[0].preview.save(tmp_path / "preview").name == "preview.png"


def test_previews_outside_a_stream_are_refused(client):
    with pytest.raises(InvalidRequest, match="previews come only in a stream") as caught:
        client.generate_request(GenerateRequest(prompt="a fox", previews=True))
    assert caught.value.errors[0].pointer == "/previews"


def test_nothing_is_sent_before_the_first_event_is_asked_for(fake, client):
    stream = client.stream("a fox")
    assert fake.requests == []
    next(stream)
    assert fake.requests[0].generate.prompt == "a fox"


def test_a_value_that_cannot_be_right_is_refused_at_once(fake, client):
    with pytest.raises(InvalidRequest) as caught:
        client.stream("a fox", width=1001)
    assert caught.value.errors[0].pointer == "/width"
    assert fake.requests == []


def test_a_refusal_before_acceptance_is_tried_again(fake, client):
    fake.fail_next(503, times=2, retry_after_seconds=30)
    assert isinstance([*client.stream("a fox")][-1], Generation)
    assert fake.sleeps == [30.25, 30.5]


def test_what_was_accepted_is_not_tried_again(fake, client):
    fake.fail_next(503, code="shutdown", midway=True)
    seen = []
    with pytest.raises(Unavailable) as caught:
        seen.extend(client.stream("a fox", num_inference_steps=4))
    assert caught.value.code == "shutdown"
    assert seen == [Accepted(id="fake-1", estimated_seconds=1.0), Progress(0, 1, 4), Progress(0, 2, 4)]
    assert len(fake.requests) == 1


def test_a_connection_can_be_lost_midway_on_order(fake, client):
    fake.fail_next(ConnectionError("gone"), midway=True)
    with pytest.raises(ConnectionFailed, match="stopped before its result"):
        list(client.stream("a fox", num_inference_steps=4))


@BOTH
def test_an_error_at_the_end_is_the_exception_of_a_plain_call(told_by):
    problem = {"title": "Late", "status": 504, "detail": "too late", "code": "deadline_exceeded"}
    error = b"event: error\ndata: " + json.dumps(problem | {"request_id": "r-1"}).encode() + b"\n\n"
    body = Body(ACCEPTED, STEP, error)
    with pytest.raises(DeadlineExceeded, match=r"too late \(504 deadline_exceeded, request r-1\)"):
        told_by(answering(body))
    assert body.closed


@BOTH
@pytest.mark.parametrize("chunks", [(), (ACCEPTED, STEP), (ACCEPTED, STEP[:-1])])
def test_a_stream_without_an_end_is_a_connection_that_failed(told_by, chunks):
    body = Body(*chunks)
    with pytest.raises(ConnectionFailed, match="stopped before its result"):
        told_by(answering(body))
    assert body.closed


@BOTH
@pytest.mark.parametrize(
    ("failure", "error"), [(httpx.ReadError("reset"), ConnectionFailed), (httpx.ReadTimeout("late"), Timeout)]
)
def test_a_connection_that_breaks_midway_is_not_tried_again(told_by, failure, error):
    body = Body(ACCEPTED, then=failure)
    with pytest.raises(error):
        told_by(answering(body))
    assert body.closed


@BOTH
def test_a_200_that_is_no_stream_is_somebody_elses(told_by):
    page = answering(Body(b"<html>Sign in"), headers={"content-type": "text/html"})
    with pytest.raises(BadResponse, match=r"not answered with a stream of events.*Sign in"):
        told_by(page)


@BOTH
@pytest.mark.parametrize(
    "event",
    [
        b"event: accepted\ndata: {}\n\n",
        b"event: result\ndata: <html>\n\n",
        b'event: progress\ndata: {"index": 0, "step": 1, "steps": 2, "preview_b64": "?"}\n\n',
    ],
)
def test_an_event_that_cannot_be_read_is_a_bad_response(told_by, event):
    with pytest.raises(BadResponse):
        told_by(answering(Body(event)))


def test_events_and_fields_of_a_newer_service_are_skipped():
    newer = b'event: weather\ndata: fine\n\nevent: progress\ndata: {"index":0,"step":1,"steps":4,"x":1}\n\n'
    stream = Darkroom(http_client=httpx.Client(transport=answering(Body(newer)))).stream("a fox")
    assert next(stream) == Progress(0, 1, 4)


def test_leaving_early_closes_the_connection():
    body = Body(ACCEPTED, STEP, STEP)
    client = Darkroom(http_client=httpx.Client(transport=answering(body)))
    with client.stream("a fox") as stream:
        assert next(stream).id == "gen_1"
        assert not body.closed
    assert body.closed
    assert [*stream] == []


def test_leaving_early_closes_the_connection_of_the_twin():
    async def main():
        body = Body(ACCEPTED, STEP, STEP)
        async with httpx.AsyncClient(transport=answering(body)) as http:
            async with AsyncDarkroom(http_client=http).stream("a fox") as stream:
                async for event in stream:
                    assert event.id == "gen_1"
                    break
            return body.closed

    assert asyncio.run(main())


def test_a_stream_that_takes_too_long_is_given_up():
    body = Body(ACCEPTED, *[b": still at work\n\n"] * 1000)
    ticks = iter(range(1000))
    client = Darkroom(timeout=10, http_client=httpx.Client(transport=answering(body)))
    client._outside = type(client._outside)(now=lambda: float(next(ticks)))
    with pytest.raises(Timeout, match="within 10 s"):
        [*client.stream("a fox")]
    assert body.closed


def test_previews_of_the_fake_are_png_files(fake):
    http = httpx.Client(transport=httpx.MockTransport(fake._answer), base_url="http://fake")
    order = {"prompt": "a fox", "num_inference_steps": 2, "previews": True}
    reply = http.post("/v1/generate", json=order, headers={"Accept": "text/event-stream"})
    told = [json.loads(line[6:]) for line in reply.text.splitlines() if line.startswith("data: ")]
    preview = base64.b64decode(told[1]["preview_b64"])
    assert PIL.Image.open(io.BytesIO(preview)).format == "PNG"
