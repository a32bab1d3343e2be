"""The use case of comparisons: what is refused before there is one, and what is told of one."""

import asyncio
from datetime import UTC, datetime

import pytest

from darkroom.types import CompareEvent, Comparison
from drawing_desk import desk
from lora_registry import LoraVersion
from service.compare.errors import ComparisonNotFound
from service.errors import (
    CompareTooLarge,
    Draining,
    InvalidOption,
    InvalidPrompt,
    ModelLoading,
    TooManyReaders,
    UnknownLora,
)
from service.store.errors import KeyReused
from work_store import clock, data, migrated_work  # noqa: F401

TOO_MANY_SEEDS = {"count": 101}
INK = {"ref": "ink"}


def version(name: str, number: int = 1, *algorithms: str) -> LoraVersion:
    return LoraVersion(
        name=name,
        number=number,
        digest=f"sha256:{number:064}",
        size_bytes=1,
        auto_v2="",
        auto_v3="",
        kind="lora",
        format="diffusers-peft",
        family="pocket SDXL",
        components=("unet",),
        algorithms=algorithms or ("lora",),
        ranks=(),
        tokens=(),
        triggers=(),
        tags=(),
        description="",
        metadata={},
        warnings=(),
        created_at=datetime(2024, 1, 1, tzinfo=UTC),
    )


@pytest.fixture
def room(migrated_work, data, models):  # noqa: F811
    with desk(migrated_work, data, models) as made:
        made.adapters.versions["ink"] = version("ink", 3)
        yield made


def plan(room, **fields):
    return asyncio.run(room.comparisons.plan(room.order(**fields)))


def listed(room):
    return [run.id for run in asyncio.run(room.comparisons.list()).items]


def test_a_plan_begins_nothing(room):
    found = plan(room, arms=({"name": "plain"}, {"name": "ink", "set": {"loras": [INK]}}), dry_run=True)
    assert (found.cells, found.pictures, found.fits, found.baseline) == (4, 4, True, "plain")
    assert found.evaluations.planned == found.evaluations.naive == 4 * 2 * 2
    assert listed(room) == []
    assert room.woken == 0


def test_a_comparison_waits_for_whoever_draws_who_is_told_of_it(room):
    id = room.create()
    assert listed(room) == [id]
    assert room.woken == 1
    assert room.table.get(id).state == "queued"


def test_refs_are_what_they_meant_when_it_was_made(room):
    id = room.create(arms=({"name": "ink", "set": {"loras": [INK]}},), seeds=(7,))
    room.adapters.versions["ink"] = version("ink", 4)
    made = room.table.get(id)
    assert made.request.arms[0].set.loras[0].ref == "ink"
    assert made.plan.arms[0].settings.loras[0].ref == made.cells[0].request.loras[0].ref == "ink@3"


def test_the_same_key_and_body_are_the_same_comparison(room):
    order = room.order()
    made, replayed = asyncio.run(room.comparisons.create(order, key="mine"))
    again = asyncio.run(room.comparisons.create(order, key="mine"))
    assert (replayed, again) == (False, (made, True))
    assert room.woken == 1
    with pytest.raises(KeyReused, match="mine"):
        asyncio.run(room.comparisons.create(room.order(seeds=(9,)), key="mine"))


def test_a_key_finds_its_comparison_when_its_lora_is_gone_and_no_model_is_there(room, monkeypatch):
    order = room.order(arms=({"name": "ink", "set": {"loras": [INK]}},))
    made, _ = asyncio.run(room.comparisons.create(order, key="mine"))

    def loading():
        raise ModelLoading(retry_after_seconds=5)

    monkeypatch.setattr(room.comparisons, "_engine", loading)
    room.adapters.versions.clear()
    assert asyncio.run(room.comparisons.create(order, key="mine")) == (made, True)
    with pytest.raises(ModelLoading):
        asyncio.run(room.comparisons.create(order, key="other"))


def test_more_cells_than_are_allowed_are_refused_before_they_are_counted_out(room):
    with pytest.raises(
        CompareTooLarge, match=r"101 cells \(1 arms, 1 prompts, 101 seeds\) and 100 are allowed"
    ):
        room.create(seeds=TOO_MANY_SEEDS)
    assert listed(room) == []


def test_somewhat_too_many_cells_are_planned_all_the_same_and_far_too_many_are_not(room):
    assert plan(room, seeds=TOO_MANY_SEEDS, dry_run=True).fits is False
    arms = tuple({"name": str(place)} for place in range(11))
    with pytest.raises(CompareTooLarge, match="1111 cells"):
        plan(room, seeds=TOO_MANY_SEEDS, arms=arms, dry_run=True)


def test_what_takes_too_long_is_refused_with_what_it_costs(room):
    room.engine.learnt.learn("base", 64 * 64, 10.0)
    with pytest.raises(
        CompareTooLarge, match=r"8 UNet evaluations and about 80 s of the device.* 60 s are allowed"
    ):
        room.create()
    assert plan(room, dry_run=True).estimated_seconds == pytest.approx(80)


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("clip_score", "DARKROOM_CLIP"),
        ("prompt_adherence", "set `adherence` to true"),
        ("pocket_accuracy", "the pocket model's own prompts"),
    ],
)
def test_a_metric_that_is_not_measured_cannot_decide(room, metric, hint):
    with pytest.raises(InvalidOption, match=hint) as refused:
        room.create(metric=metric)
    assert refused.value.pointer == "/metric"
    room.scored = ["pocket_accuracy", "clip_score"]
    room.create(metric=metric, adherence=True)


