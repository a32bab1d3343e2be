"""The live weights of one component: W = W0 + Σ s·ΔW, always written from the pristine copy W0.

Nothing is ever subtracted, so A, B, A gives A's bits again and the base comes back exactly. Linear layers of one shape
and role are views of one stacked tensor: a swap of a LoRA is one `baddbmm` for each run of neighbouring layers, and no
address changes, so compiled code stays valid.

Shapes: N layers of a group, O outputs, I inputs, r rank.
"""

import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Final

import torch
from torch import nn

from lora_registry import faults
from lora_registry.records import Component
from service.engine.arranged import Place, Run
from service.engine.changes import Change
from service.engine.stacks import EMPTY, Part, Stack, block_factor, detached
from service.errors import OutOfDeviceMemory, SwapFailed, WeightsLost


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

    def restore(self, first: int, end: int) -> None:
        """Write W0 into the layers from `first` to before `end`."""
        if (
            self.was_changed
        ):  # else a change failed before its first number was written, perhaps for lack of memory
            self.live[first:end].copy_(self.pristine[first:end], non_blocking=True)


@dataclass(frozen=True, eq=False)
class _Merge:
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
class _Sum:
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
class _Copy:
    """What a write came to, kept."""

    group: Group
    places: range
    values: torch.Tensor

    def into(self, live: torch.Tensor) -> None:
        live.copy_(self.values)


@dataclass(frozen=True, eq=False)
class _Plan:
    """What a stack comes to, before a weight is touched."""

    writes: tuple[_Merge | _Sum, ...] = ()
    touched: Mapping[Group, frozenset[int]] = field(default_factory=dict)
    copies: tuple[_Copy, ...] = ()
    """The same in values, once they are kept."""

    @property
    def size_bytes(self) -> int:
        return sum(copy.values.nbytes for copy in self.copies) + sum(w.size_bytes for w in self.writes)

    def with_copies(self) -> "_Plan":
        """The plan that is in force now, with what its writes came to."""
        copies = tuple(_Copy(w.group, w.places, _live(w).clone()) for w in self.writes)
        return replace(self, copies=copies)


_PRISTINE = _Plan()
_REMEMBERED: Final = 64
"""Stacks that are known to have been in force once."""
_ROUNDINGS: Final = 16
"""How far, in roundings of the largest number, a merge that is computed again may lie from the first."""


class _Known:
    """Plans with copies, of stacks that were in force at least twice; least recently used first out, by bytes.

    Two stacks that alternate, or a LoRA that many requests ask for in turn, are then copied and not computed.
    """

    def __init__(self, budget_bytes: int) -> None:
        self._budget_bytes = budget_bytes
        self._once: OrderedDict[Stack, None] = OrderedDict()
        self._plans: OrderedDict[Stack, _Plan] = OrderedDict()
        self._size_bytes = 0

    def get(self, stack: Stack) -> _Plan | None:
        if stack in self._plans:
            self._plans.move_to_end(stack)
        return self._plans.get(stack)

    def keep(self, stack: Stack, plan: _Plan) -> None:
        """The plan that has just been put in force for this stack."""
        if not self._budget_bytes or plan.copies or not plan.writes:
            return
        key = detached(stack)
        if key not in self._once:
            self._once[key] = None
            if len(self._once) > _REMEMBERED:
                self._once.popitem(last=False)
            return
        self._plans[key] = plan = plan.with_copies()
        self._size_bytes += plan.size_bytes
        while self._size_bytes > self._budget_bytes:
            _, dropped = self._plans.popitem(last=False)
            self._size_bytes -= dropped.size_bytes


