"""The unit of work: one evaluation of a UNet."""

from dataclasses import dataclass

import torch

from service.engine.conditioning import Branch
from service.engine.loras.stacks import EMPTY, Stack
from service.engine.models import UNetName


@dataclass(frozen=True, eq=False)
class Row:
    """One UNet evaluation that a trajectory asks for."""

    unet: UNetName
    latents: torch.Tensor
    """(1, C, H/f, W/f), already scaled for the UNet."""
    timestep: torch.Tensor
    """() on the CPU."""
    branch: Branch
    pixels: int
    """Of the final image, by which cost and memory are reckoned."""
    stack: Stack = EMPTY
    """The LoRAs that must be in force; always empty for the refiner."""
    owner: object = None
    """Named: only rows of the same owner may share a forward pass with it."""

    @property
    def kind(self) -> tuple[UNetName, Stack, torch.Size, int, object]:
        """Rows of one kind may share a forward pass."""
        return self.unet, self.stack, self.latents.shape, self.branch.prompt_embeds.shape[1], self.owner
