"""The engine as its callers see it: events, fairness, cancellation, and failures that stay where they happen."""

import queue
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from builders import an_order, run
from service.engine import canary, memory
from service.engine.engine import Engine
from service.engine.orders import Done, Failed, Progress
from service.errors import Cancelled, EngineStopped, OutOfDeviceMemory, UnusableImage


class Faulty:
    """A UNet whose forward pass is handed to `answer(real, *args, **kwargs)`."""

    def __init__(self, real, answer):
        self._real, self._answer = real, answer
        self.config = real.config

    def __call__(self, *args, **kwargs):
        return self._answer(self._real, *args, **kwargs)


@pytest.fixture
def faulty_engine(models):
    """Starts engines whose base UNet is faulty, and stops them."""
    engines = []

    def make(answer):
        faulty = replace(models, unets={**models.unets, "base": Faulty(models.unets["base"], answer)})
        engine = Engine(faulty, memory.PROFILES["24"])
        engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.close()


def heard(events, kind, timeout=60):
    """Events up to and including the first of `kind`."""
    seen = []
    while not seen or not isinstance(seen[-1], kind):
        seen.append(events.get(timeout=timeout))
    return seen


def test_every_step_of_every_image_is_reported(engine):
    events = queue.SimpleQueue()
    engine.submit(an_order(seeds=(1, 2), num_inference_steps=4, hand_over=0.5), events.put)
    *progress, _ = heard(events, Done)
    steps = {(event.index, event.step) for event in progress}
    assert steps == {(index, step) for index in (0, 1) for step in (1, 2, 3, 4)}
    assert {event.steps for event in progress} == {4}


def test_previews_are_small_pictures_that_come_to_look_like_the_result(engine):
    events = queue.SimpleQueue()
    engine.submit(an_order(num_inference_steps=8, previews=True, scheduler="dpmpp_2m"), events.put)
    *progress, done = heard(events, Done)
    previews = [event.preview_HWC for event in progress[:-1]]
    assert all(preview.shape == (16, 16, 3) and preview.dtype == np.uint8 for preview in previews)
    final = done.pictures[0].pixels_HWC.astype(float).reshape(16, 4, 16, 4, 3).mean((1, 3))
    errors = [np.abs(preview - final).mean() for preview in (previews[0], previews[-1])]
    assert errors[1] < errors[0]
    assert errors[1] < 40


def test_images_of_one_order_are_those_of_single_orders(engine):
    together = run(engine, an_order(seeds=(5, 6, 7)))
    for picture in together.pictures:
        alone = run(engine, an_order(seeds=(picture.seed,))).pictures[0]
        assert np.abs(picture.pixels_HWC.astype(int) - alone.pixels_HWC).max() <= 1


def test_different_seeds_give_different_images(engine):
    one, other = run(engine, an_order(seeds=(1, 2), num_inference_steps=12)).pictures
    assert np.abs(one.pixels_HWC.astype(int) - other.pixels_HWC).mean() > 2


def test_a_short_order_overtakes_a_long_one(models):
    engine = Engine(models, memory.PROFILES["24"], max_active=2)
    order = []
    try:
        long, short = queue.SimpleQueue(), queue.SimpleQueue()
        engine.submit(
            an_order(seeds=tuple(range(8)), num_inference_steps=20),
            lambda e: (order.append("long"), long.put(e)) if isinstance(e, Done) else None,
        )
        engine.submit(
            an_order(seeds=(99,), num_inference_steps=4),
            lambda e: (order.append("short"), short.put(e)) if isinstance(e, Done) else None,
        )
        engine.start()
        short.get(timeout=60)
        long.get(timeout=120)
    finally:
        engine.close()
    assert order == ["short", "long"]


def test_a_cancelled_order_stops_within_two_steps(engine):
    events = queue.SimpleQueue()
    work = engine.submit(an_order(num_inference_steps=50), events.put)
    first = events.get(timeout=60)
    work.cancel()
    rest = heard(events, Failed)
    assert isinstance(first, Progress)
    assert isinstance(rest[-1].error, Cancelled)
    assert len(rest) - 1 <= 2
    work.cancel()  # again, in any state


def test_cancelling_before_the_first_step_costs_nothing(models):
    engine = Engine(models, memory.PROFILES["24"])
    events = queue.SimpleQueue()
    engine.submit(an_order(), events.put).cancel()
    engine.start()
    assert isinstance(heard(events, Failed)[0].error, Cancelled)
    engine.close()


def test_timings_add_up_to_no_more_than_the_total(engine):
    timings = run(engine, an_order(hand_over=0.5, num_inference_steps=6)).timings
    parts = timings.queue + timings.encode + timings.base + timings.refiner + timings.decode
    assert 0 < parts <= timings.total
    assert timings.base > 0
    assert timings.refiner > 0


def test_a_picture_of_not_a_numbers_is_an_error(faulty_engine):
    engine = faulty_engine(lambda real, latents, *args, **kwargs: (torch.full_like(latents, torch.nan),))
    with pytest.raises(UnusableImage, match="seed 1 is unusable: the latents are not finite"):
        run(engine, an_order())