class Weights:
    """All linear and convolutional weights of a module, which may be bent by a stack of LoRAs at a time.

    Make it once for a module, after that is on its device: it puts the weights of one shape into one tensor. It
    belongs to the engine's thread; `layout` and `blocks` may be read by any. `pristine_on` says where W0 is kept:
    by default on the module's device. `kept_bytes` of weights under stacks that come again are kept, too.
    """

    def __init__(
        self,
        component: Component,
        module: nn.Module,
        *,
        pristine_on: torch.device | None = None,
        kept_bytes: int = 0,
    ) -> None:
        self._component: Component = component
        self._groups = tuple(_stacked(module, pristine_on))
        self.layout: Mapping[str, Place] = {
            name: Place(number, index)
            for number, group in enumerate(self._groups)
            for index, name in enumerate(group.names)
        }
        """Where each layer is."""
        self.blocks = frozenset(beginning for name in self.layout for beginning in _beginnings(name))
        """Every name that a block weight may have."""
        self.in_force: Stack = EMPTY
        self._plan = _PRISTINE
        self._known = _Known(kept_bytes)

    def apply(self, stack: Stack) -> bool:
        """Bring the weights to `stack`; whether anything had to be written. On failure the stack before stays in force.

        Raises:
            OutOfDeviceMemory, SwapFailed: nothing has changed.
            WeightsLost: not even the stack before could be written again.
        """
        if stack == self.in_force:
            return False
        try:
            faults.point("swap.plan")
            plan = self._known.get(stack) or self._planned(stack)
            try:
                self._write(plan, instead_of=self._plan)
            except BaseException:
                self._go_back_from(plan)
                raise
        except torch.OutOfMemoryError as exc:
            raise OutOfDeviceMemory("the LoRAs do not fit into the device's memory beside the model") from exc
        except (RuntimeError, OSError) as exc:
            raise SwapFailed("the LoRAs could not be put in force; nothing was changed") from exc
        self.in_force, self._plan = stack, plan
        self._known.keep(stack, plan)
        return True

    @contextmanager
    def applied(self, stack: Stack) -> Iterator[None]:
        """`stack` in force inside the block, and the pristine weights after it."""
        try:
            self.apply(stack)
            yield
        finally:
            self.apply(EMPTY)

    @property
    def addresses(self) -> set[int]:
        """Where the live weights lie in memory."""
        return {weight.data_ptr() for group in self._groups for weight in group.live}

    def pristine(self) -> Iterator[tuple[str, torch.Tensor]]:
        """W0 of every layer by name: the copy where there is one, else the live weight."""
        for group in self._groups:
            tensor = group.pristine if group.was_changed else group.live
            yield from zip(group.names, tensor, strict=True)

    def pristine_of(self, layer: str) -> torch.Tensor:
        """A copy of W0 of one layer, on the CPU."""
        place = self.layout[layer]
        group = self._groups[place.group]
        source = group.pristine if group.was_changed else group.live
        return source[place.at].detach().to("cpu", copy=True)

    def unsound(self) -> list[str]:
        """Names of layers whose live weight is not what W0 and the stack in force say it must be.

        Bit for bit where no LoRA is in force, and within some roundings where one is: a library may multiply the same
        matrices in another order when they lie elsewhere in memory.
        """
        wrong: list[str] = []
        for write in self._plan.writes:
            live = _live(write)
            expected = torch.empty_like(live)
            write.into(expected)
            names = write.group.names[write.places.start : write.places.stop]
            layers = zip(names, expected, live, strict=True)
            wrong += [name for name, one, other in layers if not _are_close(one, other)]
        for group in self._groups:
            if not group.was_changed:
                continue
            touched = self._plan.touched.get(group, frozenset())
            for place, name in enumerate(group.names):
                if place not in touched:
                    pristine = group.pristine[place].to(group.live.device)
                    wrong += [] if torch.equal(pristine, group.live[place]) else [name]
        return wrong

    def _planned(self, stack: Stack) -> _Plan:
        """Who writes what. A group in which any layer needs a sum is summed layer by layer throughout."""
        runs: dict[int, list[tuple[Part, Run]]] = defaultdict(list)
        summed: dict[int, dict[int, list[tuple[float, Change]]]] = defaultdict(lambda: defaultdict(list))
        for part in stack:
            changes = part.adapter.components[self._component]
            for run in changes.runs:
                runs[run.group].append((part, run))
            for place, change in changes.singles:
                weight = part.weight * block_factor(part.blocks, self._groups[place.group].names[place.at])
                summed[place.group][place.at].append((weight, change))
        writes: list[_Merge | _Sum] = []
        for number, found in runs.items():
            group = self._groups[number]
            if group.is_linear and number not in summed:
                writes += _merges(group, found)
                continue
            for part, run in found:
                for at, (up, down) in enumerate(zip(run.up_nOr, run.down_nrI, strict=True), run.first):
                    weight = part.weight * block_factor(part.blocks, group.names[at])
                    summed[number][at].append((weight, Change("lora", 1.0, {"up": up, "down": down})))
        for number, layers in summed.items():
            writes += [_Sum(self._groups[number], index, tuple(terms)) for index, terms in layers.items()]
        touched: dict[Group, set[int]] = defaultdict(set)
        for write in writes:
            touched[write.group].update(write.places)
        return _Plan(tuple(writes), {group: frozenset(places) for group, places in touched.items()})

    def _go_back_from(self, plan: _Plan) -> None:
        """Write the stack before once more, from W0 as ever, so that whatever was half done is gone."""
        try:
            self._write(self._plan, instead_of=plan)
        except Exception as exc:
            raise WeightsLost("the weights are in no known state") from exc

    def _write(self, plan: _Plan, *, instead_of: _Plan) -> None:
        for group, places in instead_of.touched.items():
            for first, end in _runs_of(places - plan.touched.get(group, frozenset())):
                faults.point("swap.restore")
                group.restore(first, end)
        for write in plan.copies or plan.writes:
            faults.point("swap.write")
            write.into(_live(write))


