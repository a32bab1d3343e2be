"""The schedulers on offer: those whose timesteps split cleanly between base and refiner.

Heun and KDPM2 evaluate twice a step and may be cut between the two; PNDM counts its own steps and cannot start in
the middle. They are left out (docs/decisions/0003-schedulers.md).
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast, get_args

import diffusers
import torch
from diffusers import SchedulerMixin

from darkroom.types import SchedulerName
from service.errors import InvalidOption


@dataclass(frozen=True)
class SchedulerChoice:
    """A diffusers class and what is set differently from the model's own scheduler config."""

    class_name: str
    options: Mapping[str, Any]
    max_steps: int | None = None


_LATENT_SPACE = {"clip_sample": False}  # these classes clip to [-1, 1] by default, which is for pixels
_SDE = {"algorithm_type": "sde-dpmsolver++"}
_KARRAS = {"use_karras_sigmas": True}

SCHEDULERS: dict[SchedulerName, SchedulerChoice] = {
    "euler": SchedulerChoice("EulerDiscreteScheduler", {}),
    "euler_karras": SchedulerChoice("EulerDiscreteScheduler", _KARRAS),
    "euler_ancestral": SchedulerChoice("EulerAncestralDiscreteScheduler", {}),
    "dpmpp_2m": SchedulerChoice("DPMSolverMultistepScheduler", {}),
    "dpmpp_2m_karras": SchedulerChoice("DPMSolverMultistepScheduler", _KARRAS),
    "dpmpp_2m_sde": SchedulerChoice("DPMSolverMultistepScheduler", _SDE),
    "dpmpp_2m_sde_karras": SchedulerChoice("DPMSolverMultistepScheduler", {**_SDE, **_KARRAS}),
    "deis": SchedulerChoice("DEISMultistepScheduler", {}),
    "ddim": SchedulerChoice("DDIMScheduler", _LATENT_SPACE),
    "ddpm": SchedulerChoice("DDPMScheduler", _LATENT_SPACE),
    "unipc": SchedulerChoice("UniPCMultistepScheduler", {}),
    # LCM walks a subset of the 50 steps that it was distilled on.
    "lcm": SchedulerChoice("LCMScheduler", _LATENT_SPACE, max_steps=50),
}
assert set(SCHEDULERS) == set(get_args(SchedulerName))


def check_steps(name: SchedulerName, num_inference_steps: int) -> None:
    """Return if the scheduler can make that many steps.

    Raises:
        InvalidOption: it cannot.
    """
    limit = SCHEDULERS[name].max_steps
    if limit is not None and num_inference_steps > limit:
        raise InvalidOption(
            f"scheduler '{name}' makes at most {limit} steps; {num_inference_steps} were asked for",
            pointer="/num_inference_steps",
        )


@dataclass(frozen=True)
class Leg:
    """The part of a noise schedule that one UNet does, with the scheduler object that walks it."""

    scheduler: SchedulerMixin
    timesteps: torch.Tensor
    """(steps,) on the CPU, so that reading one never waits for the device."""
    takes_generator: bool

    def __len__(self) -> int:
        return len(self.timesteps)


def base_leg(name: SchedulerName, config: Mapping[str, Any], steps: int, denoising_end: float | None) -> Leg:
    """The steps above the hand-over; all of them where `denoising_end` is None.

    The rule is that of `StableDiffusionXLPipeline`: timesteps at or above the cut-off.
    """
    scheduler = _make(name, config, steps)
    timesteps = scheduler.timesteps
    if denoising_end is not None:
        timesteps = timesteps[: int((timesteps >= _cutoff(scheduler, denoising_end)).sum())]
    scheduler.set_begin_index(0) if hasattr(scheduler, "set_begin_index") else None
    return Leg(scheduler, timesteps, _takes_generator(scheduler))


def refiner_leg(name: SchedulerName, config: Mapping[str, Any], steps: int, denoising_start: float) -> Leg:
    """The steps below the hand-over, by a scheduler of their own, as `StableDiffusionXLImg2ImgPipeline` takes them."""
    scheduler = _make(name, config, steps)
    start = int((scheduler.timesteps >= _cutoff(scheduler, denoising_start)).sum())
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(start)
    return Leg(scheduler, scheduler.timesteps[start:], _takes_generator(scheduler))


def init_noise_sigma(leg: Leg) -> float:
    """What unit noise is multiplied by before the first step."""
    return float(leg.scheduler.init_noise_sigma)


def _make(name: SchedulerName, config: Mapping[str, Any], steps: int) -> SchedulerMixin:
    choice = SCHEDULERS[name]
    scheduler = getattr(diffusers, choice.class_name).from_config(dict(config), **choice.options)
    scheduler.set_timesteps(steps, device="cpu")
    return cast(SchedulerMixin, scheduler)


def _cutoff(scheduler: SchedulerMixin, fraction: float) -> int:
    trained = scheduler.config.num_train_timesteps
    return round(trained - fraction * trained)


def _takes_generator(scheduler: SchedulerMixin) -> bool:
    return "generator" in inspect.signature(scheduler.step).parameters
