"""POST /v1/generate as a stream of events, with a stand-in for the use case."""

import asyncio
import base64
import io
import json
from types import SimpleNamespace

import pytest
from PIL import Image

from darkroom._sse import Parser
from service import errors
from service.api.app import create_app
from service.api.stream import Mailbox
from service.engine.orders import Progress

ACCEPT = {"accept": "text/event-stream"}
ORDER = '{"prompt": "a fox", "num_inference_steps": 3}'


def told(reply):
    """(event, data) of each, whose ids count from 1."""
    events = Parser().feed(reply.body)
    assert [event.id for event in events] == [str(number + 1) for number in range(len(events))]
    assert sum(event.event in ("result", "error") for event in events) <= 1
    return [(event.event, json.loads(event.data)) for event in events]


@pytest.fixture
def slow(service, build_call, change):
    """A call whose work goes on until `release`; `heard` is awaited with the first text that has come so far."""
    service.components.generation.slow = True
    call = build_call("POST", "/v1/generate", body=ORDER, **ACCEPT)

    class Slow:
        edge = service.edge
        body = b""

        async def ask(self, *, leaves_after=None):
            heard = self.watch(leaves_after) if leaves_after else None
            return await change(call, leaves_on=heard).on(self.passing_on)

        async def passing_on(self, scope, receive, send):
            async def listen(message):
                await send(message)
                self.body += message.get("body", b"")
                self.changed.set()

            await self.edge(scope, receive, listen)

        def watch(self, text):
            async def heard():
                while text not in self.body:
                    self.changed.clear()
                    await self.changed.wait()

            return heard

        def play(self, scenario):
            async def main():
                self.changed = asyncio.Event()
                return await scenario()

            return asyncio.run(main())

    return Slow()