def _are_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    allowed = _ROUNDINGS * torch.finfo(one.dtype).eps * float(one.abs().max())
    return bool((one.float() - other.float()).abs().max() <= allowed)  # not so if either has a NaN


def _live(write: _Merge | _Sum | _Copy) -> torch.Tensor:
    return write.group.live[write.places.start : write.places.stop]


def _merges(group: Group, found: Sequence[tuple[Part, Run]]) -> Iterator[_Merge]:
    """One merge for each stretch of layers; runs of several LoRAs that overlap become one of the sum of their ranks."""
    stretch: list[tuple[Part, Run]] = []
    for part, run in sorted(found, key=lambda item: item[1].first):
        if stretch and run.first >= max(other.end for _, other in stretch):
            yield from _merge(group, stretch)
            stretch = []
        stretch.append((part, run))
    yield from _merge(group, stretch)


def _merge(group: Group, stretch: Sequence[tuple[Part, Run]]) -> Iterator[_Merge]:
    first = min(run.first for _, run in stretch)
    if len(stretch) == 1:
        ((part, run),) = stretch
        factors = _factors(part, group, run)
        if len(set(factors)) == 1:
            if factors[0]:
                yield _Merge(group, first, run.up_nOr, run.down_nrI, part.weight * factors[0])
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
    yield _Merge(group, first, up_nOR, down_nRI, 1.0)


def _factors(part: Part, group: Group, run: Run) -> list[float]:
    if not part.blocks:
        return [1.0] * len(run.up_nOr)
    return [block_factor(part.blocks, name) for name in group.names[run.first : run.end]]


def _stacked(module: nn.Module, pristine_on: torch.device | None) -> Iterator[Group]:
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


def _beginnings(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _runs_of(places: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together, as (first, end)."""
    for _, run in groupby(enumerate(sorted(places)), key=lambda item: item[1] - item[0]):
        found = [place for _, place in run]
        yield found[0], found[-1] + 1


def _is_pinned(pristine_on: torch.device, live: torch.Tensor) -> bool:
    return pristine_on.type == "cpu" and live.device.type == "cuda"
