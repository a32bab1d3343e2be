"""`client.train`: jobs that are begun once, heard of over broken connections, and the fake that others test with."""

import asyncio
import inspect
import io
import re
import sys

import httpx
import pytest
from pydantic import ValidationError

from darkroom import (
    AsyncDarkroom,
    AsyncTrainJobs,
    BadResponse,
    Conflict,
    ConnectionFailed,
    Darkroom,
    InvalidRequest,
    LoraUse,
    NotFound,
    Timeout,
    TrainFailed,
    TrainJobs,
    TrainRecipe,
    TrainRequest,
    Unavailable,
)
from darkroom._exchange import Outside
from darkroom._following import PATIENCE_SECONDS
from darkroom.testing import FakeDarkroom

DATASET = "sha256:" + "a" * 64
EVENT_STREAM = {"content-type": "text/event-stream; charset=utf-8"}
DRAINING = (
    b'event: error\ndata: {"title": "Draining", "status": 503, "detail": "going", "code": "draining"}\n\n'
)


def event(id, type="progress", **fields):
    data = {"id": id, "type": type, "at": "2024-01-01T00:00:00Z", "step": id, **fields}
    return f"id: {id}\nevent: {type}\ndata: {httpx.Response(200, json=data).text}\n\n".encode()


class Flaky:
    """A service whose streams of events are these, one after the other; each with what it breaks off by."""

    def __init__(self, *streams):
        fake = FakeDarkroom()
        self.job = fake.client().train.negative("wrong")
        self.done = f"event: done\ndata: {fake.client().train.get(self.job).model_dump_json()}\n\n".encode()
        self.streams, self.asked, self.sleeps = list(streams), [], []

    def answer(self, request):
        if not request.url.path.endswith("/events"):
            return httpx.Response(200, text=self.job.model_dump_json())
        self.asked.append(request.headers.get("last-event-id"))
        chunks, breaks_by = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        if isinstance(chunks, httpx.Response):
            return chunks
        if chunks is None:
            raise breaks_by
        return httpx.Response(200, headers=EVENT_STREAM, stream=Body(chunks, breaks_by))

    def heard_by(self, kind, *, max_retries=3):
        if kind == "sync":
            http = httpx.Client(transport=httpx.MockTransport(self.answer))
            client = self.timed(Darkroom("http://test", http_client=http, max_retries=max_retries))
            client._sleep = self.sleeps.append
            return [told.id for told in client.train.events(self.job)]
        return asyncio.run(self.heard_in_a_loop(max_retries))

    async def heard_in_a_loop(self, max_retries):
        async def sleep(seconds):
            self.sleeps.append(seconds)

        http = httpx.AsyncClient(transport=httpx.MockTransport(self.answer))
        client = self.timed(AsyncDarkroom("http://test", http_client=http, max_retries=max_retries))
        client._sleep = sleep
        return [told.id async for told in client.train.events(self.job)]

    def timed(self, client):
        client._outside = Outside(now=lambda: sum(self.sleeps), draw=lambda: 0.5)
        return client


class Body(httpx.AsyncByteStream, httpx.SyncByteStream):
    def __init__(self, chunks, breaks_by):
        self.chunks, self.breaks_by = chunks, breaks_by

    def __iter__(self):
        yield from self.chunks
        if self.breaks_by is not None:
            raise self.breaks_by

    async def __aiter__(self):
        for chunk in self:
            yield chunk


BOTH = pytest.mark.parametrize("kind", ["sync", "async"])


def test_the_twins_have_the_same_methods_and_arguments():
    def public(kind):
        return {name: method for name, method in vars(kind).items() if not name.startswith("_")}

    assert public(TrainJobs).keys() == public(AsyncTrainJobs).keys()
    for name, method in public(TrainJobs).items():
        twin = public(AsyncTrainJobs)[name]
        assert inspect.signature(method).parameters == inspect.signature(twin).parameters, name
        assert inspect.isasyncgenfunction(twin) == (name in ("list", "events")), name


def test_a_job_is_begun_waited_for_and_its_lora_used(client, tmp_path):
    job = client.train.subject(
        "fox-lora",
        DATASET,
        instance_prompt="a photo of sks fox",
        class_prompt="a photo of a fox",
        recipe=TrainRecipe(rank=8),
        alias="prod",
        tags=["fox"],
    )
    assert (job.state, job.request.recipe.rank, job.request.recipe.alpha) == ("queued", 8, 8.0)
    told = []
    done = client.train.wait(job, progress=told.append)
    assert (done.state, done.lora, done.step) == ("succeeded", "fox-lora@1", done.max_train_steps)
    assert [one.id for one in told] == list(range(1, len(told) + 1))
    assert client.loras.version("fox-lora:prod").digest == done.digest
    picture = client.generate("a fox", seed=7, loras=[LoraUse(ref=done.lora)]).image
    assert picture.data != client.generate("a fox", seed=7).image.data
    assert client.train.artifact(job, "loss.png").startswith(b"\x89PNG")
    weights = client.train.download(job.id, f"checkpoints/{done.step:06}.safetensors", tmp_path)
    assert weights == tmp_path / f"{done.step:06}.safetensors"
    assert client.loras.inspect(io.BytesIO(weights.read_bytes())).verdict == "accepted"