def test_the_plan_names_what_will_be_measured(room):
    room.scored = ["clip_score"]
    told = plan(room, adherence=True).metrics
    assert {"sharpness", "clip_score", "prompt_adherence", "ssim"} < set(told)
    assert "pocket_accuracy" not in told


def test_a_dora_is_compared_without_a_sham_as_it_has_none(room):
    room.adapters.versions["weighty"] = version("weighty", 1, "dora")
    names = {
        ref: [arm.name for arm in plan(room, preset="controlled", lora={"ref": ref}).arms]
        for ref in ("ink", "weighty")
    }
    assert "sham LoRA + word" in names["ink"]
    assert names["weighty"] == [name for name in names["ink"] if "sham" not in name]


@pytest.mark.parametrize(
    ("fields", "error", "pointer"),
    [
        (
            {"arms": [{"name": "a", "set": {"loras": [INK, {"ref": "x"}]}}]},
            UnknownLora,
            "/arms/0/set/loras/1/ref",
        ),
        ({"base": {"loras": [{"ref": "x"}]}}, UnknownLora, "/base/loras/0/ref"),
        ({"preset": "article", "lora": {"ref": "x"}}, UnknownLora, "/lora/ref"),
        (
            {"preset": "article", "lora": INK, "base": {"loras": [{"ref": "x"}]}},
            UnknownLora,
            "/base/loras/0/ref",
        ),
        ({"axes": {"loras": [[], "x"]}}, UnknownLora, "/axes/loras/1"),
        ({"preset": "article", "lora": INK, "word": "(x"}, InvalidPrompt, "/word"),
        ({"preset": "controlled", "lora": INK, "placebo": "(x"}, InvalidPrompt, "/placebo"),
        (
            {"preset": "article", "lora": INK, "base": {"negative_prompt": "(x"}},
            InvalidPrompt,
            "/base/negative_prompt",
        ),
        ({"axes": {"negative_prompt": ["x", "(x"]}}, InvalidPrompt, "/axes/negative_prompt/1"),
        (
            {"axes": {"guidance_scale": [5]}, "base": {"negative_prompt": "(x"}},
            InvalidPrompt,
            "/base/negative_prompt",
        ),
        (
            {"axes": {"num_inference_steps": [4, 80]}, "base": {"scheduler": "lcm"}},
            InvalidOption,
            "/axes/num_inference_steps/1",
        ),
        (
            {"preset": "article", "lora": INK, "base": {"loras": [{"ref": f"l{i}"} for i in range(8)]}},
            InvalidOption,
            "/base/loras",
        ),
        ({"axes": {"scheduler": ["ddim", "ddim"]}}, InvalidOption, "/axes"),
        ({"axes": {"refiner.denoise_end": [0.5]}}, InvalidOption, "/axes/refiner.denoise_end/0"),
        (
            {"arms": [{"name": str(place)} for place in range(64)], "preset": "article", "lora": INK},
            InvalidOption,
            "/arms",
        ),
    ],
)
def test_a_fault_is_told_where_the_request_has_it(room, fields, error, pointer):
    with pytest.raises(error) as refused:
        plan(room, **fields)
    found = refused.value
    assert (f"/{found.field}" if isinstance(found, InvalidPrompt) else found.pointer) == pointer


def test_events_are_told_up_to_the_end_and_then_the_comparison(room):
    id = room.create()
    runner = room.runner()

    async def story():
        told = [one async for one in room.comparisons.events(id)]
        later = [one async for one in room.comparisons.events(id, after=told[-2].id)]
        return told, later

    runner.start()
    told, later = asyncio.run(story())
    runner.close()
    assert [event.id for event in told[:-1]] == list(range(1, len(told)))
    assert all(isinstance(event, CompareEvent) for event in told[:-1])
    assert told[-1] == room.table.get(id)
    assert later == told[-1:]


def test_readers_are_bounded_and_make_room_when_they_leave(room, monkeypatch):
    monkeypatch.setattr("service.following.MAX_READERS", 1)
    id = room.create()

    async def story():
        first = room.comparisons.events(id)
        await anext(first)
        with pytest.raises(TooManyReaders):
            await anext(room.comparisons.events(id))
        await first.aclose()
        return await anext(room.comparisons.events(id))

    assert asyncio.run(story()).state == "queued"


def test_a_reader_of_what_is_not_there_takes_no_room(room, monkeypatch):
    monkeypatch.setattr("service.following.MAX_READERS", 1)

    async def story():
        for _ in range(2):
            with pytest.raises(ComparisonNotFound):
                await anext(room.comparisons.events("cmp_none"))

    asyncio.run(story())


def test_a_service_that_shuts_down_begins_nothing_and_lets_its_readers_go(room):
    id = room.create()

    async def story():
        reader = room.comparisons.events(id)
        await anext(reader)
        room.comparisons.drain()
        with pytest.raises(Draining):
            await anext(reader)

    asyncio.run(story())
    with pytest.raises(Draining):
        room.create()


def test_a_cancel_is_told_to_who_draws(room):
    id = room.create()
    cancelled = asyncio.run(room.comparisons.cancel(id))
    assert isinstance(cancelled, Comparison)
    assert (cancelled.state, room.stopped) == ("cancelled", [id])
    with pytest.raises(ComparisonNotFound):
        asyncio.run(room.comparisons.cancel("cmp_none"))
