"""Whether the weights in memory are still the ones that were loaded, to the bit.

Sums of the raw words of every parameter are taken once, when the weights are loaded, and again whenever somebody asks;
for layers that a LoRA may bend they are of the pristine copy, and the live weights are compared with what the copy and
the LoRAs in force say. A sum counts rows by their place, so it sees flipped bits, swapped rows and swapped tensors.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from service.engine.models import Models

_WORDS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class Audit:
    """What an inspection of the weights found."""

    damaged: tuple[str, ...]
    """Tensors that are not as they were loaded: `unet.conv_in.weight`."""

    @property
    def sound(self) -> bool:
        return not self.damaged


class Auditor:
    """Remembers the sums of a model's weights. Both its making and `inspect` belong to the engine's thread."""

    def __init__(self, models: Models) -> None:
        self._models = models
        self._sums = dict(self._summed())

    @torch.inference_mode()
    def inspect(self) -> Audit:
        """The names of all tensors that have changed since."""
        damaged = [name for name, total in self._summed() if total != self._sums[name]]
        for component, weights in self._models.weights.items():
            damaged += [f"{component}.{name}.weight" for name in weights.unsound()]
        return Audit(tuple(dict.fromkeys(damaged)))

    def _summed(self) -> Iterator[tuple[str, int]]:
        names, sums = [], []
        for name, tensor in self._tensors():
            names.append(name)
            sums.append(_sum_of_words(tensor.detach()))
        device = self._models.device
        return zip(names, torch.stack([total.to(device) for total in sums]).tolist(), strict=True)

    def _tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        models = self._models
        bendable: set[int] = set()
        for component, weights in models.weights.items():
            bendable |= weights.addresses
            yield from ((f"{component}.{name}.weight", tensor) for name, tensor in weights.pristine())
        modules = {
            "unet": models.unets["base"],
            "text_encoder": models.text_encoder,
            "text_encoder_2": models.text_encoder_2,
            "vae": models.vae,
        }
        if models.has_refiner:
            modules["refiner"] = models.unets["refiner"]
        for part, module in modules.items():
            for name, tensor in module.state_dict().items():
                if tensor.data_ptr() not in bendable:
                    yield f"{part}.{name}", tensor


def _sum_of_words(tensor: torch.Tensor) -> torch.Tensor:
    """() int64, of the words of each row times its place."""
    words = tensor.contiguous().view(_WORDS[tensor.element_size()])
    rows = words.flatten(1).sum(1, dtype=torch.int64) if words.ndim > 1 else words.flatten().to(torch.int64)
    return (rows * torch.arange(1, len(rows) + 1, device=rows.device)).sum()
