"""The keywords of an order for pictures, for the methods that hand them on."""

from typing import TypedDict

from darkroom.types import Output, Refiner, SchedulerName


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
    original_size: tuple[int, int] | None
    crops_coords_top_left: tuple[int, int]
    target_size: tuple[int, int] | None
    negative_original_size: tuple[int, int] | None
    negative_crops_coords_top_left: tuple[int, int]
    negative_target_size: tuple[int, int] | None
    output: Output
    tokens: bool
    timeout_seconds: float | None
