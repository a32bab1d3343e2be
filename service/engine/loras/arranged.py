"""An adapter laid out for its model: neighbouring layers of one shape are stacked, so that a swap is few calls.

Shapes: n layers of a run, O outputs, I inputs (of a convolution times its kernel), r rank.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from lora_registry.records import Component
from service.engine.loras.changes import Change
from service.engine.loras.files import Adapter
from service.errors import IncompatibleLora

Vectors = Mapping[Component, torch.Tensor]
"""(vectors, width) for each text encoder that has some."""


class Place(NamedTuple):
    """Where a layer's weight is: the `at`-th of the stacked weights of a group."""

    group: int
    at: int


Layout = Mapping[Component, Mapping[str, Place]]
"""By component and layer name."""


@dataclass(frozen=True, eq=False)
class Run:
    """Plain LoRA of layers that lie next to each other in a group: ΔW = up @ down, alpha and rank baked in."""

    group: int
    first: int
    up_nOr: torch.Tensor
    down_nrI: torch.Tensor

    @property
    def end(self) -> int:
        return self.first + len(self.up_nOr)


@dataclass(frozen=True, eq=False)
class Changes:
    """What an adapter does to one component: runs, and what is no plain LoRA, layer by layer."""

    runs: tuple[Run, ...]
    singles: tuple[tuple[Place, Change], ...]


@dataclass(frozen=True, eq=False)
class Arranged:
    """An adapter that is ready to be put in force. Immutable; shared by all who use it."""

    digest: str
    components: Mapping[Component, Changes]
    embeddings: Mapping[str, Vectors]
    """By token; "" where the file names none."""

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self._tensors())

    def to(self, device: torch.device) -> "Arranged":
        """The same on a device; itself if it is there."""
        if all(tensor.device == device for tensor in self._tensors()):
            return self
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> "Arranged":
        """The same in page-locked memory, from which a device is fed without waiting."""
        return self._mapped(torch.Tensor.pin_memory)

    def _mapped(self, moved: Callable[[torch.Tensor], torch.Tensor]) -> "Arranged":
        components = {
            component: Changes(
                tuple(Run(r.group, r.first, moved(r.up_nOr), moved(r.down_nrI)) for r in changes.runs),
                tuple((place, change.mapped(moved)) for place, change in changes.singles),
            )
            for component, changes in self.components.items()
        }
        embeddings = {
            token: {component: moved(tensor) for component, tensor in vectors.items()}
            for token, vectors in self.embeddings.items()
        }
        return Arranged(self.digest, components, embeddings)

    def _tensors(self) -> Iterator[torch.Tensor]:
        for changes in self.components.values():
            for run in changes.runs:
                yield from (run.up_nOr, run.down_nrI)
            for _, change in changes.singles:
                yield from change.tensors.values()
        for vectors in self.embeddings.values():
            yield from vectors.values()


def arrange(adapter: Adapter, layout: Layout) -> Arranged:
    """The adapter for a model of that layout.

    Raises:
        IncompatibleLora: it changes a layer that the model does not have.
    """
    components: dict[Component, Changes] = {}
    for component, changes in adapter.changes.items():
        places = layout.get(component, {})
        unknown = [name for name in changes if name not in places]
        if unknown:
            raise IncompatibleLora(
                f"{adapter.digest} changes {len(unknown)} layers of {component} that this model does not have, "
                f"first '{unknown[0]}'"
            )
        if changes:
            components[component] = _changes({places[name]: change for name, change in changes.items()})
    return Arranged(adapter.digest, components, adapter.embeddings)


def _changes(by_place: Mapping[Place, Change]) -> Changes:
    runs: list[Run] = []
    singles: list[tuple[Place, Change]] = []
    neighbours: list[tuple[Place, torch.Tensor, torch.Tensor]] = []
    for place, change in sorted(by_place.items(), key=lambda item: item[0]):
        pair = change.pair
        if pair is None:
            singles.append((place, change))
            continue
        up, down = pair
        if neighbours and not _continues(neighbours[-1], place, up):
            runs.append(_run(neighbours))
            neighbours = []
        neighbours.append((place, up, down))
    if neighbours:
        runs.append(_run(neighbours))
    return Changes(tuple(runs), tuple(singles))


def _continues(last: tuple[Place, torch.Tensor, torch.Tensor], place: Place, up: torch.Tensor) -> bool:
    before, last_up, _ = last
    return (before.group, before.at + 1) == place and up.shape == last_up.shape


def _run(neighbours: Sequence[tuple[Place, torch.Tensor, torch.Tensor]]) -> Run:
    up = torch.stack([up for _, up, _ in neighbours])
    down = torch.stack([down for _, _, down in neighbours])
    first = neighbours[0][0]
    return Run(first.group, first.at, up, down)
