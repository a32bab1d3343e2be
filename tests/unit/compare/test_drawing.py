"""What is drawn of a comparison, and what becomes of pictures that cannot be made, measured or kept."""

import asyncio
import threading
from collections import Counter

import pytest
from structlog.testing import capture_logs

from darkroom.types import CompareCell
from drawing_desk import SECONDS, desk, draw
from lora_registry.errors import StorageFull
from service.compare import drawing
from service.compare.drawing import AT_ONCE, Drawing
from service.compare.planning import prepared
from service.errors import DeviceLent, EngineStopped, Overloaded, UnusableImage

HAND_OVERS = {"refiner.denoising_end": [0.25, 0.5, 0.75]}


@pytest.fixture
def room(migrated_work, data, models):
    with desk(migrated_work, data, models) as made:
        yield made


@pytest.fixture
def begun(room):
    """Begins a comparison: its claim, and the drawing of it."""

    def begin(**fields):
        room.create(**fields)
        claim = room.table.claim_next(holder="test", lease_seconds=60, model=room.engine.models.fingerprint)
        return claim, drawing_of(room, claim)

    return begin


def drawing_of(room, claim):
    return Drawing(claim, prepared(claim.comparison.cells, {}, room.engine.models), room.tools)


def cells(room, claim) -> list[CompareCell]:
    return room.table.get(claim.comparison.id).cells


async def until(condition):
    async with asyncio.timeout(SECONDS):
        while not condition():
            await asyncio.sleep(0)


def drawn_steps(room):
    """From where to where each order went."""
    return Counter(
        (work.order.start and work.order.start.step, work.order.until) for work in room.engine.works
    )


def test_each_cell_gets_its_picture_its_measurements_and_its_receipt(room, begun):
    claim, work = begun(arms=({"name": "plain"}, {"name": "calm", "set": {"guidance_scale": 3}}))
    asyncio.run(work.draw())
    for cell in cells(room, claim):
        assert (cell.state, cell.width, cell.height, cell.evaluations) == ("done", 64, 64, 4)
        assert cell.receipt.guidance_scale == cell.request.guidance_scale
        assert cell.measurements["sharpness"] > 0
        assert room.table.picture(claim.comparison.id, cell.index)[1].read().startswith(b"\x89PNG")


def test_cells_that_are_one_picture_cost_one_picture(room, begun):
    claim, work = begun(arms=({"name": "one"}, {"name": "other"}), seeds=(7,))
    asyncio.run(work.draw())
    one, other = cells(room, claim)
    assert len(room.engine.works) == 1
    assert (one.same_as, one.evaluations) == (None, 4)
    assert (other.same_as, other.evaluations, other.seconds) == (0, 0, 0.0)
    assert one.pixels_digest == other.pixels_digest


def test_what_arms_have_in_common_is_made_once_and_gone_on_from(room, begun):
    settings = {"num_inference_steps": 8, "refiner": {"enabled": True}}
    claim, work = begun(axes=HAND_OVERS, base=settings, seeds=(7,))
    asyncio.run(work.draw())
    # The last two part where the second of them is handed over.
    assert drawn_steps(room) == {(None, 2): 1, (2, 4): 1, (2, None): 1, (4, None): 2}
    assert {cell.state for cell in cells(room, claim)} == {"done"}


def test_a_stretch_that_fails_is_tried_by_each_of_its_cells_alone(room, begun):
    room.engine.answer = lambda work: (
        work.fail(UnusableImage("nan", seed=1))
        if work.order.until and work.order.seeds == (1,)
        else draw(work)
    )
    settings = {"num_inference_steps": 8, "refiner": {"enabled": True}}
    claim, work = begun(axes=HAND_OVERS, base=settings)
    asyncio.run(work.draw())
    assert {cell.state for cell in cells(room, claim)} == {"done"}
    alone = [work.order.until for work in room.engine.works if work.order.seeds == (1,)]
    assert alone == [2, None, None, None]


def test_what_fails_alone_too_takes_down_its_cell_and_no_other(room, begun):
    room.engine.answer = lambda work: (
        work.fail(UnusableImage("nan", seed=1)) if work.order.seeds == (1,) else draw(work)
    )
    settings = {"num_inference_steps": 8, "refiner": {"enabled": True}}
    claim, work = begun(axes=HAND_OVERS, base=settings)
    asyncio.run(work.draw())
    states = {(cell.seed, cell.state) for cell in cells(room, claim)}
    assert states == {(1, "failed"), (2, "done")}
    assert {cell.problem.code for cell in cells(room, claim) if cell.problem} == {"unusable_image"}
    assert room.table.get(claim.comparison.id).done == 6


def test_a_bug_in_one_cell_is_told_by_its_kind_and_is_not_the_others(room, begun):
    room.engine.answer = lambda work: (
        work.fail(ValueError("/secret")) if work.order.seeds == (1,) else draw(work)
    )
    claim, work = begun()
    with capture_logs() as logs:
        asyncio.run(work.draw())
    failed, done = cells(room, claim)
    assert (failed.state, done.state) == ("failed", "done")
    assert failed.problem.detail == "the picture could not be made (ValueError)"
    assert [str(line["exc_info"]) for line in logs if line["log_level"] == "error"] == ["/secret"]


