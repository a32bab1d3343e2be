"""Comparisons on real servers: killed, told to leave, started again, and two of them over one store."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import pytest

import processes
import servers
from darkroom import Darkroom, InvalidRequest
from darkroom._comparison_result import ComparisonResult
from darkroom.types import CompareEvent, CompareRequest, Comparison
from in_process import pixels
from processes import STOP_SECONDS, Served, free_port, serving, until, wait_until_ready

pytestmark = pytest.mark.e2e

SECONDS = 180.0
ARMS = [{"name": "plain"}, {"name": "calm", "set": {"guidance_scale": 3}}]
REQUEST = CompareRequest.model_validate(
    {
        "prompts": ["a big red circle on a blue background", "a small green star on a white background"],
        "seeds": {"count": 8},
        "base": {"num_inference_steps": 20},
        "arms": ARMS,
        "metric": "contrast",
    }
)
QUICK = REQUEST.model_copy(update={"base": REQUEST.base.model_copy(update={"num_inference_steps": 4})})


@contextlib.contextmanager
def server(folder: Path, data: Path, **settings: str) -> Iterator[tuple[Served, Darkroom]]:
    """A server that is ready, and a client of it."""
    folder.mkdir()
    with (
        serving(folder, data=str(data), training="off", **settings) as served,
        Darkroom(served.url, timeout=SECONDS) as client,
    ):
        wait_until_ready(served)
        yield served, client


def drawn_so_far(client: Darkroom, run: Comparison, cells: int) -> Comparison:
    """The comparison, once so many of its cells are done and it is still at work."""
    until(lambda: client.comparisons.get(run).done >= cells, SECONDS, f"{cells} cells")
    found = client.comparisons.get(run)
    assert found.state == "running", f"{found.state}: this machine is too fast for the test, or too slow"
    return found


def digests(run: Comparison) -> dict[int, str]:
    return {cell.index: cell.pixels_digest for cell in run.cells if cell.state == "done"}


def waited_for(client: Darkroom, run: Comparison) -> ComparisonResult:
    return client.comparisons.wait(run, on_event=False, timeout_seconds=SECONDS)


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[int, str]:
    """What the comparison comes to where nothing disturbs it."""
    folder = tmp_path_factory.mktemp("undisturbed")
    with server(folder / "log", folder / "data") as (_, client):
        return digests(waited_for(client, client.comparisons.create(REQUEST)).comparison)


@pytest.mark.slow
def test_events_come_while_it_is_drawn_and_the_native_door_begins_the_same(tmp_path):
    with server(tmp_path / "log", tmp_path / "data") as (served, client):
        seen: list[tuple[CompareEvent, int]] = []

        def hear(event: CompareEvent) -> None:
            seen.append((event, client.comparisons.get(run).done))

        run = client.comparisons.create(QUICK)
        found = client.comparisons.wait(run, on_event=hear, timeout_seconds=SECONDS)
        assert found.state == "succeeded"
        # When the first cell is told of, most of the others are still to come.
        first = next(known for event, known in seen if event.type == "cell")
        assert first < found.plan.cells
        with bentoml.SyncHTTPClient(served.url) as native:
            body = QUICK.model_dump(mode="json", exclude_unset=True)
            begun = native.compare(body)
        assert begun["state"] == "queued"
        assert digests(waited_for(client, client.comparisons.get(begun["id"])).comparison) == digests(
            found.comparison
        )
        problem = served.http.post("/compare", json=body | {"dry_run": True}).json()
        assert (problem["status"], problem["errors"][0]["pointer"]) == (422, "/dry_run")
        with pytest.raises(InvalidRequest, match="no LoRA is called 'none'"):
            client.compare("a fox", preset="article", lora="none")


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_by_itself_with_the_next_start(tmp_path, expected):
    with server(tmp_path / "first", tmp_path / "data") as (served, client):
        run = client.comparisons.create(REQUEST)
        before = drawn_so_far(client, run, 4)
        served.kill()
    with server(tmp_path / "second", tmp_path / "data") as (served, client):
        # Nobody asks for it: the log alone says that it is drawn on.
        until(lambda: f"comparison={run.id} " in _ended(served), SECONDS, "the comparison's end")
        after = client.comparisons.get(run)
        assert (after.state, after.attempts) == ("succeeded", 2)
        assert digests(after) == expected
        assert digests(before).items() <= digests(after).items()
        kept = {cell.index: cell.receipt for cell in before.cells if cell.state == "done"}
        assert {index: after.cells[index].receipt for index in kept} == kept
        events = list(client.comparisons.events(run))
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        told = [event.cell for event in events if event.type == "cell"]
        assert sorted(told) == list(range(len(after.cells)))
        result = client.comparisons.result(run)
        cell = result["calm", REQUEST.prompts[1], after.plan.seeds[-1]]
        alone = client.generate_request(cell.request).image
        assert np.array_equal(pixels(cell.image.data), pixels(alone.data))
        assert result.sheet().data.startswith(b"\x89PNG")


def _ended(served: Served) -> str:
    lines = served.log.read_text().splitlines()
    return " ".join(f"{line} " for line in lines if "comparison ended" in line)


@pytest.mark.slow
def test_told_to_leave_it_goes_back_to_the_queue_and_the_next_start_finishes_it(tmp_path, expected):
    with server(tmp_path / "first", tmp_path / "data", drain_seconds="20") as (served, client):
        run = client.comparisons.create(REQUEST)
        before = drawn_so_far(client, run, 4)
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(STOP_SECONDS) == 0
    with server(tmp_path / "second", tmp_path / "data", compare_max_cells="1") as (served, client):
        found = waited_for(client, run).comparison
        assert (found.state, found.attempts) == ("succeeded", 2)
        states = [event.state for event in client.comparisons.events(run) if event.type == "state"]
        assert states == ["queued", "running", "queued", "running", "succeeded"]
        assert digests(before).items() <= digests(found).items()
        assert digests(found) == expected


@pytest.mark.slow
def test_who_waits_outlives_a_restart_of_the_service(tmp_path, expected, monkeypatch):
    port = free_port()
    monkeypatch.setattr(processes, "free_port", lambda: port)
    found: list[ComparisonResult] = []
    heard: list[int] = []

    def wait() -> None:
        with Darkroom(f"http://127.0.0.1:{port}") as client:
            found.append(
                client.comparisons.wait(
                    run, on_event=lambda event: heard.append(event.id), timeout_seconds=SECONDS
                )
            )

    with server(tmp_path / "first", tmp_path / "data") as (served, client):
        run = client.comparisons.create(REQUEST)
        waiting = threading.Thread(target=wait)
        waiting.start()
        drawn_so_far(client, run, 4)
        served.kill()
    with server(tmp_path / "second", tmp_path / "data"):
        waiting.join(SECONDS)
    (result,) = found
    assert digests(result.comparison) == expected
    assert heard == list(range(1, len(heard) + 1))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_two_servers_over_one_store_draw_a_comparison_once_and_both_tell_of_it(tmp_path, kind, expected):
    with contextlib.ExitStack() as stack:
        settings: dict[str, Any] = {}
        if kind == "postgresql":
            database = stack.enter_context(servers.postgres())
            database.start()
            settings["database"] = database.url("postgres")
        one, other = (
            stack.enter_context(server(tmp_path / name, tmp_path / "data", **settings))
            for name in ("one", "other")
        )
        clients = one[1], other[1]
        run = clients[0].comparisons.create(REQUEST)
        second = clients[1].comparisons.create(QUICK)
        ends = [waited_for(client, run).comparison for client in clients]
        assert ends[0] == ends[1]
        assert (ends[0].attempts, digests(ends[0])) == (1, expected)
        assert {waited_for(client, second).comparison.attempts for client in clients} == {1}
        told = [list(client.comparisons.events(run)) for client in clients]
        assert told[0] == told[1]
        cells = [event.cell for event in told[0] if event.type == "cell"]
        assert sorted(cells) == list(range(len(ends[0].cells)))
        began = "".join(served.log.read_text() for served, _ in (one, other))
        assert (
            sum(f"comparison={run.id}" in line for line in began.splitlines() if "comparison began" in line)
            == 1
        )
        pictures = [client.comparisons.image(run, 3).data for client in clients]
        assert pictures[0] == pictures[1]
