"""Swapping LoRAs on the pocket model: the engine beside `load_lora_weights` + `unload_lora_weights` and `set_adapters`.

Both sides have the same two attention LoRAs of rank 8 as files in a registry's folder, and one thread.
"""

import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import save

from benchmarks.interleave import interleave, wall
from benchmarks.orders import an_order
from benchmarks.random_loras import random_lora
from benchmarks.report import Row, row, times_as_fast
from lora_registry import BaseModel, LoraVersion, Registry
from lora_registry.disk_cache import DiskCache
from service.engine import memory, models, presets
from service.engine.conditioning import Conditioner
from service.engine.loop import StepLoop
from service.engine.loras.arranged import Arranged
from service.engine.loras.residency import HostResidency
from service.engine.loras.stacks import EMPTY, Part, Stack, Stacks
from service.engine.models import Models
from service.engine.orders import LoraOrder, Order
from service.engine.trajectory import Trajectory

RANK = 8
STEPS = 20


def lora_file(loaded: Models, seed: int) -> bytes:
    """One of all attention layers, as a file."""
    return bytes(save(random_lora(loaded, seed, rank=RANK)))


@dataclass(frozen=True)
class Ours:
    """The engine's parts, with both LoRAs published."""

    loaded: Models
    registry: Registry
    folder: Path
    versions: tuple[LoraVersion, ...]

    def residency(self, budget_bytes: int, disk: DiskCache | None = None) -> HostResidency:
        return HostResidency(
            lambda: self.registry,
            self.loaded.layout,
            dtype=self.loaded.dtype,
            budget_bytes=budget_bytes,
            disk=disk,
        )

    def stack(self, adapter: Arranged) -> Stack:
        return (Part(adapter.digest, 1.0, (), adapter),)

    def from_file(self, *, arranged: bool) -> Callable[[int], object]:
        """Resolve, read, check and put in force: a LoRA's own file as for one that nobody has used yet, or, as for one
        that has left the memory, what was kept on the disk when it was used first."""
        nothing_kept = self.residency(0, DiskCache(self.folder / "arranged", 1 << 30) if arranged else None)

        def swap(number: int) -> None:
            version = self.registry.resolve(self.versions[number % 2].name)
            adapter = nothing_kept.fetch(version.digest).adapter
            self.loaded.weights["unet"].apply(self.stack(adapter))

        return swap

    def from_memory(self) -> Callable[[int], object]:
        """The same for one that is in the host's memory."""
        kept = self.residency(1 << 30)

        def swap(number: int) -> None:
            adapter = kept.fetch(self.versions[number % 2].digest).adapter
            self.loaded.weights["unet"].apply(self.stack(adapter))

        return swap


@dataclass(frozen=True)
class Stock:
    """A stock pipeline, and the same files."""

    pipeline: StableDiffusionXLPipeline
    files: tuple[Path, ...]

    def load_and_unload(self, number: int) -> None:
        """What its documentation says to do for another LoRA."""
        file = self.files[number % 2]
        self.pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name="it")
        self.pipeline.unload_lora_weights()

    @contextmanager
    def both_loaded(self) -> Iterator[None]:
        for place, file in enumerate(self.files):
            self.pipeline.load_lora_weights(file.parent, weight_name=file.name, adapter_name=f"a{place}")
        yield
        self.pipeline.unload_lora_weights()

    def set_adapters(self, number: int) -> None:
        self.pipeline.set_adapters(f"a{number % 2}")


@contextmanager
def contenders() -> Iterator[tuple[Ours, Stock]]:
    """Both sides, on weights of their own."""
    loaded = models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        base = BaseModel.from_folder("pocket SDXL", Path(presets.POCKET.base))  # type: ignore[arg-type]
        with Registry.connect([base], data=folder / "registry") as registry:
            versions, files = [], []
            for seed in (1, 2):
                data = lora_file(loaded, seed)
                versions.append(registry.publish(f"lora-{seed}", io.BytesIO(data)))
                files.append(folder / f"lora-{seed}.safetensors")
                files[-1].write_bytes(data)
            pipeline = StableDiffusionXLPipeline.from_pretrained(presets.POCKET.base, variant="fp16")
            yield Ours(loaded, registry, folder, tuple(versions)), Stock(pipeline, tuple(files))


