"""A picture in the making, seen by the real client over a real socket."""

import io
import signal
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image

from darkroom import (
    Accepted,
    Darkroom,
    DeadlineExceeded,
    Generation,
    InvalidRequest,
    Progress,
    Unavailable,
)
from processes import STOP_SECONDS, Served, serving, until, wait_until_ready

pytestmark = pytest.mark.e2e

ORDER = {"seed": 1, "width": 64, "height": 64, "num_inference_steps": 12}
LONG = ORDER | {
    "width": 128,
    "height": 128,
    "num_inference_steps": 100,
    "num_images": 8,
    "timeout_seconds": 600,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as running:
        wait_until_ready(running)
        yield running


@pytest.fixture
def client(served) -> Iterator[Darkroom]:
    with Darkroom(served.url, max_retries=0) as client:
        yield client


def test_steps_are_counted_and_previews_are_pictures(client):
    accepted, *steps, generation = client.stream("a red circle", previews=True, **ORDER)
    assert isinstance(accepted, Accepted)
    assert isinstance(generation, Generation)
    assert generation.id == accepted.id
    assert all(isinstance(step, Progress) and step.steps == 12 for step in steps)
    counted = [step.step for step in steps]
    assert counted == sorted(set(counted))  # a busy machine may miss some, never the last
    assert counted[-1] == 12
    previews = [step.preview for step in steps if step.preview is not None]
    assert len(previews) == len(steps) - 1 > 0
    for preview in previews:
        picture = Image.open(io.BytesIO(preview.data))
        assert (picture.format, picture.size) == ("PNG", (16, 16))
    assert generation.image.data == client.generate("a red circle", **ORDER).image.data


def test_steps_are_told_while_the_work_goes_on(served, client):
    with client.stream("a red circle", **LONG) as events:
        assert isinstance(next(events), Accepted)
        assert isinstance(next(events), Progress)
        assert served.working()


def test_leaving_early_frees_the_engine(served, client):
    gone = 'darkroom_cancelled_total{reason="disconnected"}'
    before = served.metric(gone)
    with client.stream("a red circle", **LONG) as events:
        for event in events:
            if isinstance(event, Progress):
                break
    until(lambda: served.metric(gone) == before + 1, 30, "the cancellation")
    until(lambda: not served.working(), 30, "the work's end")
    assert "Traceback" not in served.log.read_text()
    assert client.generate("a red circle", **ORDER).image.seed == 1


def test_a_deadline_ends_the_stream_with_its_error(served, client):
    late = 'darkroom_cancelled_total{reason="deadline"}'
    before = served.metric(late)
    order = ORDER | {"num_inference_steps": 50}
    with client.stream("a red circle", **LONG) as other:
        next(other)
        # It would be done in time, were it alone.
        patience_seconds = 2 * next(client.stream("a fox", **order)).estimated_seconds
        seen = []
        with pytest.raises(DeadlineExceeded) as caught:
            seen.extend(client.stream("a fox", **order, timeout_seconds=patience_seconds))
    assert caught.value.code == "deadline_exceeded"
    assert caught.value.problem.instance == "/v1/generate"
    assert isinstance(seen[0], Accepted)
    assert served.metric(late) == before + 1


def test_previews_without_a_stream_are_refused_at_both_doors(served):
    for path in ("/v1/generate", "/generate"):
        reply = served.http.post(path, json={"prompt": "a fox", "previews": True})
        assert (reply.status_code, reply.json()["code"]) == (422, "invalid_option")
        assert reply.json()["errors"][0]["pointer"] == "/previews"


def test_what_is_not_accepted_is_an_ordinary_problem(client, served):
    with pytest.raises(InvalidRequest) as caught:
        next(client.stream("((a fox"))
    assert caught.value.code == "invalid_prompt"
    reply = served.http.post("/v1/generate", json={}, headers={"Accept": "text/event-stream"})
    assert (reply.status_code, reply.headers["content-type"]) == (422, "application/problem+json")


def test_sigterm_while_streaming_ends_the_stream_and_the_process_well(tmp_path):
    with serving(tmp_path, drain_seconds="0") as served:
        wait_until_ready(served)
        with Darkroom(served.url) as client, client.stream("a red circle", **LONG) as events:
            assert isinstance(next(events), Accepted)
            served.process.send_signal(signal.SIGTERM)
            with pytest.raises(Unavailable) as caught:
                list(events)
        assert caught.value.code == "shutdown"
        assert served.process.wait(STOP_SECONDS) == 0
        with pytest.raises(httpx.TransportError):
            served.http.get("/readyz")