def test_a_published_version_tells_of_its_job(client):
    job = client.train.wait(client.train.negative("wrong", recipe={"seed": 5}), progress=False)
    lineage = client.loras.get("wrong").latest.lineage
    assert (lineage.origin, lineage.job, lineage.seed) == ("train-job", job.id, 5)
    assert lineage.request["kind"] == "negative"


def test_the_twins_do_the_same(fake, tmp_path):
    async def story():
        async with fake.async_client() as client:
            begun = [
                await client.train.subject("one", DATASET, instance_prompt="a sks"),
                await client.train.negative("two", synthesis=None),
                await client.train.embedding("three", DATASET, token="<fox>"),
                await client.train.pivotal("four", DATASET, token="<fox>", class_prompt="a fox"),
            ]
            assert [job.id async for job in client.train.list()] == [job.id for job in reversed(begun)]
            assert [job async for job in client.train.list(state="failed")] == []
            states = [told.state async for told in client.train.events(begun[0]) if told.type == "state"]
            assert states == ["queued", "running", "succeeded"]
            done = await client.train.wait(begun[1], progress=False)
            assert await client.train.get(begun[1].id) == done == await client.train.cancel(done)
            with pytest.raises(Conflict):
                await client.train.retry(done)
            assert [one.name for one in await client.train.artifacts(done)][-1] == "card.json"
            path = await client.train.download(done, "card.json", tmp_path)
            assert path.read_bytes() == await client.train.artifact(done, "card.json")
            return (await client.train.estimate(done.request)).fits

    assert asyncio.run(story())


