"""Who draws comparisons: one after another, given back where it must be, ended where it cannot go on."""

import asyncio
import threading
import time

import pytest
from structlog.testing import capture_logs

from drawing_desk import SECONDS, desk, draw
from lora_registry.errors import CatalogUnavailable
from service.compare import drawing, runner
from service.compare.table import ComparisonTable
from service.errors import Draining, EngineStopped, ModelLoading, UnusableImage, WeightsDamaged

TWO_ARMS = ({"name": "plain"}, {"name": "calm", "set": {"guidance_scale": 3}})


@pytest.fixture
def room(migrated_work, data, models):
    with desk(migrated_work, data, models) as made:
        yield made


@pytest.fixture
def start(room):
    """Starts a runner, which is stopped at the end of the test."""
    started = []

    def begin(**options):
        started.append(made := room.runner(**options))
        made.start()
        return made

    yield begin
    for made in started:
        made.close()


@pytest.fixture
def held(room):
    """Keeps orders in the engine's hands until the test answers them."""
    room.engine.answer = lambda _work: None
    return room.engine.works


def until(condition):
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.002)


def events(room, id):
    return [(event.type, event.state or event.stage or event.cell) for event in room.table.events(id)]


def test_a_comparison_goes_from_the_queue_to_its_end_and_tells_of_it(room, start):
    start()
    id = room.create(arms=TWO_ARMS, seeds=(7,))
    made = room.waited_for(id)
    assert (made.state, made.stage, made.done, made.attempts) == ("succeeded", "done", 2, 1)
    told = events(room, id)
    assert [kind for kind, _ in told] == [
        "state",
        "state",
        "stage",
        "cell",
        "cell",
        "stage",
        "stage",
        "state",
    ]
    assert sorted(cell for kind, cell in told if kind == "cell") == [0, 1]
    until(lambda: room.ended)
    assert [end.id for end in room.ended] == [id]
    names = {file.name for file in made.files}
    assert names == {"sheet.png", "report.html", "report.md", "comparison.json", "differences/1.webp"}


def test_one_waits_until_the_one_before_it_has_ended(room, start, held):
    first, second = room.create(), room.create()
    start()
    until(lambda: len(held) == 2)
    assert room.table.get(second).state == "queued"
    room.engine.answer = draw
    for work in list(held):
        draw(work)
    ends = [room.waited_for(id) for id in (first, second)]
    assert [end.state for end in ends] == ["succeeded"] * 2
    assert ends[0].finished_at <= ends[1].started_at


@pytest.mark.parametrize(
    "error",
    [EngineStopped("gone"), Draining(), ModelLoading(retry_after_seconds=1), WeightsDamaged("a bit flipped")],
    ids=lambda error: type(error).__name__,
)
def test_what_is_everybodys_trouble_is_waited_out_and_fails_no_cell(room, start, error):
    troubles = [error]
    room.engine.answer = lambda work: work.fail(troubles.pop()) if troubles else draw(work)
    start()
    made = room.waited_for(room.create())
    assert (made.state, made.attempts) == ("succeeded", 2)
    assert {cell.state for cell in made.cells} == {"done"}
    states = [event.state for event in room.table.events(made.id) if event.type == "state"]
    assert states == ["queued", "running", "queued", "running", "succeeded"]


def test_nothing_is_begun_while_there_is_no_model_or_no_database(room, start):
    troubles = [ModelLoading(retry_after_seconds=1), CatalogUnavailable("away")]
    id = room.create()

    def tools():
        if troubles:
            raise troubles.pop()
        return room.tools

    start(tools=tools)
    assert (room.waited_for(id).state, room.table.get(id).attempts) == ("succeeded", 1)


def test_one_that_another_process_took_over_is_left_to_it(room, start, held):
    id = room.create()
    start()
    until(lambda: len(held) == 2)
    later = ComparisonTable(room.table._database, room.table._files, clock=lambda: time.time() + 3600)
    with capture_logs() as logs:
        taken = later.claim_next(holder="other", lease_seconds=7200, model=room.engine.models.fingerprint)
        until(lambda: all(work.cancelled for work in held))
        until(lambda: any(line["event"] == "comparison was taken over" for line in logs))
    assert (taken.comparison.id, room.table.get(id).state) == (id, "running")
    assert room.ended == []
    taken.renew()  # which would raise, were it not the other's


def test_a_bug_ends_the_comparison_and_not_the_runner(room, start, monkeypatch):
    def broken(_comparison, **_more):
        raise ValueError("/secret")

    with monkeypatch.context() as patched, capture_logs() as logs:
        patched.setattr(runner, "found", broken)
        start()
        made = room.waited_for(room.create())
        until(lambda: room.ended)
    assert (made.state, made.problem.code, made.problem.status) == ("failed", "internal", 500)
    assert "log has the cause" in made.problem.detail
    assert [str(line["exc_info"]) for line in logs if line["log_level"] == "error"] == ["/secret"]
    assert room.waited_for(room.create()).state == "succeeded"
    until(lambda: len(room.ended) == 2)
    assert [end.state for end in room.ended] == ["failed", "succeeded"]


