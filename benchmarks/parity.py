"""Whether the engine's latents are those of the stock pipelines, whoever shares the batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch

from benchmarks import stock
from benchmarks.orders import HAND_OVER, an_order
from service.engine.conditioning import Conditioner
from service.engine.loop import StepLoop
from service.engine.memory import MemoryProfile
from service.engine.models import Models
from service.engine.orders import Order
from service.engine.trajectory import Trajectory

TOLERANCE = 1e-4
"""Relative to the largest latent, at least 1, in float32."""


def orders(edge: int) -> list[Order]:
    """Orders of several kinds, those of one size in one batch."""
    return [
        an_order("a big red circle", edge=edge, steps=4, seeds=(1,)),
        an_order("a green star", edge=edge, steps=6, seeds=(2,), scheduler="dpmpp_2m_karras"),
        an_order("a blue ring", edge=edge, steps=5, seeds=(3,), scheduler="euler_ancestral"),
        an_order("a (yellow)++ cross", edge=edge, steps=4, seeds=(4,), hand_over=None, scheduler="ddim"),
        an_order("two dots", edge=edge, steps=3, seeds=(5,), guidance_scale=1.0, scheduler="unipc"),
        an_order("a wide field", edge=edge, steps=4, seeds=(6,), width=2 * edge, hand_over=HAND_OVER),
    ]


def differences(models: Models, profile: MemoryProfile, edge: int) -> dict[str, float]:
    """For each order, the largest difference of the latents from stock diffusers, relative to `TOLERANCE`'s scale.

    The engine makes all of them together, stock diffusers each alone.
    """
    pipelines = stock.from_models(models, unets=models.unets)
    conditioner = Conditioner(models)
    asked = orders(edge)
    found: dict[str, float] = {}
    with full_float32():
        for order, ours in zip(asked, _together(models, profile, conditioner, asked), strict=True):
            theirs = pipelines.latents(order, conditioner.conditioning(order))
            scale = max(1.0, theirs.abs().max().item())
            name = f"{order.scheduler}, {order.width}x{order.height}, seed {order.seeds[0]}"
            found[name] = (ours - theirs).abs().max().item() / scale
    return found


@contextmanager
def full_float32() -> Iterator[None]:
    """CUDA's float32 without TF32, which keeps ten bits only."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@torch.inference_mode()
def _together(
    models: Models, profile: MemoryProfile, conditioner: Conditioner, asked: Sequence[Order]
) -> list[torch.Tensor]:
    loop = StepLoop(models, profile)
    trajectories = [Trajectory(order, 0, partial(conditioner.conditioning, order), models) for order in asked]
    while moving := [trajectory for trajectory in trajectories if not trajectory.finished]:
        for step in loop.advance(moving):
            if step.error is not None:
                raise step.error
    return [trajectory.latents for trajectory in trajectories]
