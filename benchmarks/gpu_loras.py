"""The lines of `benchmarks.gpu` about LoRAs: G5, a step with one, and G6, what another one costs and recompiles."""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from safetensors.torch import save_file

from benchmarks.gpu_sides import EngineSide, StockSide
from benchmarks.gpu_suite import Suite
from benchmarks.interleave import interleave, wall
from benchmarks.random_loras import random_lora
from benchmarks.report import Row, row, times_as_fast
from lora_registry import Header, Inspection
from lora_registry.disk_cache import DiskCache
from lora_registry.header import read_header
from lora_registry.records import Module
from service.engine.loras.arranged import Arranged
from service.engine.loras.residency import DeviceResidency, HostResidency
from service.engine.loras.stacks import Part
from service.engine.models import Models
from service.engine.orders import LoraOrder

SWAPS = 50


@dataclass(frozen=True)
class Kind:
    """What a LoRA changes, and at which rank; `goals` are milliseconds from the device, the host and a file."""

    name: str
    rank: int
    attention_only: bool
    goals: tuple[float, float, float]


KINDS = (
    Kind("rank 16, attention", 16, True, (1.5, 3.5, 40)),
    Kind("rank 64, all linear", 64, False, (3.5, 13, 200)),
)


@dataclass(frozen=True)
class Folder:
    """LoRA files in a folder, as a source of adapters: what a registry would say of them is known here."""

    folder: Path
    loaded: Models

    def write(self, seed: int, kind: Kind) -> str:
        """A random LoRA, and its digest, which is the file's name."""
        tensors = random_lora(self.loaded, seed, rank=kind.rank, attention_only=kind.attention_only)
        path = self.folder / "lora.safetensors"
        save_file(tensors, path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(self.folder / digest)
        return f"sha256:{digest}"

    def path(self, digest: str) -> Path:
        return self.folder / digest.removeprefix("sha256:")

    def tier(self, _digest: str) -> Literal["disk", "store"]:
        return "disk"

    def open(self, digest: str) -> BinaryIO:
        return self.path(digest).open("rb")

    def plan(self, digest: str) -> tuple[Header, Inspection]:
        with self.open(digest) as file:
            header = read_header(file, self.path(digest).stat().st_size)
        downs = [key for key in header.tensors if key.endswith(".lora_A.weight")]
        modules = tuple(_module(key, header.tensors[key].shape[0]) for key in downs)
        return header, Inspection("accepted", (), (), "lora", "diffusers-peft", "benchmark", modules)


def _module(down: str, rank: int) -> Module:
    name = down.removeprefix("unet.").removesuffix(".lora_A.weight")
    up = down.replace("lora_A", "lora_B")
    return Module("unet", name, "lora", rank, float(rank), 1.0, False, {"down": down, "up": up})


@contextmanager
def _loras(side: EngineSide, kind: Kind) -> Iterator[tuple[Folder, list[str]]]:
    with tempfile.TemporaryDirectory() as name:
        folder = Folder(Path(name), side.models)
        yield folder, [folder.write(seed, kind) for seed in (1, 2)]


def _residency(folder: Folder, budget_bytes: int, disk: DiskCache | None = None) -> HostResidency:
    loaded = folder.loaded
    return HostResidency(
        lambda: folder,
        loaded.layout,
        dtype=loaded.dtype,
        budget_bytes=budget_bytes,
        pin_memory=loaded.device.type == "cuda",
        disk=disk,
    )


def step(suite: Suite) -> None:
    """G5: a step with a LoRA over one without, of the engine and, where there is one, the compiled engine."""
    for name, side in suite.sides().items():
        if not isinstance(side, EngineSide):
            continue
        with _loras(side, KINDS[0]) as (folder, digests):
            adapter = _residency(folder, 1 << 34).fetch(digests[0]).adapter
            taken = interleave(_with_and_without(suite, side, adapter), suite.rounds)
        suite.kept.add("G5" if name == "engine" else f"G5 {name}", taken.figures("without"))
        what = f"G5 step with a LoRA over without, {KINDS[0].name}: {name}"
        suite.rows.append(row(what, taken.ratio("with", "without"), "", goal=suite.goal(1.005)))


def _with_and_without(suite: Suite, side: EngineSide, adapter: Arranged) -> dict[str, Callable[[int], float]]:
    lora = LoraOrder("random@1", "random", adapter.digest)

    def seconds(number: int, loras: tuple[LoraOrder, ...]) -> float:
        order = suite.order("lora step", number, steps=suite.scale.timed_steps, hand_over=None, loras=loras)
        return side.step_seconds(order, {adapter.digest: adapter})

    return {
        "without": lambda number: seconds(number, ()),
        "with": lambda number: seconds(number, (lora,)),
    }


def swap(suite: Suite) -> None:
    """G6: another LoRA from the device, from the host's memory and from a file; and what 50 of them recompile."""
    engine, plain = suite.engine(), suite.sides()["plain"]
    assert isinstance(plain, StockSide)
    for kind in KINDS:
        with _loras(engine, kind) as (folder, digests):
            _swaps(suite, engine, plain, kind, folder, digests)
    compiled = suite.sides().get("engine_compiled")
    if isinstance(compiled, EngineSide):
        with _loras(compiled, KINDS[0]) as (folder, digests):
            _recompiles(suite, compiled, folder, digests)


def _swaps(
    suite: Suite, engine: EngineSide, plain: StockSide, kind: Kind, folder: Folder, digests: list[str]
) -> None:
    weights, device = engine.models.weights["unet"], engine.models.device
    kept = _residency(folder, 1 << 36)
    # What is kept on the disk from the first use on; nothing in memory.
    read = _residency(folder, 0, DiskCache(folder.folder / "arranged", 1 << 36))
    on_device = DeviceResidency(device, budget_bytes=1 << 36)
    nothing_on_device = DeviceResidency(device, budget_bytes=0)

    def put(adapter: Arranged) -> None:
        weights.apply((Part(adapter.digest, 1.0, (), adapter),))

    def on_the_engines_thread(work: Callable[[int], object]) -> Callable[[int], float]:
        timed = wall(work, settle=suite.settle)

        def inferring(number: int) -> float:
            with torch.inference_mode():
                return timed(number)

        return lambda number: engine.engine.run(lambda: inferring(number)).result()

    def of(number: int) -> str:
        return digests[number % 2]

    taken = interleave(
        {
            "device": on_the_engines_thread(lambda n: put(on_device.bring(kept.fetch(of(n)).adapter))),
            "host": on_the_engines_thread(lambda n: put(nothing_on_device.bring(kept.fetch(of(n)).adapter))),
            "file": on_the_engines_thread(lambda n: put(nothing_on_device.bring(read.fetch(of(n)).adapter))),
        },
        max(10, suite.rounds),
        warm_ups=4,
    )
    stock = interleave(
        {
            "host": on_the_engines_thread(lambda n: put(nothing_on_device.bring(kept.fetch(of(n)).adapter))),
            "load_and_unload": wall(
                lambda n: _load_and_unload(plain, folder.path(of(n))), settle=suite.settle
            ),
        },
        2,
    )
    figures: dict[str, Any] = {
        "file_bytes": folder.path(digests[0]).stat().st_size,
        "swaps": taken.figures("device"),
        "beside_load_and_unload": stock.figures("host"),
    }
    suite.kept.add("G6" if kind is KINDS[0] else f"G6 {kind.name}", figures)
    for tier, goal in zip(("device", "host", "file"), kind.goals, strict=True):
        what = f"G6 swap from the {tier}, {kind.name}"
        suite.rows.append(row(what, taken.spread(tier), "ms", times=1000, goal=suite.goal(goal)))
    ratio = stock.ratio("load_and_unload", "host")
    suite.rows.append(times_as_fast(f"G6 swap from the host over load + unload, {kind.name}", ratio))


def _load_and_unload(plain: StockSide, path: Path) -> None:
    base = plain.pipelines.base
    # The usual suffix, which the loader asks for.
    named = path.with_name("lora.safetensors")
    if not named.exists():
        named.symlink_to(path)
    base.load_lora_weights(named.parent, weight_name=named.name, adapter_name="it")
    base.unload_lora_weights()


def _recompiles(suite: Suite, side: EngineSide, folder: Folder, digests: list[str]) -> None:
    """Graphs that torch.compile made while LoRAs took turns for 50 swaps; none is the promise."""
    from torch._dynamo.utils import counters

    kept = _residency(folder, 1 << 36)
    adapters = [kept.fetch(digest).adapter for digest in digests]

    def turn(number: int) -> None:
        adapter = adapters[number % 2]
        lora = LoraOrder("random@1", "random", adapter.digest)
        order = suite.order("recompiles", number % 2, steps=2, hand_over=None, loras=(lora,))
        side.run(order, {adapter.digest: adapter})

    turn(0)
    before = counters["stats"]["unique_graphs"]
    for number in range(SWAPS):
        turn(number)
    graphs = counters["stats"]["unique_graphs"] - before
    suite.kept.add("G6 recompiles", {"swaps": SWAPS, "new_graphs": graphs})
    suite.rows.append(Row(f"G6 graphs compiled anew over {SWAPS} swaps", float(graphs), "", goal=0))
