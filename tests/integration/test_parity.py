"""The engine's specification: its latents are those of the stock diffusers pipelines, whoever shares the batch."""

import random
from dataclasses import replace
from functools import partial
from typing import get_args

import pytest
import torch

from builders import an_order
from darkroom.types import SchedulerName
from service.engine import memory
from service.engine.conditioning import Conditioner
from service.engine.loop import StepLoop
from service.engine.orders import HandOver, Order
from service.engine.trajectory import Trajectory

TOLERANCE = 1e-4
PROMPTS = (
    "a big red circle on a blue background",
    "a small (green)++ star on a white background",
    "yellow ring, (blurry)0.4, at the top",
    "a photo of a purple cross, " + ", ".join(["lovely old film of the sea"] * 25),
)
NEGATIVES = (None, "", "deformed", "washed out, (blocky)+")
SIZES = ((64, 64), (96, 64), (64, 72), (40, 56))
SCHEDULERS = get_args(SchedulerName)


def sampled_orders(count: int) -> list[Order]:
    """Orders of all kinds, every scheduler in turn; from one seed, so that a failure can be seen again."""
    draw = random.Random(20261122)
    orders = []
    for number in range(count):
        width, height = draw.choice(SIZES)
        hand_over = draw.choice((None, 0.8, 0.8, 0.5, 0.35, 0.05, 0.93))
        micro = {}
        if draw.random() < 0.3:
            micro = {
                "original_size": (128, 96),
                "crops_coords_top_left": (8, 16),
                "negative_original_size": (32, 32),
                "negative_target_size": (64, 32),
                "negative_crops_coords_top_left": (4, 0),
            }
        order = an_order(
            draw.choice(PROMPTS),
            draw.choice(NEGATIVES),
            width=width,
            height=height,
            seeds=(draw.getrandbits(64),),
            num_inference_steps=draw.randint(2, 9),
            guidance_scale=draw.choice((0.0, 1.0, 1.5, 5.0, 9.0)),
            scheduler=SCHEDULERS[number % len(SCHEDULERS)],
            hand_over=hand_over and HandOver(hand_over, draw.choice((6.0, 7.5)), 2.5),
        )
        orders.append(replace(order, **micro))
    return orders


@torch.inference_mode()
def together(
    models, orders: list[Order], conditioner: Conditioner, *, pad: bool = False
) -> list[torch.Tensor]:
    """Latents of each order's first image, made in one loop that a new trajectory joins at every step."""
    loop = StepLoop(models, memory.PROFILES["24"], pad=pad)
    trajectories = [
        Trajectory(order, 0, partial(conditioner.conditioning, order), models) for order in orders
    ]
    waiting, active = list(trajectories), []
    while waiting or active:
        if waiting:
            active.append(waiting.pop(0))
        steps = loop.advance([trajectory for trajectory in active if not trajectory.finished])
        assert all(step.error is None for step in steps)
        active = [trajectory for trajectory in active if not trajectory.finished]
    return [trajectory.latents for trajectory in trajectories]


@pytest.fixture(scope="module")
def conditioner(models):
    return Conditioner(models)


COMBINATIONS = 48
COMPANIONS = 6


@pytest.mark.parametrize("start", range(0, COMBINATIONS, COMPANIONS))
def test_latents_equal_those_of_stock_diffusers_whoever_shares_the_batch(models, plain, conditioner, start):
    orders = sampled_orders(COMBINATIONS)[start : start + COMPANIONS]
    for order, ours in zip(orders, together(models, orders, conditioner), strict=True):
        stock = plain.latents(order, 0, conditioner.conditioning(order))
        difference = (ours - stock).abs().max().item()
        assert difference <= TOLERANCE * max(1.0, stock.abs().max().item()), order


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_an_image_does_not_depend_on_its_companions(models, conditioner, scheduler):
    order = an_order(scheduler=scheduler, hand_over=0.6, num_inference_steps=5, seeds=(7,))
    strangers = [
        an_order(
            "a green star", "ugly", seeds=(seed,), num_inference_steps=3 + seed, scheduler="euler_ancestral"
        )
        for seed in range(3)
    ]
    (alone,) = together(models, [order], conditioner)
    in_company = together(models, [*strangers, order], conditioner)[-1]
    assert (alone - in_company).abs().max().item() <= TOLERANCE


def test_padded_groups_give_the_same_latents(models, conditioner):
    orders = [an_order(seeds=(seed,)) for seed in range(3)]
    plain_groups = together(models, orders, conditioner)
    padded = together(models, orders, conditioner, pad=True)
    for one, other in zip(plain_groups, padded, strict=True):
        assert (one - other).abs().max().item() <= TOLERANCE


@pytest.mark.parametrize("scheduler", SCHEDULERS)
@pytest.mark.parametrize("fraction", [0.1, 0.37, 0.5, 0.8, 0.99])
def test_base_and_refiner_share_the_timesteps_without_gap_or_overlap(models, scheduler, fraction):
    from service.engine import schedulers

    steps, config = 25, models.scheduler_config
    whole = schedulers.base_leg(scheduler, config, steps, None).timesteps
    base = schedulers.base_leg(scheduler, config, steps, fraction).timesteps
    refiner = schedulers.refiner_leg(scheduler, config, steps, fraction).timesteps
    assert torch.equal(torch.cat([base, refiner]), whole)


def test_handing_over_at_one_leaves_everything_to_the_base(models, conditioner):
    at_end, base_only = together(models, [an_order(hand_over=1.0), an_order()], conditioner)
    assert torch.equal(at_end, base_only) or (at_end - base_only).abs().max().item() <= TOLERANCE


def test_handing_over_at_zero_leaves_everything_to_the_refiner(models, conditioner):
    order = an_order(hand_over=0.0)
    trajectory = Trajectory(order, 0, partial(conditioner.conditioning, order), models)
    assert (trajectory.base_steps, trajectory.refiner_steps) == (0, order.num_inference_steps)
    (latents,) = together(models, [order], conditioner)
    assert torch.isfinite(latents).all()
