"""A module's linear layers of one shape and role as views of one stacked tensor, so that many are written in one call.

Shapes: N layers of a group, O outputs, I inputs.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import nn


class Group:
    """Weights of one shape in one tensor, (N, O, I) or (1, O, I, k, k), and their pristine copy once one is changed."""

    def __init__(self, live: torch.Tensor, names: Sequence[str], pristine_on: torch.device) -> None:
        self.live = live
        self.names = tuple(names)
        self._pristine_on = pristine_on
        self._pristine: torch.Tensor | None = None

    @property
    def is_linear(self) -> bool:
        return self.live.ndim == 3

    @property
    def pristine(self) -> torch.Tensor:
        """W0. Copied from the live weights at the first look, which must come before the first change."""
        if self._pristine is None:
            copy = torch.empty_like(
                self.live, device=self._pristine_on, pin_memory=_is_pinned(self._pristine_on, self.live)
            )
            self._pristine = copy.copy_(self.live)
        return self._pristine

    @property
    def was_changed(self) -> bool:
        return self._pristine is not None

    def forget(self) -> None:
        """Let the pristine copy go; the live weights must be as it is."""
        self._pristine = None

    def restore(self, first: int, end: int) -> None:
        """Write W0 into the layers from `first` to before `end`."""
        if (
            self.was_changed
        ):  # else a change failed before its first number was written, perhaps for lack of memory
            self.live[first:end].copy_(self.pristine[first:end], non_blocking=True)


def stacked(module: nn.Module, pristine_on: torch.device | None) -> Iterator[Group]:
    """The module's layers in groups; from now on a linear layer's weight is a view of its group's tensor."""
    linear: dict[tuple[torch.Size, str], dict[str, nn.Linear]] = defaultdict(dict)
    for name, layer in module.named_modules():
        if isinstance(layer, nn.Linear):
            linear[layer.weight.shape, _role(name)][_full_name(name)] = layer
        elif isinstance(layer, nn.Conv2d):
            live = layer.weight.detach().unsqueeze(0)
            yield Group(live, [_full_name(name)], pristine_on or live.device)
    for layers in linear.values():
        live = torch.stack([layer.weight.detach() for layer in layers.values()])
        for layer, weight in zip(layers.values(), live, strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
        yield Group(live, list(layers), pristine_on or live.device)


def _role(name: str) -> str:
    """What a layer is in its block (`attn1.to_q`): LoRAs have all layers of a role or none."""
    return re.split(r"\.\d+\.", name)[-1]


def _full_name(name: str) -> str:
    """transformers 5 has text encoders without the `text_model` that files, and the registry, name."""
    return f"text_model.{name}" if name.startswith("encoder.") else name


def _is_pinned(pristine_on: torch.device, live: torch.Tensor) -> bool:
    return pristine_on.type == "cpu" and live.device.type == "cuda"
