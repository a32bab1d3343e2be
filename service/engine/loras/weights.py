"""The live weights of one component: W = W0 + Σ s·ΔW, always written from the pristine copy W0.

Nothing is ever subtracted, so A, B, A gives A's bits again and the base comes back exactly. No address changes, so
compiled code stays valid.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import groupby
from typing import Final

import torch
from torch import nn

from lora_registry import faults
from lora_registry.records import Component
from service.engine.loras.arranged import Place
from service.engine.loras.groups import stacked
from service.engine.loras.plans import Plan, live_of, planned
from service.engine.loras.stacks import EMPTY, Stack, detached
from service.errors import OutOfDeviceMemory, SwapFailed, WeightsLost

_PRISTINE = Plan()
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
        self._plans: OrderedDict[Stack, Plan] = OrderedDict()
        self._size_bytes = 0

    def get(self, stack: Stack) -> Plan | None:
        if stack in self._plans:
            self._plans.move_to_end(stack)
        return self._plans.get(stack)

    def clear(self) -> None:
        """Let all of them go."""
        self._once.clear()
        self._plans.clear()
        self._size_bytes = 0

    def keep(self, stack: Stack, plan: Plan) -> None:
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
        self._groups = tuple(stacked(module, pristine_on))
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
            plan = self._known.get(stack) or planned(self._groups, self._component, stack)
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

    def lay_bare(self) -> None:
        """The pristine weights in force, and nothing beside them: no copy of them, and of nothing else."""
        self.apply(EMPTY)
        self._known.clear()
        for group in self._groups:
            group.forget()

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
            live = live_of(write)
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

    def _go_back_from(self, plan: Plan) -> None:
        """Write the stack before once more, from W0 as ever, so that whatever was half done is gone."""
        try:
            self._write(self._plan, instead_of=plan)
        except Exception as exc:
            raise WeightsLost("the weights are in no known state") from exc

    def _write(self, plan: Plan, *, instead_of: Plan) -> None:
        for group, places in instead_of.touched.items():
            for first, end in _runs_of(places - plan.touched.get(group, frozenset())):
                faults.point("swap.restore")
                group.restore(first, end)
        for write in plan.copies or plan.writes:
            faults.point("swap.write")
            write.into(live_of(write))


def _are_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    allowed = _ROUNDINGS * torch.finfo(one.dtype).eps * float(one.abs().max())
    return bool((one.float() - other.float()).abs().max() <= allowed)  # not so if either has a NaN


def _beginnings(name: str) -> Iterator[str]:
    parts = name.split(".")
    return (".".join(parts[: count + 1]) for count in range(len(parts)))


def _runs_of(places: Iterable[int]) -> Iterator[tuple[int, int]]:
    """Neighbours together, as (first, end)."""
    for _, run in groupby(enumerate(sorted(places)), key=lambda item: item[1] - item[0]):
        found = [place for _, place in run]
        yield found[0], found[-1] + 1
