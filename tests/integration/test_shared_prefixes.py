"""An image that goes on from another's snapshot is the image that would have been made from the start, to the bit."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest

from builders import an_order, run
from darkroom.types import SchedulerName
from service.engine.orders import HandOver, LoraOrder
from service.engine.paths import Ways
from service.engine.prompts import parse

SCHEDULERS = get_args(SchedulerName)
LORA = LoraOrder("ink@1", "ink", "sha256:" + "0" * 64)


def handing_over_at(fraction: float, **changes):
    return an_order(num_inference_steps=10, hand_over=HandOver(fraction, 6.0, 2.5), apart=True, **changes)


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("stop", [3, 8], ids=["in mid-leg", "at the hand-over"])
def test_an_image_that_was_stopped_goes_on_to_the_same_pixels(engine, scheduler, stop):
    order = handing_over_at(0.8, scheduler=scheduler)
    whole = run(engine, order).pictures[0]
    stopped = run(engine, replace(order, until=stop))
    assert stopped.pictures == ()
    rest = run(engine, replace(order, start=stopped.snapshot)).pictures[0]
    assert np.array_equal(rest.pixels_HWC, whole.pixels_HWC)
    assert (rest.base_steps, rest.refiner_steps) == (whole.base_steps, whole.refiner_steps)


@pytest.mark.parametrize("scheduler", ["euler_ancestral", "dpmpp_2m_sde", "unipc"])
def test_several_go_on_from_one_snapshot_without_disturbing_each_other(engine, scheduler):
    orders = [handing_over_at(fraction, scheduler=scheduler) for fraction in (0.6, 0.8, 1.0)]
    alone = [run(engine, order).pictures[0].pixels_HWC for order in orders]
    start = run(engine, replace(orders[0], until=5)).snapshot
    for _ in range(2):
        forked = [run(engine, replace(order, start=start)).pictures[0].pixels_HWC for order in orders]
        assert all(map(np.array_equal, forked, alone))


def test_a_snapshot_within_the_refiner_goes_on_with_its_scheduler(engine):
    order = handing_over_at(0.4, scheduler="dpmpp_2m")
    start = run(engine, replace(order, until=7)).snapshot
    rest = run(engine, replace(order, start=start)).pictures[0]
    assert np.array_equal(rest.pixels_HWC, run(engine, order).pictures[0].pixels_HWC)


def test_a_snapshot_at_the_last_step_only_needs_decoding(engine):
    order = handing_over_at(0.8)
    start = run(engine, replace(order, until=10)).snapshot
    rest = run(engine, replace(order, start=start))
    assert np.array_equal(rest.pictures[0].pixels_HWC, run(engine, order).pictures[0].pixels_HWC)
    assert rest.timings.base == rest.timings.refiner == 0


def test_paths_part_where_pictures_do(models):
    ways = Ways(models)

    def shared(one, other) -> int:
        """Steps that two orders have in common; -1 where not even their noise is the same."""
        pairs = zip(ways.of(one).path, ways.of(other).path, strict=False)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), len(ways.of(one).path)) - 1

    early, late = handing_over_at(0.6), handing_over_at(0.8)
    assert ways.of(late).steps == 10
    assert shared(early, late) == 6
    assert shared(late, an_order(num_inference_steps=10)) == 8
    assert shared(handing_over_at(1.0), an_order(num_inference_steps=10)) == 10
    assert shared(late, replace(late, hand_over=HandOver(0.8, 9.0, 2.5))) == 8
    assert shared(late, replace(late, seeds=(2,))) == -1
    assert shared(late, replace(late, scheduler="ddim")) == -1
    assert shared(late, replace(late, guidance_scale=6.0)) == 0
    assert shared(late, replace(late, negative_prompt=parse("blue"))) == 0
    unguided = replace(late, guidance_scale=1.0)
    assert shared(unguided, replace(unguided, negative_prompt=parse("blue"))) == 10
    assert ways.of(unguided).rows == 1


def test_a_lora_parts_paths_from_the_step_that_it_comes_into_force_at(models):
    ways = Ways(models)
    plain = an_order(num_inference_steps=10)

    def shared(lora: LoraOrder) -> int:
        with_it = replace(plain, loras=(lora,))
        pairs = zip(ways.of(plain).path, ways.of(with_it).path, strict=True)
        return next((place for place, (a, b) in enumerate(pairs) if a != b), 11) - 1

    unet = replace(LORA, touches=("unet",))
    assert shared(unet) == 0
    assert shared(replace(unet, start=0.5)) == 5
    assert shared(replace(unet, weight=0.0)) == 10
    assert shared(replace(unet, components=(("unet", 0.0),))) == 10
    assert shared(replace(unet, sham=1)) == 0
    # Tokens count wherever a text may say one, whatever the weight.
    assert shared(replace(unet, weight=0.0, tokens=("sks",))) == 0


def test_the_score_of_a_picture_is_higher_for_its_own_prompt_than_for_another(engine):
    prompts = ["a big red circle on a blue background", "a small green star on a white background"]
    for prompt in prompts:
        order = an_order(prompt, num_inference_steps=12, apart=True)
        finished = run(engine, order).snapshot
        scores = {}
        for asked in prompts:
            judged = run(engine, replace(order, start=finished, question=parse(asked)))
            assert judged.pictures == ()
            scores[asked] = judged.adherence
        assert max(scores, key=scores.__getitem__) == prompt
        assert 0 < scores[prompt] < 1


def test_scores_are_the_same_to_the_bit_each_time(engine):
    order = an_order(apart=True)
    judging = replace(order, start=run(engine, order).snapshot, question=parse("a fox"))
    assert len({run(engine, judging).adherence for _ in range(3)}) == 1


def test_an_image_apart_is_the_same_to_the_bit_in_company(engine):
    order = an_order(apart=True, num_inference_steps=8)
    alone = run(engine, order).pictures[0].pixels_HWC
    company = [an_order(seeds=(5, 6, 7), num_inference_steps=60), an_order(seeds=(8,), num_inference_steps=8)]
    works = [engine.submit(other, lambda _event: None) for other in company]
    assert np.array_equal(run(engine, order).pictures[0].pixels_HWC, alone)
    for work in works:
        work.cancel()


def test_an_image_apart_shares_no_pass_even_with_one_that_ends_with_it(engine, monkeypatch):
    groups = []
    decode = engine._decode
    monkeypatch.setattr(engine, "_decode", lambda group: (groups.append(len(group)), decode(group)))
    run(engine, an_order(apart=True, seeds=(1, 2, 3)))
    assert groups == [1, 1, 1]
    run(engine, an_order(seeds=(1, 2, 3)))
    assert groups[3:] == [3]