@pytest.mark.parametrize(
    "error", [Overloaded(backlog_seconds=9, limit_seconds=1, retry_after_seconds=1), DeviceLent(3)]
)
def test_a_busy_service_is_waited_out(room, begun, monkeypatch, error):
    monkeypatch.setattr(drawing, "BUSY_SECONDS", 0)
    refusals = [error] * 3
    room.engine.answer = lambda work: work.fail(refusals.pop()) if refusals else draw(work)
    claim, work = begun(seeds=(7,))
    asyncio.run(work.draw())
    assert [cell.state for cell in cells(room, claim)] == ["done"]
    assert len(room.engine.works) == 4


def test_an_engine_that_stops_is_no_cells_failure(room, begun):
    room.engine.answer = lambda work: work.fail(EngineStopped("gone"))
    claim, work = begun()
    with pytest.raises(EngineStopped):
        asyncio.run(work.draw())
    assert {cell.state for cell in cells(room, claim)} == {"waiting"}


def test_a_few_are_in_the_engines_hands_and_given_back_where_it_ends(room, begun):
    room.engine.answer = lambda _work: None

    async def story(work):
        drawing = asyncio.create_task(work.draw())
        await until(lambda: len(room.engine.works) >= AT_ONCE)
        for _ in range(50):
            await asyncio.sleep(0)
        drawing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await drawing

    _, work = begun(seeds={"count": 8})
    asyncio.run(story(work))
    assert [work.cancelled for work in room.engine.works] == [True] * AT_ONCE
    assert room.runs.backlog_seconds == 0


def test_what_is_drawn_is_not_drawn_again_and_what_failed_is(room, begun):
    room.engine.answer = lambda work: (
        work.fail(UnusableImage("black", seed=1)) if work.order.seeds == (1,) else draw(work)
    )
    claim, work = begun(seeds=(1, 2, 3))
    asyncio.run(work.draw())
    claim.release()
    room.engine.answer, room.engine.works = draw, []
    again = room.table.claim_next(holder="next", lease_seconds=60, model=room.engine.models.fingerprint)
    asyncio.run(drawing_of(room, again).draw())
    assert [work.order.seeds for work in room.engine.works] == [(1,)]
    assert [(cell.state, cell.problem) for cell in cells(room, claim)] == [("done", None)] * 3
    assert room.table.get(claim.comparison.id).done == 3


def test_a_picture_without_its_score_is_drawn_again_after_a_restart(room, begun):
    room.engine.answer = lambda work: work.fail(SystemError()) if work.order.question else draw(work)
    claim, work = begun(seeds=(1,), adherence=True)
    asyncio.run(work.draw())
    (cell,) = cells(room, claim)
    assert cell.state == "done"
    assert "prompt_adherence" not in cell.measurements
    claim.release()
    room.engine.answer = draw
    again = room.table.claim_next(holder="next", lease_seconds=60, model=room.engine.models.fingerprint)
    asyncio.run(drawing_of(room, again).draw())
    assert cells(room, claim)[0].measurements["prompt_adherence"] == 0.25


def test_a_scorer_that_breaks_leaves_its_measurement_out(room, begun):
    def broken(_pixels, _prompt):
        raise RuntimeError("no weights")

    room.tools = drawing.Tools(
        room.engine,
        room.runs,
        room.adapters,
        room.tools.threads,
        {},
        (broken, lambda _pixels, prompt: {"clip_score": float(len(prompt))}),
    )
    claim, work = begun(seeds=(1,))
    asyncio.run(work.draw())
    (cell,) = cells(room, claim)
    assert cell.measurements["clip_score"] == len("a red circle")
    assert cell.measurements["contrast"] > 0


def test_no_picture_that_could_not_be_kept_is_overlooked(room, begun):
    """The sixth waits for room among those that are being kept, beside the seventh, and then cannot be kept."""
    claim, work = begun(seeds={"count": 12})
    keep, gate = claim.keep, threading.Semaphore(0)

    def slow(cell, *files):
        gate.acquire()
        if cell.index == 5:
            raise StorageFull
        keep(cell, *files)

    claim.keep = slow

    async def story():
        drawing = asyncio.create_task(work.draw())
        await until(lambda: len(room.engine.works) >= 7)
        for _ in range(200):
            await asyncio.sleep(0)
        gate.release()
        await until(lambda: len(room.engine.works) >= 8 or drawing.done())
        gate.release(20)
        await drawing

    with pytest.raises(StorageFull):
        asyncio.run(story())


def test_distances_are_to_the_baselines_picture_of_the_same_prompt_and_seed(room, begun):
    arms = (
        {"name": "plain"},
        {"name": "calm", "set": {"guidance_scale": 3}},
        {"name": "wide", "set": {"width": 96}},
    )
    claim, work = begun(arms=arms, seeds=(1,))
    asyncio.run(work.draw())
    asyncio.run(work.measure())
    plain, calm, wide = cells(room, claim)
    assert "ssim" not in plain.measurements
    assert calm.measurements["ssim"] == pytest.approx(1)  # the stand-in draws the same for a seed
    assert not {"ssim", "psnr", "perceptual_distance"} & wide.measurements.keys()
    assert list(work.differences) == [calm.index]
