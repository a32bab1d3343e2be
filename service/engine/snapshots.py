"""A picture that was stopped on its way, so that others go on from there instead of starting over."""

from dataclasses import dataclass

import torch
from diffusers import SchedulerMixin


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All that decides how a trajectory goes on. Whoever goes on copies what changes; it stays as it is."""

    step: int
    """Steps that are done, base and refiner together."""
    latents: torch.Tensor
    """(1, C, H/f, W/f), on the CPU: many may wait."""
    generator_state: torch.Tensor
    """Of the image's own generator."""
    scheduler: SchedulerMixin
    """Of the leg that made the last step: solvers of several steps remember the ones before."""
