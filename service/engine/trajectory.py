"""One image on its way from noise to latents: its own scheduler, its own generator, its own step."""

import copy
from collections.abc import Callable
from dataclasses import replace

import torch

from service.engine import adherence, schedulers
from service.engine.adherence import Judgement
from service.engine.conditioning import Branch, Conditioning
from service.engine.loras.stacks import EMPTY, NO_LORAS, Side, Stacks, TextInForce
from service.engine.models import Models, UNetName
from service.engine.orders import Order
from service.engine.rows import Row
from service.engine.schedulers import Leg
from service.engine.snapshots import Snapshot

Conditionings = Callable[[TextInForce, TextInForce], Conditioning]
"""The conditioning of an order for what is in force for its two prompts."""


class Trajectory:
    """One image of an order.

    The generator lives on the CPU and is the image's own, so that the picture depends neither on the device's random
    numbers nor on who shares its batch. It goes on from base to refiner: the same noise is never used twice.
    `question` is the conditioning of the prompt that the finished image is scored by, where the order asks.
    """

    def __init__(
        self,
        order: Order,
        index: int,
        conditionings: Conditionings,
        models: Models,
        stacks: Stacks = NO_LORAS,
        question: Conditioning | None = None,
    ) -> None:
        self.order = order
        self.index = index
        self.seed = order.seeds[index]
        self._conditionings = conditionings
        self._stacks = stacks
        self._generator = torch.Generator("cpu").manual_seed(self.seed)
        self._legs = _legs(order, models)
        self.base_steps, self.refiner_steps = len(self._legs["base"]), len(self._legs.get("refiner", ()))
        self._schedule: list[tuple[UNetName, int]] = [
            (name, step) for name, leg in self._legs.items() for step in range(len(leg))
        ]
        self._models, self._question = models, question
        self._judgement: Judgement | None = None
        self.denoised: torch.Tensor | None = None
        """The scheduler's present estimate of the finished latents, where it states one."""
        if order.start is not None:
            self._go_on_from(order.start)
            return
        self.step = 0
        # The leg that starts gives the noise its size; after a hand-over the latents are taken as they are.
        first = self._legs["base"] if self.base_steps else self._legs["refiner"]
        factor = models.vae_scale_factor
        noise = torch.randn(
            (1, models.latent_channels, order.height // factor, order.width // factor),
            generator=self._generator,
            dtype=models.dtype,
        )
        self.latents = noise.to(models.device) * schedulers.init_noise_sigma(first)

    @property
    def denoising_steps(self) -> int:
        """Of base and refiner."""
        return len(self._schedule)

    @property
    def steps(self) -> int:
        """The step that it is finished at: the last one, or where the order has it stop."""
        if self.order.until is not None:
            return self.order.until
        return self.denoising_steps + (0 if self._question is None else adherence.STEPS)

    @property
    def finished(self) -> bool:
        return self.step == self.steps

    @property
    def unet(self) -> UNetName:
        """The UNet of the next step."""
        return self._schedule[self.step][0] if self.step < self.denoising_steps else "base"

    @property
    def row_count(self) -> int:
        """UNet evaluations that the next step needs."""
        return 2 if self.order.guided or self.step >= self.denoising_steps else 1

    @property
    def adherence(self) -> float | None:
        """How well the finished image fits the prompt that the order asks about."""
        return None if self._judgement is None else self._judgement.score

    def snapshot(self) -> Snapshot:
        """What another trajectory goes on from, in the place of this one."""
        done = min(self.step, self.denoising_steps)
        name = self._schedule[max(0, done - 1)][0]
        return Snapshot(done, self.latents.cpu(), self._generator.get_state(), self._legs[name].scheduler)

    def rows(self) -> list[Row]:
        """The UNet evaluations that the next step needs: uncond, cond; or cond alone without guidance."""
        owner = self if self.order.apart else None
        if self.step >= self.denoising_steps:
            return self._judging().rows(owner)
        name, _ = self._schedule[self.step]
        timestep = self._timestep()
        latents = self._legs[name].scheduler.scale_model_input(self.latents, timestep)
        done = self.step / self.denoising_steps
        conditioning = self._conditionings(self._stacks.text("cond", done), self._stacks.text("uncond", done))
        sides: list[tuple[Side, Branch]] = [("cond", conditioning.cond[name])]
        if conditioning.uncond is not None:
            sides.insert(0, ("uncond", conditioning.uncond[name]))
        return [
            Row(
                name,
                latents,
                timestep,
                branch,
                self.order.pixels,
                self._stacks.unet(side, done) if name == "base" else EMPTY,
                owner,
            )
            for side, branch in sides
        ]

    def advance(self, noise_predictions: list[torch.Tensor]) -> None:
        """Make one scheduler step; `noise_predictions` answer `rows()`, each (1, C, H/f, W/f)."""
        if self.step >= self.denoising_steps:
            self._judging().advance(noise_predictions)
            self.step += 1
            return
        name, _ = self._schedule[self.step]
        leg = self._legs[name]
        if len(noise_predictions) == 2:
            uncond, cond = noise_predictions
            noise = uncond + self.order.guidance_scale * (cond - uncond)
        else:
            (noise,) = noise_predictions
        options = {"generator": self._generator} if leg.takes_generator else {}
        outcome = leg.scheduler.step(noise, self._timestep(), self.latents, **options)
        self.latents = outcome.prev_sample
        self.denoised = _estimate(leg, outcome)
        self.step += 1

    def _go_on_from(self, start: Snapshot) -> None:
        self.step, self.latents = start.step, start.latents.to(self._models.device)
        self._generator.set_state(start.generator_state)
        if start.step:
            name = self._schedule[start.step - 1][0]
            # A copy: others go on from the same place.
            self._legs[name] = replace(self._legs[name], scheduler=copy.deepcopy(start.scheduler))

    def _judging(self) -> Judgement:
        if self._judgement is None:
            assert self._question is not None
            self._judgement = Judgement(self.latents, self._question, self._models, self.order.pixels)
        return self._judgement

    def _timestep(self) -> torch.Tensor:
        name, step = self._schedule[self.step]
        return self._legs[name].timesteps[step]


def _legs(order: Order, models: Models) -> dict[UNetName, Leg]:
    steps, config = order.num_inference_steps, models.scheduler_config
    if order.hand_over is None:
        return {"base": schedulers.base_leg(order.scheduler, config, steps, None)}
    fraction = order.hand_over.denoising_end
    return {
        "base": schedulers.base_leg(order.scheduler, config, steps, fraction),
        "refiner": schedulers.refiner_leg(order.scheduler, config, steps, fraction),
    }


def _estimate(leg: Leg, outcome: object) -> torch.Tensor | None:
    stated = getattr(outcome, "pred_original_sample", None)
    if stated is None:
        # Multistep solvers keep their converted model outputs, newest last; for x0 solvers that is the estimate.
        outputs = [output for output in getattr(leg.scheduler, "model_outputs", ()) if output is not None]
        stated = outputs[-1] if outputs else None
    return stated
