"""A run of `benchmarks.gpu`: how large, on what, with which contenders, and what it has found."""

import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks import full_size, gpu_sides, record
from benchmarks.gpu_sides import EngineSide, Side
from benchmarks.orders import an_order
from benchmarks.report import Row
from service.engine import memory
from service.engine.models import Models
from service.engine.orders import Order


@dataclass(frozen=True)
class Scale:
    """How large everything is: edges in pixels, jobs in steps."""

    sizes: full_size.Sizes
    edge: int
    small_edge: int
    parity_edge: int
    long_job: int
    short_job: int
    timed_steps: int
    mixed_steps: int
    train_steps: int


@dataclass
class Suite:
    """A run: what is measured, on what, and what was found."""

    scale: Scale
    device: torch.device
    dtype: torch.dtype
    rounds: int
    kept: record.Record
    compiling: dict[str, Any] | None = None
    """Options of `torch.compile` for the compiled variants; None leaves these out."""
    compile_seconds: float = 0.0
    rows: list[Row] = field(default_factory=list)
    _sides: dict[str, Side] = field(default_factory=dict)

    @property
    def profile(self) -> memory.MemoryProfile:
        return memory.profile_for("auto", self.device)

    def settle(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def goal(self, value: float) -> float | None:
        """The goal, on the machine that it was set for: one H200."""
        return value if "h200" in record.machine_class(self.device) else None

    def order(self, what: str, number: int, **changes: Any) -> Order:
        """With a prompt of its own: the engine remembers what it has encoded, and diffusers does not."""
        prompt = f"a big red circle above a small green star, {what}, number {number}"
        fields: dict[str, Any] = {"edge": self.scale.edge, "seeds": (number,)}
        return an_order(prompt, **fields | changes)

    def leave_out(self, name: str, reason: str) -> None:
        self.kept.add(name, f"left out: {reason}")
        self.rows.append(Row(name, None, "", note=f"left out: {reason}"))

    def sides(self) -> dict[str, Side]:
        """The contenders, built when they are first asked for."""
        if not self._sides:
            models = full_size.build(self.scale.sizes, device=self.device, dtype=self.dtype)
            self._sides["engine"] = EngineSide(models, self.profile)
            self._sides["plain"] = gpu_sides.plain(models, self.settle)
            for name, prepare in self._optional(models).items():
                try:
                    self._sides[name] = prepare()
                except (gpu_sides.TookTooLong, torch.OutOfMemoryError, RuntimeError) as exc:
                    self.leave_out(name, f"{type(exc).__name__}: {str(exc).splitlines()[0]}")
        return self._sides

    def engine(self) -> EngineSide:
        side = self.sides()["engine"]
        assert isinstance(side, EngineSide)
        return side

    def free(self) -> None:
        """Give back what the contenders hold of the device."""
        for side in self._sides.values():
            side.close()
        self._sides.clear()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _optional(self, models: Models) -> dict[str, Callable[[], Side]]:
        """Variants that a small card or an impatient caller goes without."""
        found: dict[str, Callable[[], Side]] = {
            "recommended": lambda: gpu_sides.recommended(models, self.settle)
        }
        if self.compiling is not None:
            found["recommended_compiled"] = lambda: self._warmed(
                gpu_sides.recommended(models, self.settle, compiling=self.compiling)
            )
            found["engine_compiled"] = lambda: self._warmed(
                gpu_sides.engine_compiled(models, self.profile, self._regional())
            )
        return found

    def _regional(self) -> dict[str, Any]:
        """Of the compile options those that suit repeated blocks: no CUDA graphs, which would be one a block."""
        return {name: value for name, value in (self.compiling or {}).items() if name != "mode"}

    def _warmed(self, side: Side) -> Side:
        with gpu_sides.at_most(self.compile_seconds):
            side.job(self.order("warming up", 0, steps=self.scale.timed_steps))
        return side
