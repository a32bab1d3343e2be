"""What decides each step of an order's image: orders whose paths begin alike have the same latents until they part.

Nothing here touches a weight or a device: whoever plans many pictures asks before one of them is drawn.
"""

from collections.abc import Hashable
from dataclasses import dataclass, replace

from darkroom.types import SchedulerName
from lora_registry.records import Component
from service.engine import schedulers
from service.engine.conditioning import base_time_ids, refiner_time_ids
from service.engine.loras.stacks import Side, counts, weight_on
from service.engine.models import Models
from service.engine.orders import Order

Path = tuple[Hashable, ...]
"""The noise that it begins with, and then a key for each step; what is equal here is equal to the last bit."""


@dataclass(frozen=True)
class Way:
    """An order's image from noise to latents, as keys."""

    path: Path
    """One longer than there are steps: first comes the noise."""
    base_steps: int
    rows: int
    """UNet evaluations a step."""
    stacks: tuple[Hashable, ...]
    """What is in force at each step of the base, (cond, uncond)."""

    @property
    def steps(self) -> int:
        return len(self.path) - 1

    def with_seed(self, seed: int) -> "Way":
        """The way of the same order with another seed."""
        noise = self.path[0]
        assert isinstance(noise, tuple)
        return replace(self, path=((seed, *noise[1:]), *self.path[1:]))


class Ways:
    """The ways of many orders on one model."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._steps: dict[tuple[SchedulerName, int, float | None], tuple[int, int]] = {}

    def of(self, order: Order) -> Way:
        """The way of the order's only image."""
        (seed,) = order.seeds
        base_steps, refiner_steps = self._steps_of(order)
        total = base_steps + refiner_steps
        noise = seed, order.height, order.width, order.scheduler, order.num_inference_steps, base_steps == 0
        stacks = tuple(
            tuple(_stack(order, "unet", side, step / total) for side in _sides(order))
            for step in range(base_steps)
        )
        base = [("base", stacks[step], _told_to_base(order, step / total)) for step in range(base_steps)]
        refiner: list[Hashable] = []
        if refiner_steps:
            refiner = [("refiner", base_steps, _told_to_refiner(order, self._models))] * refiner_steps
        return Way((noise, *base, *refiner), base_steps, 2 if order.guided else 1, stacks)

    def _steps_of(self, order: Order) -> tuple[int, int]:
        end = None if order.hand_over is None else order.hand_over.denoising_end
        key = order.scheduler, order.num_inference_steps, end
        if key not in self._steps:  # schedulers are built for it, which hundreds of orders would pay for
            of = order.scheduler, self._models.scheduler_config, order.num_inference_steps
            base = schedulers.base_leg(*of, end)
            refiner = () if end is None else schedulers.refiner_leg(*of, end)
            self._steps[key] = len(base), len(refiner)
        return self._steps[key]


def _sides(order: Order) -> tuple[Side, ...]:
    return ("cond", "uncond") if order.guided else ("cond",)


def _stack(order: Order, component: Component, side: Side, done: float) -> Hashable:
    """As `Stacks` puts it together from the adapters themselves."""
    return tuple(
        (lora.adapter, weight, lora.blocks if component == "unet" else ())
        for lora in order.loras
        if counts(lora, side, done) and component in lora.touches
        if (weight := weight_on(lora, component))
    )


def _told_to_base(order: Order, done: float) -> Hashable:
    tokens = tuple((token, lora.adapter) for lora in order.loras for token in lora.tokens)
    texts = tuple(
        (_stack(order, "text_encoder", side, done), _stack(order, "text_encoder_2", side, done))
        for side in _sides(order)
    )
    ids, negative_ids = base_time_ids(order)
    if not order.guided:
        return order.prompt, tokens, texts, tuple(ids)
    told = order.prompt, order.negative_prompt, tokens, texts, tuple(ids), tuple(negative_ids)
    return order.guidance_scale, told


def _told_to_refiner(order: Order, models: Models) -> Hashable:
    ids, negative_ids = refiner_time_ids(order, order.hand_over if models.requires_aesthetics_score else None)
    if not order.guided:
        return order.prompt, tuple(ids)
    return order.guidance_scale, order.prompt, order.negative_prompt, tuple(ids), tuple(negative_ids)
