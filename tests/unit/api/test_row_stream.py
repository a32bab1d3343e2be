"""The stream of events that are rows, of train jobs and of comparisons, with a stand-in for the use case."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from darkroom._sse import Parser
from darkroom.types import (
    Arm,
    CompareEvaluations,
    CompareEvent,
    ComparePlan,
    CompareRequest,
    Comparison,
    JobEvent,
    TrainJob,
    TrainRequest,
)
from lora_registry.errors import CatalogUnavailable
from service.api.in_flight import InFlight
from service.api.row_stream import RowStream

WHEN = datetime(2024, 1, 1, tzinfo=UTC)
JOB = TrainJob(
    id="job-1",
    kind="negative",
    name="wrong",
    state="succeeded",
    stage="done",
    step=9,
    max_train_steps=9,
    request=TrainRequest(kind="negative", name="wrong"),
    created_at=WHEN,
)
COMPARISON = Comparison(
    id="cmp_1",
    state="succeeded",
    stage="done",
    request=CompareRequest(prompts=("a fox",), arms=(Arm(name="as it is"),)),
    plan=ComparePlan(
        arms=[],
        baseline="as it is",
        prompts=["a fox"],
        seeds=[0],
        cells=9,
        pictures=9,
        evaluations=CompareEvaluations(planned=9, naive=9),
        swaps=0,
        estimated_seconds=1.0,
        metrics=[],
        fits=True,
    ),
    created_at=WHEN,
)


def event(id):
    return JobEvent(id=id, type="progress", at=WHEN, step=id)


def cell(id):
    return CompareEvent(id=id, type="cell", at=WHEN, done=id, total=9, cell=id)


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
        stream = RowStream(told(), InFlight(), **options)
        scope = {"type": "http", "path": "/v1/train-jobs/job-1/events", "headers": []}
        answering = asyncio.create_task(stream(scope, reader.receive, reader.send))
        if scenario is not None:
            await scenario(reader)
        await asyncio.wait_for(answering, 10)
        return reader

    return asyncio.run(main())


@pytest.mark.parametrize(("row", "work"), [(event, JOB), (cell, COMPARISON)], ids=["job", "comparison"])
def test_events_have_their_ids_and_the_work_comes_last(row, work):
    async def told():
        yield row(1)
        yield row(2)
        yield work

    reader = play(told)
    name = row(1).type
    assert reader.events() == [(name, "1"), (name, "2"), ("done", "2")]
    assert (reader.status, reader.whole) == (200, True)
    *rows, done = Parser().feed(reader.heard)
    assert [type(row(1)).model_validate_json(sent.data) for sent in rows] == [row(1), row(2)]
    assert json.loads(done.data) == work.model_dump(mode="json"), "as where it is got by itself"


def test_a_stream_begins_at_once_and_beats_while_nothing_happens():
    happens = asyncio.Event()

    async def told():
        await happens.wait()
        yield event(1)
        yield JOB

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
