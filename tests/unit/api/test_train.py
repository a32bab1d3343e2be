"""The stream of a train job's events, with a stand-in for the use case."""

import asyncio
from datetime import UTC, datetime

import pytest

from darkroom._sse import Parser
from darkroom.types import JobEvent, TrainJob, TrainRequest
from lora_registry.errors import CatalogUnavailable
from service.api.auth import SCOPES
from service.api.in_flight import InFlight
from service.api.train_stream import JobEventStream

WHEN = datetime(2024, 1, 1, tzinfo=UTC)
REQUEST = TrainRequest(kind="negative", name="wrong")
DONE = TrainJob(
    id="job-1",
    kind="negative",
    name="wrong",
    state="succeeded",
    stage="done",
    step=9,
    max_train_steps=9,
    request=REQUEST,
    created_at=WHEN,
)


def event(id):
    return JobEvent(id=id, type="progress", at=WHEN, step=id)


class Reader:
    """Whoever reads a stream. `left` closes the connection; `heard` is what came so far."""

    def __init__(self):
        self.heard, self.left, self.changed, self.whole = b"", asyncio.Event(), asyncio.Event(), False

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] == "http.response.start":
            self.status = message["status"]
        else:
            self.heard += message["body"]
            self.whole = not message["more_body"]
        self.changed.set()

    async def until(self, text, count=1):
        async with asyncio.timeout(10):
            while self.heard.count(text) < count:
                self.changed.clear()
                await self.changed.wait()

    def events(self):
        return [(sent.event, sent.id) for sent in Parser().feed(self.heard)]


def play(told, scenario=None, **options):
    """What a reader of this stream has heard at its end."""

    async def main():
        reader = Reader()
        stream = JobEventStream(told(), InFlight(), **options)
        scope = {"type": "http", "path": "/v1/train-jobs/job-1/events", "headers": []}
        answering = asyncio.create_task(stream(scope, reader.receive, reader.send))
        if scenario is not None:
            await scenario(reader)
        await asyncio.wait_for(answering, 10)
        return reader

    return asyncio.run(main())


def test_events_have_their_ids_and_the_job_comes_last():
    async def told():
        yield event(1)
        yield event(2)
        yield DONE

    reader = play(told)
    assert reader.events() == [("progress", "1"), ("progress", "2"), ("done", "2")]
    assert (reader.status, reader.whole) == (200, True)
    done = Parser().feed(reader.heard)[-1]
    assert TrainJob.model_validate_json(done.data) == DONE


def test_a_stream_begins_at_once_and_beats_while_nothing_happens():
    happens = asyncio.Event()

    async def told():
        await happens.wait()
        yield event(1)
        yield DONE

    async def scenario(reader):
        await reader.until(b": still at work\n\n", count=3)
        assert reader.events() == []
        happens.set()

    assert play(told, scenario, heartbeat_seconds=0.01).events() == [("progress", "1"), ("done", "1")]


def test_a_reader_who_leaves_ends_the_reading():
    closed = []

    async def told():
        try:
            yield event(1)
            await asyncio.Event().wait()
        finally:
            closed.append(True)

    async def scenario(reader):
        await reader.until(b"id: 1")
        reader.left.set()

    assert play(told, scenario).events() == [("progress", "1")]
    assert closed == [True]


def test_what_goes_wrong_on_the_way_is_the_last_event():
    async def told():
        yield event(1)
        raise CatalogUnavailable("the database is away")

    reader = play(told)
    assert [name for name, _ in reader.events()] == ["progress", "error"]
    assert b'"code":"catalog_unavailable"' in reader.heard
    assert reader.whole


def test_every_route_of_train_jobs_needs_the_scope(service):
    routes = {
        (method.upper(), path)
        for path, operations in service.app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/v1/train-jobs")
    }
    scopes = {(method, path.replace(":path", "")): scope for (method, path), scope in SCOPES.items()}
    assert len(routes) == 9
    assert {scopes[route] for route in routes} == {"train"}


@pytest.mark.parametrize("id", ["-1", "x", str(2**40)])
def test_a_last_event_that_cannot_be_is_refused(service, id):
    reply = service.get("/v1/train-jobs/job-1/events", **{"last-event-id": id})
    assert (reply.status, reply.problem["code"]) == (422, "invalid_request")