def measure(rounds: int) -> tuple[dict[str, Any], list[Row]]:
    """Figures for the record, and a row for each promise."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with contenders() as (ours, stock):
            return _measured(ours, stock, rounds)
    finally:
        torch.set_num_threads(before)


def _measured(ours: Ours, stock: Stock, rounds: int) -> tuple[dict[str, Any], list[Row]]:
    swaps = interleave(
        {
            "engine_from_new_file": wall(ours.from_file(arranged=False)),
            "engine_from_disk": wall(ours.from_file(arranged=True)),
            "engine_from_memory": _repeated(ours.from_memory(), 20),
            "load_and_unload": wall(stock.load_and_unload),
        },
        rounds,
    )
    with stock.both_loaded():
        toggles = interleave(
            {
                "engine_from_memory": _repeated(ours.from_memory(), 20),
                "set_adapters": wall(stock.set_adapters),
            },
            rounds,
        )
    steps = interleave(_steps(ours), max(rounds, 5))
    same = _a_b_a(ours)
    figures = {
        "job": f"pocket model, all attention layers, rank {RANK}, float16 file, one thread",
        "file_bytes": ours.versions[0].size_bytes,
        "swaps": swaps.figures("engine_from_memory"),
        "toggles": toggles.figures("engine_from_memory"),
        "job_of_20_steps": steps.figures("without"),
        "a_b_a_bit_identical": same,
    }
    return figures, [
        times_as_fast(
            "swap from a file over load + unload",
            swaps.ratio("load_and_unload", "engine_from_disk"),
            at_least=40,
        ),
        times_as_fast(
            "swap from a file never used before over load + unload",
            swaps.ratio("load_and_unload", "engine_from_new_file"),
        ),
        times_as_fast(
            "swap from memory over load + unload",
            swaps.ratio("load_and_unload", "engine_from_memory"),
            at_least=500,
        ),
        times_as_fast(
            "swap from memory over set_adapters", toggles.ratio("set_adapters", "engine_from_memory")
        ),
        row("swap from a file", swaps.spread("engine_from_disk"), "ms", times=1000),
        row("swap from a file never used before", swaps.spread("engine_from_new_file"), "ms", times=1000),
        row("swap from memory", swaps.spread("engine_from_memory"), "ms", times=1000),
        row("20 steps with a LoRA over without", steps.ratio("both", "without"), "", goal=1.02),
        row("20 steps with a LoRA on one branch over without", steps.ratio("uncond", "without"), ""),
        Row("A, B, A: layers that differ in a bit", float(not same), "", goal=0),
    ]


def _repeated(work: Callable[[int], object], times: int) -> Callable[[int], float]:
    """Seconds of one of several in a row: one alone is too short for the clock of a busy machine."""

    def measured(_number: int) -> float:
        started = time.perf_counter()
        for turn in range(times):
            work(turn)
        return (time.perf_counter() - started) / times

    return measured


def _steps(ours: Ours) -> dict[str, Callable[[int], float]]:
    """Seconds of a guided job's steps, by how a LoRA is in force."""
    conditioner, kept = Conditioner(ours.loaded), ours.residency(1 << 30)
    version = ours.versions[0]
    adapters = {version.digest: kept.fetch(version.digest).adapter}

    def contender(*loras: LoraOrder) -> Callable[[int], float]:
        order = an_order("a red circle on white", edge=64, steps=STEPS, hand_over=None, loras=loras)

        def work(_number: int) -> None:
            _run(ours.loaded, conditioner, order, adapters)

        return wall(work)

    return {
        "without": contender(),
        "both": contender(LoraOrder(version.ref, version.name, version.digest)),
        "uncond": contender(LoraOrder(version.ref, version.name, version.digest, scope="uncond")),
    }


def _run(loaded: Models, conditioner: Conditioner, order: Order, adapters: dict[str, Arranged]) -> None:
    loop = StepLoop(loaded, memory.PROFILES["24"])
    conditionings = partial(conditioner.conditioning, order)
    trajectory = Trajectory(order, 0, conditionings, loaded, Stacks(order.loras, adapters))
    while not trajectory.finished:
        (step,) = loop.advance([trajectory])
        if step.error is not None:
            raise step.error


def _a_b_a(ours: Ours) -> bool:
    """Whether the weights under A are the same bits before and after B, and the base's before and after both."""
    weights = ours.loaded.weights["unet"]
    kept = ours.residency(1 << 30)
    a, b = (ours.stack(kept.fetch(version.digest).adapter) for version in ours.versions)
    seen = []
    for stack in (EMPTY, a, b, a, EMPTY):
        weights.apply(stack)
        seen.append({name: live.clone() for name, live in ours.loaded.unets["base"].state_dict().items()})
    return all(
        torch.equal(seen[0][name], seen[4][name]) and torch.equal(seen[1][name], seen[3][name])
        for name in seen[0]
    )