def test_a_stream_is_accepted_then_progress_then_the_result(service):
    reply = service.generate(ORDER, **ACCEPT)
    assert (reply.status, reply.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["x-accel-buffering"] == "no"
    assert reply.headers["vary"] == "Accept"
    assert "content-length" not in reply.headers
    accepted, *steps, (name, result) = told(reply)
    assert accepted == ("accepted", {"id": "gen_1", "estimated_seconds": 2.5})
    assert {event for event, _ in steps} == {"progress"}
    assert steps[-1][1] == {"index": 0, "step": 3, "steps": 3}
    assert (name, result["id"], result["images"][0]["seed"]) == ("result", "gen_1", 7)
    assert result == json.loads(service.generate(ORDER).body)


def test_previews_are_small_png_files(service):
    reply = service.generate('{"prompt": "a fox", "previews": true}', **ACCEPT)
    shown = next(data for event, data in told(reply) if event == "progress")
    picture = Image.open(io.BytesIO(base64.b64decode(shown["preview_b64"])))
    assert (picture.format, picture.size) == ("PNG", (16, 8))


@pytest.mark.parametrize(
    ("body", "error", "status", "code"),
    [
        ('{"prompt": ""}', None, 422, "invalid_request"),
        ("{", None, 400, "malformed_json"),
        (ORDER, errors.ModelLoading(retry_after_seconds=4), 503, "model_loading"),
        (ORDER, errors.Draining(), 503, "draining"),
        (
            ORDER,
            errors.Overloaded(backlog_seconds=9, limit_seconds=8, retry_after_seconds=4),
            503,
            "overloaded",
        ),
        (ORDER, errors.InvalidPrompt("unclosed", position=3), 422, "invalid_prompt"),
        (ORDER, ValueError("bug"), 500, "internal"),
    ],
)
def test_what_is_not_accepted_is_answered_as_without_a_stream(service, body, error, status, code):
    service.components.generation.error = error
    reply = service.generate(body, **ACCEPT)
    assert (reply.status, reply.problem["code"]) == (status, code)
    assert ("retry-after" in reply.headers) == (status == 503)


@pytest.mark.parametrize(
    ("error", "status", "code", "metric"),
    [
        (errors.DeadlineExceeded("late"), 504, "deadline_exceeded", None),
        (errors.UnusableImage("black", seed=3), 422, "unusable_image", "rejected_total"),
        (errors.EngineStopped("/a/path"), 503, "engine_stopped", "rejected_total"),
        (TimeoutError("bug"), 500, "internal", None),
    ],
)
def test_what_fails_later_ends_the_stream_with_the_same_problem(service, error, status, code, metric):
    service.components.generation.late_error = error
    reply = service.generate(ORDER, **ACCEPT, x_request_id="r-1")
    assert reply.status == 200
    name, problem = told(reply)[-1]
    assert (name, problem["status"], problem["code"]) == ("error", status, code)
    assert (problem["request_id"], problem["instance"]) == ("r-1", "/v1/generate")
    assert b"/a/path" not in reply.body
    labels = {"route": "/v1/generate", "method": "POST", "status": str(status)}
    assert service.metric("request_duration_seconds_count", **labels) == 1
    assert service.metric("rejected_total", reason=code) == (1 if metric else 0)


def test_a_reader_who_leaves_has_the_work_cancelled(service, slow):
    reply = slow.play(lambda: slow.ask(leaves_after=b"event: progress"))
    assert [event for event, _ in told(reply)] == ["accepted", "progress"]
    assert service.components.generation.cancelled
    assert service.metric("cancelled_total", reason="disconnected") == 1
    labels = {"route": "/v1/generate", "method": "POST", "status": "499"}
    assert service.metric("request_duration_seconds_count", **labels) == 1


def test_a_shutdown_ends_the_stream_and_says_so(service, slow):
    async def scenario():
        asking = asyncio.create_task(slow.ask())
        await slow.watch(b"event: progress")()
        return await service.in_flight.finish(within_seconds=0), await asking

    unfinished, reply = slow.play(scenario)
    name, problem = told(reply)[-1]
    assert (unfinished, name, problem["code"]) == (1, "error", "shutdown")
    assert service.components.generation.cancelled
    assert service.metric("cancelled_total", reason="shutdown") == 1


def test_a_stream_in_flight_finishes_within_the_patience(service, slow):
    async def scenario():
        asking = asyncio.create_task(slow.ask())
        await slow.watch(b"event: progress")()
        finishing = asyncio.create_task(service.in_flight.finish(within_seconds=60))
        service.components.generation.release.set()
        return await finishing, await asking

    unfinished, reply = slow.play(scenario)
    assert (unfinished, told(reply)[-1][0]) == (0, "result")


def test_a_silence_is_filled_with_comments(service, slow):
    app = create_app(lambda: service.components, service.in_flight, heartbeat_seconds=0.001)
    service.app = app
    slow.edge = app

    async def scenario():
        asking = asyncio.create_task(slow.ask())
        await slow.watch(b": still at work\n\n" * 2)()
        service.components.generation.release.set()
        return await asking

    reply = slow.play(scenario)
    assert told(reply)[-1][0] == "result"


def test_a_slow_reader_misses_steps_but_no_image_and_never_the_end():
    async def events(end):
        yield "accepted"
        for step in range(1, 101):
            for index in (0, 1, 2):
                yield Progress(index, step, 100)
                if index == 1 and step == 50:
                    await asyncio.sleep(0)
        if isinstance(end, Exception):
            raise end
        yield end

    async def scenario(end):
        mailbox = Mailbox()
        filling = asyncio.create_task(mailbox.fill(events(end)))
        taken = [await mailbox.take(), await mailbox.take()]
        await filling
        taken += [await mailbox.take() for _ in range(4)]
        return taken

    for end in (SimpleNamespace(id="gen_1"), errors.DeadlineExceeded("late")):
        taken = asyncio.run(scenario(end))
        assert taken == [
            "accepted",
            Progress(0, 50, 100),
            Progress(1, 100, 100),
            Progress(2, 100, 100),
            Progress(0, 100, 100),
            end,
        ]