@pytest.mark.parametrize("where", ["tools", "clean_up"])
def test_a_bug_between_comparisons_does_not_end_the_runner(room, start, monkeypatch, where):
    monkeypatch.setattr(runner, "CLEAN_SECONDS", 0)
    bugs = [ValueError("a bug")]

    def buggy():
        if bugs:
            raise bugs.pop()
        return room.tools

    with capture_logs() as logs:
        start(**{where: buggy})
        until(lambda: not bugs)
        assert room.waited_for(room.create()).state == "succeeded"
    assert [str(line["exc_info"]) for line in logs if line["log_level"] == "error"] == ["a bug"]


def test_where_no_cell_could_be_drawn_the_comparison_has_failed_and_says_why(room, start):
    room.engine.answer = lambda work: work.fail(UnusableImage("black", seed=work.order.seeds[0]))
    start()
    made = room.waited_for(room.create())
    assert (made.state, made.problem.code) == ("failed", "unusable_image")
    assert (
        made.problem.detail
        == "no cell could be drawn; the first one: the image of seed 1 is unusable: it is black"
    )


def test_cancelled_while_it_is_drawn_it_ends_at_once_with_what_there_is(room, start):
    room.engine.answer = lambda work: draw(work) if work.order.seeds == (1,) else None
    working = start(heartbeat_seconds=SECONDS)
    id = room.create(seeds=(1, 2, 3))
    room.waited_for(id, lambda run: run.done == 1 and len(room.engine.works) == 3)
    room.table.cancel(id)
    working.cancel(id)
    made = room.waited_for(id)
    assert (made.state, made.stage, made.done) == ("cancelled", "drawing", 1)
    assert [cell.state for cell in made.cells] == ["done", "waiting", "waiting"]
    assert "sheet.png" in {file.name for file in made.files}
    assert all(work.cancelled for work in room.engine.works)


def test_cancelled_while_it_is_measured_it_keeps_its_pictures(room, start, monkeypatch):
    measuring, go_on = threading.Event(), threading.Event()
    distances, held = drawing.distances, [True, True]

    def slow(*pictures):
        if held:
            held.pop()
            measuring.set()
            go_on.wait(SECONDS)
        return distances(*pictures)

    monkeypatch.setattr(drawing, "distances", slow)
    working = start(heartbeat_seconds=SECONDS)
    id = room.create(arms=TWO_ARMS)
    assert measuring.wait(SECONDS)
    until(lambda: not held)
    room.table.cancel(id)
    working.cancel(id)
    made = room.waited_for(id)
    go_on.set()
    assert (made.state, made.stage, made.done) == ("cancelled", "measuring", 4)
    assert {cell.state for cell in made.cells} == {"done"}
    assert any("cancelled after 4 of 4 cells" in warning for warning in made.warnings)


def test_a_cancel_that_another_replica_was_asked_for_is_seen_with_the_next_heartbeat(room, start, held):
    start()
    id = room.create()
    until(lambda: len(held) == 2)
    asyncio.run(room.comparisons.cancel(id))
    made = room.waited_for(id)
    assert (made.state, made.problem, made.files) == ("cancelled", None, [])


def test_draining_lets_go_of_what_is_drawn_and_keeps_its_cells(room, start):
    room.engine.answer = lambda work: draw(work) if work.order.seeds == (1,) else None
    leaving = start()
    id = room.create(seeds=(1, 2, 3))
    room.waited_for(id, lambda run: run.done == 1 and len(room.engine.works) == 3)
    leaving.drain()
    left = room.waited_for(id, lambda run: run.state == "queued")
    assert (left.stage, left.done) == ("waiting", 1)
    room.engine.answer = draw
    leaving.wake()
    leaving.close()
    assert room.table.get(id).state == "queued"
    drawn_before = len(room.engine.works)
    start()
    made = room.waited_for(id)
    assert (made.state, made.attempts, made.done) == ("succeeded", 2, 3)
    assert len(room.engine.works) - drawn_before == 2


def test_one_whose_end_was_asked_for_while_its_process_leaves_is_cancelled(room, start, held):
    leaving = start(heartbeat_seconds=SECONDS)
    id = room.create()
    until(lambda: len(held) == 2)
    room.table.cancel(id)
    leaving.close()
    assert room.table.get(id).state == "cancelled"


def test_it_can_be_closed_before_it_was_started_and_twice(room, start):
    unused = room.runner()
    unused.close()
    used = start()
    used.close()
    used.close()
    used.wake()


def test_what_is_kept_no_longer_is_cleaned_up_now_and_then(room, start, monkeypatch):
    monkeypatch.setattr(runner, "CLEAN_SECONDS", 0)
    cleaned = []

    def clean_up():
        cleaned.append(True)
        raise CatalogUnavailable("away")

    start(clean_up=clean_up)
    until(lambda: len(cleaned) > 2)
    assert room.waited_for(room.create()).state == "succeeded"


def test_it_is_not_cleaned_up_each_time_that_there_is_nothing_to_do(room, start):
    cleaned, looks = [], []
    start(clean_up=lambda: cleaned.append(True), tools=lambda: looks.append(True) or room.tools)
    until(lambda: len(looks) > 5)
    assert cleaned == []
