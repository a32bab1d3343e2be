"""What a stack of LoRAs comes to: which layers are written, and with what, before a weight is touched.

Shapes: n layers of a merge, O outputs, I inputs, r rank, R the ranks of several LoRAs together.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from lora_registry.records import Component
from service.engine.loras.arranged import Run
from service.engine.loras.changes import Change
from service.engine.loras.groups import Group
from service.engine.loras.stacks import Part, Stack, block_factor


@dataclass(frozen=True, eq=False)
class Merge:
    """W0 + alpha · up @ down for neighbouring linear layers, in one call."""

    group: Group
    first: int
    up_nOr: torch.Tensor
    down_nrI: torch.Tensor
    alpha: float

    def into(self, live: torch.Tensor) -> None:
        end = self.first + len(self.up_nOr)
        pristine = self.group.pristine[self.first : end]
        if pristine.device != live.device:
            live.copy_(pristine, non_blocking=True)
            pristine = live
        torch.baddbmm(pristine, self.up_nOr, self.down_nrI, alpha=self.alpha, out=live)

    @property
    def places(self) -> range:
        return range(self.first, self.first + len(self.up_nOr))

    @property
    def size_bytes(self) -> int:
        return self.up_nOr.nbytes + self.down_nrI.nbytes


@dataclass(frozen=True, eq=False)
class Sum:
    """W0 + Σ s·ΔW of a single layer, whatever the algorithms: summed in float32, rounded once."""

    group: Group
    index: int
    terms: tuple[tuple[float, Change], ...]

    def into(self, live: torch.Tensor) -> None:
        pristine = self.group.pristine[self.index].to(live.device).float()
        total = pristine.clone()
        for weight, change in self.terms:
            total.add_(change.delta(pristine), alpha=weight)
        live.copy_(total.unsqueeze(0))

    @property
    def places(self) -> range:
        return range(self.index, self.index + 1)

    @property
    def size_bytes(self) -> int:
        return sum(change.size_bytes for _, change in self.terms)


@dataclass(frozen=True, eq=False)
class Copy:
    """What a write came to, kept."""

    group: Group
    places: range
    values: torch.Tensor

    def into(self, live: torch.Tensor) -> None:
        live.copy_(self.values)


@dataclass(frozen=True, eq=False)
class Plan:
    """What a stack comes to, before a weight is touched."""

    writes: tuple[Merge | Sum, ...] = ()
    touched: Mapping[Group, frozenset[int]] = field(default_factory=dict)
    copies: tuple[Copy, ...] = ()
    """The same in values, once they are kept."""

    @property
    def size_bytes(self) -> int:
        return sum(copy.values.nbytes for copy in self.copies) + sum(w.size_bytes for w in self.writes)

    def with_copies(self) -> "Plan":
        """The plan that is in force now, with what its writes came to."""
        copies = tuple(Copy(w.group, w.places, live_of(w).clone()) for w in self.writes)
        return replace(self, copies=copies)


def live_of(write: Merge | Sum | Copy) -> torch.Tensor:
    """The live weights that a write is for."""
    return write.group.live[write.places.start : write.places.stop]


def planned(groups: Sequence[Group], component: Component, stack: Stack) -> Plan:
    """Who writes what. A group in which any layer needs a sum is summed layer by layer throughout."""
    runs: dict[int, list[tuple[Part, Run]]] = defaultdict(list)
    summed: dict[int, dict[int, list[tuple[float, Change]]]] = defaultdict(lambda: defaultdict(list))
    for part in stack:
        changes = part.adapter.components[component]
        for run in changes.runs:
            runs[run.group].append((part, run))
        for place, change in changes.singles:
            weight = part.weight * block_factor(part.blocks, groups[place.group].names[place.at])
            summed[place.group][place.at].append((weight, change))
    writes: list[Merge | Sum] = []
    for number, found in runs.items():
        group = groups[number]
        if group.is_linear and number not in summed:
            writes += _merges(group, found)
            continue
        for part, run in found:
            for at, (up, down) in enumerate(zip(run.up_nOr, run.down_nrI, strict=True), run.first):
                weight = part.weight * block_factor(part.blocks, group.names[at])
                summed[number][at].append((weight, Change("lora", 1.0, {"up": up, "down": down})))
    for number, layers in summed.items():
        writes += [Sum(groups[number], index, tuple(terms)) for index, terms in layers.items()]
    touched: dict[Group, set[int]] = defaultdict(set)
    for write in writes:
        touched[write.group].update(write.places)
    return Plan(tuple(writes), {group: frozenset(places) for group, places in touched.items()})


def _merges(group: Group, found: Sequence[tuple[Part, Run]]) -> Iterator[Merge]:
    """One merge for each stretch of layers; runs of several LoRAs that overlap become one of the sum of their ranks."""
    stretch: list[tuple[Part, Run]] = []
    for part, run in sorted(found, key=lambda item: item[1].first):
        if stretch and run.first >= max(other.end for _, other in stretch):
            yield from _merge(group, stretch)
            stretch = []
        stretch.append((part, run))
    yield from _merge(group, stretch)


def _merge(group: Group, stretch: Sequence[tuple[Part, Run]]) -> Iterator[Merge]:
    first = min(run.first for _, run in stretch)
    if len(stretch) == 1:
        ((part, run),) = stretch
        factors = _factors(part, group, run)
        if len(set(factors)) == 1:
            if factors[0]:
                yield Merge(group, first, run.up_nOr, run.down_nrI, part.weight * factors[0])
            return
    layers = max(run.end for _, run in stretch) - first
    rank = sum(run.down_nrI.shape[1] for _, run in stretch)
    some = stretch[0][1]
    up_nOR = some.up_nOr.new_zeros(layers, some.up_nOr.shape[1], rank)
    down_nRI = some.down_nrI.new_zeros(layers, rank, some.down_nrI.shape[2])
    at = 0
    for part, run in stretch:
        here, ranks = slice(run.first - first, run.end - first), slice(at, at + run.down_nrI.shape[1])
        weights = run.up_nOr.new_tensor([part.weight * factor for factor in _factors(part, group, run)])
        torch.mul(run.up_nOr, weights[:, None, None], out=up_nOR[here, :, ranks])
        down_nRI[here, ranks] = run.down_nrI
        at = ranks.stop
    yield Merge(group, first, up_nOR, down_nRI, 1.0)


def _factors(part: Part, group: Group, run: Run) -> list[float]:
    if not part.blocks:
        return [1.0] * len(run.up_nOr)
    return [block_factor(part.blocks, name) for name in group.names[run.first : run.end]]