@pytest.mark.parametrize(("level", "defect"), [(-1.0, "black"), (0.3, "flat")])
def test_a_black_or_flat_picture_is_an_error(models, level, defect):
    class OneColour:
        """A VAE that decodes everything to one colour."""

        dtype, config = torch.float32, models.vae.config

        def decode(self, latents, return_dict):
            height, width = (edge * models.vae_scale_factor for edge in latents.shape[2:])
            return (torch.full((len(latents), 3, height, width), level),)

    engine = Engine(replace(models, vae=OneColour()), memory.PROFILES["24"])
    engine.start()
    try:
        with pytest.raises(UnusableImage) as caught:
            run(engine, an_order())
    finally:
        engine.close()
    assert caught.value.defect == defect


def out_of_memory_above(rows):
    def answer(real, latents, *args, **kwargs):
        if len(latents) > rows:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(latents, *args, **kwargs)

    return answer


def test_a_batch_that_does_not_fit_is_split_and_gives_the_same_images(engine, faulty_engine):
    order = an_order(seeds=(1, 2, 3))
    split = run(faulty_engine(out_of_memory_above(1)), order)
    for ours, theirs in zip(split.pictures, run(engine, order).pictures, strict=True):
        assert np.abs(ours.pixels_HWC.astype(int) - theirs.pixels_HWC).max() <= 1


def test_a_row_that_does_not_fit_fails_its_order_and_no_other(faulty_engine):
    def large_ones_do_not_fit(real, latents, *args, **kwargs):
        if latents.shape[-1] > 16:
            raise torch.OutOfMemoryError("CUDA out of memory (pretended)")
        return real(latents, *args, **kwargs)

    engine = faulty_engine(large_ones_do_not_fit)
    small = queue.SimpleQueue()
    engine.submit(an_order(num_inference_steps=10), small.put)
    with pytest.raises(OutOfDeviceMemory, match="smaller size"):
        run(engine, an_order(width=96))
    assert isinstance(heard(small, (Done, Failed))[-1], Done)
    assert isinstance(run(engine, an_order()), Done)


def test_a_pass_that_crashes_fails_its_order_and_the_engine_lives(faulty_engine):
    def crash_on_odd_sizes(real, latents, *args, **kwargs):
        if latents.shape[-1] != 16:
            raise RuntimeError("shape mismatch (pretended)")
        return real(latents, *args, **kwargs)

    engine = faulty_engine(crash_on_odd_sizes)
    with pytest.raises(RuntimeError, match="pretended"):
        run(engine, an_order(width=72))
    assert engine.alive
    assert isinstance(run(engine, an_order()), Done)


def test_a_bug_in_the_loop_kills_the_engine_and_everybody_hears_of_it(faulty_engine):
    def bug(real, *args, **kwargs):
        raise KeyError("not a fault of the request")

    engine = faulty_engine(bug)
    with pytest.raises(EngineStopped):
        run(engine, an_order())
    engine._thread.join(timeout=10)
    assert not engine.alive
    with pytest.raises(EngineStopped):
        engine.submit(an_order(), lambda event: None)


def test_a_closed_engine_fails_what_is_left_and_takes_no_more(models):
    engine = Engine(models, memory.PROFILES["24"])
    engine.start()
    events = queue.SimpleQueue()
    engine.submit(an_order(num_inference_steps=60), events.put)
    events.get(timeout=60)
    engine.close()
    assert isinstance(heard(events, Failed)[-1].error, EngineStopped)
    with pytest.raises(EngineStopped):
        engine.submit(an_order(), lambda event: None)


def test_costs_are_learnt_from_the_canary(models):
    engine = Engine(models, memory.PROFILES["24"])
    engine.start()
    try:
        assert engine.costs.estimate(an_order()) == 0
        canary.develop(engine)
        short, long = (engine.costs.estimate(an_order(num_inference_steps=steps)) for steps in (10, 20))
        assert 0 < short < long
        assert engine.costs.estimate(an_order(seeds=(1, 2))) == pytest.approx(
            2 * engine.costs.estimate(an_order())
        )
    finally:
        engine.close()


def test_memory_profiles_follow_the_card(monkeypatch):
    card = SimpleNamespace(total_memory=0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    chosen = []
    for gigabytes in (15.9, 23.7, 143.7):
        card.total_memory = gigabytes * 1e9
        chosen.append(memory.profile_for("auto", torch.device("cuda")).name)
    assert chosen == ["16", "24", "80"]
    assert memory.profile_for("16", torch.device("cpu")).name == "16"


def test_an_errand_that_was_given_up_is_not_run_and_one_left_at_the_end_fails(models):
    engine = Engine(models, memory.PROFILES["24"])
    engine.start()
    busy, release, ran = threading.Event(), threading.Event(), []

    def hold() -> bool:
        busy.set()
        return release.wait(30)

    holding = engine.run(hold)
    assert busy.wait(30)
    given_up = engine.run(lambda: ran.append("given up"))
    given_up.cancel()
    release.set()
    assert holding.result(30)
    assert engine.run(lambda: 7).result(30) == 7
    assert ran == []
    with pytest.raises(ZeroDivisionError):
        engine.run(lambda: 1 / 0).result(30)
    engine.close()
    with pytest.raises(EngineStopped):
        engine.run(lambda: 7)
