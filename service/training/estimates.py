"""What a training would need of the device, told before it starts. A guess from above, in bytes.

The figures for activations were fitted to what is published for SDXL's UNet at 1024 px and batch 1 (about 9 GiB without
checkpointing, 2 GiB with it, in half precision), and grow with pixels and batch.
"""

from collections.abc import Mapping
from typing import Final

from darkroom.types import TrainEstimate, TrainRequest
from darkroom.types.train import TrainOptimizer
from service.training.recipes import TrainedModel, is_installed, targeted_layers

SDXL_UNET_PARAMETERS: Final = 2_567_000_000
ACTIVATION_BYTES: Final = 9 << 30
CHECKPOINTED_BYTES: Final = 2 << 30
REFERENCE_PIXELS: Final = 1024 * 1024
OVERHEAD_BYTES: Final = 1 << 30
"""The CUDA context, workspaces, and what the allocator holds without using it."""

OPTIMIZER_BYTES: Final[Mapping[TrainOptimizer, int]] = {"adamw": 8, "adamw8bit": 2, "prodigy": 16}
"""Of each learnt number: two moments; Prodigy keeps where it began and a weighted sum of gradients as well."""


def estimate(request: TrainRequest, model: TrainedModel, *, picture_count: int) -> TrainEstimate:
    """Of a request whose recipe is filled in."""
    memory_bytes = peak_bytes(request, model)
    available = model.memory_bytes
    fits = available is None or memory_bytes <= available
    return TrainEstimate(
        recipe=request.recipe,
        pictures=picture_count,
        steps=request.recipe.max_train_steps or 0,
        memory_bytes=memory_bytes,
        memory_available_bytes=available,
        fits=fits,
        advice=[]
        if fits
        else _advice(request, would_fit=memory_bytes <= (available or 0) + model.held_bytes),
    )


def too_large(needed: TrainEstimate) -> str:
    """Why it does not fit, and what to do about it."""
    has = (needed.memory_available_bytes or 0) / 2**30
    advice = "; ".join(needed.advice)
    return f"the training needs about {needed.memory_bytes / 2**30:.1f} GiB of {has:.1f} GiB: {advice}"


def peak_bytes(request: TrainRequest, model: TrainedModel) -> int:
    """Frozen weights, what is learnt with its gradients and moments, and activations."""
    recipe = request.recipe
    item = 4 if recipe.mixed_precision == "no" else 2
    learnt = trained_parameters(request, model)
    # fp32: the number, its gradient, and what the optimiser keeps of each.
    kept = OPTIMIZER_BYTES[recipe.optimizer]
    resolution = recipe.resolution or model.edge
    scale = (
        model.unet_parameters
        / SDXL_UNET_PARAMETERS
        * (resolution**2 / REFERENCE_PIXELS if not model.small else 1.0)
        * (recipe.train_batch_size or 1)
    )
    activations = (CHECKPOINTED_BYTES if recipe.gradient_checkpointing else ACTIVATION_BYTES) * item / 2
    overhead = 0 if model.small else OVERHEAD_BYTES
    frozen = model.unet_parameters + model.beside_parameters
    return int(frozen * item + learnt * (8 + kept) + activations * scale + overhead)


def trained_parameters(request: TrainRequest, model: TrainedModel) -> int:
    """How many numbers the LoRA of the UNet has."""
    if request.kind == "embedding":
        return 0
    rank = request.recipe.rank or 0
    layers = targeted_layers(request.recipe.targets, model.linear_layers)
    return sum(rank * sum(model.linear_layers[layer]) for layer in layers)


def _advice(request: TrainRequest, *, would_fit: bool) -> list[str]:
    recipe = request.recipe
    advice = []
    if would_fit:
        advice.append("have the service lend its memory (DARKROOM_GPU_SHARING=pause)")
    if not recipe.gradient_checkpointing:
        advice.append("set `gradient_checkpointing`")
    if (recipe.train_batch_size or 1) > 1:
        advice.append("set `train_batch_size` to 1 and make up for it by `gradient_accumulation_steps`")
    if recipe.mixed_precision == "no":
        advice.append("set `mixed_precision` to bf16")
    if recipe.optimizer == "adamw" and is_installed("adamw8bit"):
        advice.append("take the optimizer `adamw8bit`")
    if (recipe.rank or 0) > 16:
        advice.append("take a smaller `rank`")
    advice.append("take a smaller `resolution`")
    return advice