def test_a_recipe_is_a_class_or_a_dict_and_a_wrong_one_is_refused_before_it_is_sent(fake, client):
    request = TrainRequest(kind="negative", name="wrong", recipe=TrainRecipe(rank=2))
    assert client.train.negative("wrong", recipe={"rank": 2}).request == client.train.create(request).request
    before = len(fake.requests)
    for bad, pointer in (
        ({"recipe": {"rank": 0}}, "/recipe/rank"),
        ({"recipe": {"learning_rate": float("nan")}}, "/recipe/learning_rate"),
        ({"recipe": {"rnak": 4}}, "/recipe/rnak"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            client.train.negative("wrong", **bad)
        assert [fault.pointer for fault in refused.value.errors] == [pointer]
    with pytest.raises(InvalidRequest, match="dataset"):
        client.train.subject("fox", None)
    assert len(fake.requests) == before


def test_a_newer_service_may_repeat_a_request_with_fields_that_are_not_known_here(fake):
    job = fake.client().train.negative("wrong")
    body = job.model_dump(mode="json")
    body["newest"] = body["request"]["newer"] = body["request"]["recipe"]["new"] = 1
    newer = httpx.MockTransport(lambda request: httpx.Response(200, json=body))
    with Darkroom(http_client=httpx.Client(transport=newer, base_url="http://newer")) as client:
        assert client.train.get(job) == job
    with pytest.raises(ValidationError, match="Extra inputs"):
        TrainRequest.model_validate(body["request"])


def test_a_job_whose_answer_was_lost_is_begun_once(fake):
    keys = []

    def lose_the_first(request):
        answer = fake._answer(request)
        if request.method == "POST":
            keys.append(request.headers["idempotency-key"])
        if len(keys) == 1:
            raise httpx.ReadError("the answer is lost")
        return answer

    client = fake.client()
    client._http = httpx.Client(transport=httpx.MockTransport(lose_the_first))
    job = client.train.negative("wrong")
    assert [one.id for one in client.train.list()] == [job.id]
    assert (len(keys), len(set(keys))) == (2, 1)
    assert client.train.negative("wrong").id != job.id


def test_the_same_key_with_another_body_is_refused_by_the_fake(fake):
    with fake.client()._http as http:

        def post(name):
            body = {"kind": "negative", "name": name}
            return http.post("http://fake/v1/train-jobs", json=body, headers={"Idempotency-Key": "k"})

        assert (post("a").status_code, post("a").headers["Idempotent-Replayed"]) == (202, "true")
        assert post("b").json()["code"] == "idempotency_key_reused"


@BOTH
@pytest.mark.parametrize(
    ("first", "breaks_by"),
    [
        ([event(1), event(2)], httpx.ReadError("gone")),
        ([event(1), event(2), event(3)[:40]], None),
        ([event(1), event(2)], httpx.ReadTimeout("silent")),
        ([event(1), event(2), DRAINING], None),
    ],
)
def test_events_go_on_after_the_last_one_where_the_connection_breaks(kind, first, breaks_by):
    flaky = Flaky()
    flaky.streams = [
        (first, breaks_by),
        (None, httpx.ConnectError("restarting")),
        ([event(3), flaky.done], None),
    ]
    assert flaky.heard_by(kind) == [1, 2, 3]
    assert flaky.asked == [None, "2", "2"]
    assert flaky.sleeps


@BOTH
def test_a_service_that_stays_away_is_given_up_in_the_end(kind):
    flaky = Flaky(([event(1)], None), (None, httpx.ConnectError("away")))
    with pytest.raises(ConnectionFailed):
        flaky.heard_by(kind)
    assert PATIENCE_SECONDS <= sum(flaky.sleeps) < 2 * PATIENCE_SECONDS


@BOTH
def test_without_retries_a_broken_stream_is_an_error(kind):
    flaky = Flaky(([event(1), DRAINING], None))
    with pytest.raises(Unavailable, match="going"):
        flaky.heard_by(kind, max_retries=0)


@BOTH
def test_what_waiting_does_not_cure_is_raised_at_once(kind):
    problem = {"title": "no", "status": 404, "detail": "no such job", "code": "job_not_found"}
    flaky = Flaky((httpx.Response(404, json=problem), None))
    with pytest.raises(NotFound):
        flaky.heard_by(kind)
    with pytest.raises(BadResponse, match="proxy"):
        Flaky((httpx.Response(200, text="<html>"), None)).heard_by(kind)
    assert flaky.sleeps == []


@BOTH
def test_events_of_a_kind_that_is_not_known_yet_are_skipped(kind):
    flaky = Flaky()
    flaky.streams = [([event(1), b"event: weather\ndata: rain\n\n", flaky.done], None)]
    assert flaky.heard_by(kind) == [1]


def test_waiting_ends_when_its_time_is_up_and_the_job_goes_on():
    flaky = Flaky(([event(1)], httpx.ReadTimeout("silent")))
    http = httpx.Client(transport=httpx.MockTransport(flaky.answer))
    client = flaky.timed(Darkroom("http://test", http_client=http))
    client._sleep = flaky.sleeps.append
    with pytest.raises(Timeout, match="did not end within 30 s"):
        client.train.wait(flaky.job, timeout_seconds=30)
    assert sum(flaky.sleeps) == pytest.approx(30)


def test_a_job_that_fails_says_why_and_can_be_retried(fake, client):
    fake.fail_next_job(detail="the loss of step 3 is not a number")
    job = client.train.negative("wrong")
    with pytest.raises(TrainFailed, match="the loss of step 3") as failed:
        client.train.wait(job)
    assert (failed.value.problem.code, failed.value.job.state) == ("training_diverged", "failed")
    assert [one.id for one in client.train.list(state="failed")] == [job.id]
    assert client.train.retry(job).state == "queued"
    done = client.train.wait(job)
    assert (done.lora, done.problem) == ("wrong@1", None)
    with pytest.raises(Conflict):
        client.train.retry(job)


def test_what_is_not_there_is_not_found(client, tmp_path):
    with pytest.raises(NotFound):
        client.train.get("train-9")
    job = client.train.negative("wrong")
    with pytest.raises(NotFound):
        client.train.artifact(job, "none.png")
    with pytest.raises(NotFound, match=r"it has .*loss\.png"):
        client.train.download(job, "none.png", tmp_path / "none")
    for name in ("../../loras", "", "a//b"):
        with pytest.raises(InvalidRequest):
            client.train.artifact(job, name)
    assert list(tmp_path.iterdir()) == []


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_line_on_a_terminal_shows_how_far_the_job_is(client, monkeypatch):
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "120")
    client.train.wait(client.train.negative("wrong", recipe={"max_train_steps": 10}))
    *lines, rest = terminal.getvalue().split("\r")[1:][-1].split("\n")
    assert lines == ["wrong  training  [########################]  10/10  loss 0.0100  10.00 it/s  0:00 left"]
    assert rest == ""
    monkeypatch.setenv("COLUMNS", "40")
    client.train.wait(client.train.negative("wrong"))
    assert max(map(len, re.split("[\r\n]", terminal.getvalue())[-3:])) == 39


@pytest.mark.parametrize(("stderr", "progress"), [(io.StringIO(), True), (Terminal(), False)])
def test_nobody_who_does_not_look_is_shown_anything(client, monkeypatch, stderr, progress):
    monkeypatch.setattr(sys, "stderr", stderr)
    client.train.wait(client.train.negative("wrong"), progress=progress)
    assert stderr.getvalue() == ""
