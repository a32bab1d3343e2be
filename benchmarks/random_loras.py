"""LoRAs with random numbers: what a swap costs does not depend on what was learnt."""

import torch

from service.engine.models import Models

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


def random_lora(
    loaded: Models, seed: int, *, rank: int, attention_only: bool = True
) -> dict[str, torch.Tensor]:
    """The attention, or all linear layers, of the base UNet, random, as diffusers writes them; float16."""
    generator = torch.Generator(loaded.device).manual_seed(seed)
    tensors = {}
    for name, pristine in loaded.weights["unet"].pristine():
        if pristine.ndim == 2 and (not attention_only or name.endswith(ATTENTION)):
            outputs, inputs = pristine.shape
            for role, shape, size in (("A", (rank, inputs), 1.0), ("B", (outputs, rank), 0.02)):
                values = torch.randn(shape, generator=generator, device=loaded.device) * size
                tensors[f"unet.{name}.lora_{role}.weight"] = values.half().cpu()
    return tensors
