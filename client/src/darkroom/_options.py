"""The keywords of an order for pictures, for the methods that hand them on."""

from collections.abc import Sequence
from typing import TypedDict

from darkroom.types import GenerateRequest, LoraUse, Output, Refiner, SchedulerName

Loras = Sequence[LoraUse | str]
"""A ref alone, `"ink-wash:prod"`, is that LoRA at a weight of 1."""


class Options(TypedDict, total=False):
    """What `generate` takes beside the prompt. `GenerateRequest` explains each, and has the defaults."""

    negative_prompt: str | None
    width: int | None
    height: int | None
    num_inference_steps: int
    guidance_scale: float
    scheduler: SchedulerName
    seed: int | None
    num_images: int
    refiner: Refiner | None
    loras: Loras
    original_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int] | None
    negative_original_size: tuple[int, int] | None
    negative_crops_coords_top_left: tuple[int, int]
    negative_target_size: tuple[int, int] | None
    output: Output
    tokens: bool
    timeout_seconds: float | None


def lora_uses(loras: Loras) -> tuple[LoraUse, ...]:
    """What a request says of them."""
    return tuple(LoraUse(ref=lora) if isinstance(lora, str) else lora for lora in loras)


def request_from(prompt: str, options: Options, *, previews: bool) -> GenerateRequest:
    """The request that keywords make up. Raises pydantic's `ValidationError`."""
    loras = lora_uses(options.get("loras", ()))
    return GenerateRequest.model_validate({**options, "prompt": prompt, "previews": previews, "loras": loras})
