"""Process start to first image, and the device memory that it takes: one side in a process of its own.

python -m benchmarks.first_image {engine,plain} FOLDER --dtype float16 --edge 1024 --steps 30

Prints a line when the first image is encoded, then a line of JSON.
"""

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import stock
from benchmarks.orders import an_order, files, pillow_files, run
from benchmarks.quiet import quiet
from service import pocket
from service.engine import canary, memory, models
from service.engine.engine import Engine
from service.engine.models import Models
from service.engine.orders import Order
from service.engine.presets import Preset

SideName = Literal["engine", "plain"]
_READY = "first image"


def save(built: Models, folder: Path) -> None:
    """The weights as files, in the layout of the hub's cache: links to blobs that are named by their hash."""
    base, refiner = folder / "base", folder / "refiner"
    parts = {
        base / "unet": built.unets["base"],
        base / "vae": built.vae,
        base / "text_encoder": built.text_encoder,
        base / "text_encoder_2": built.text_encoder_2,
        refiner / "unet": built.unets["refiner"],
    }
    for place, module in parts.items():
        module.save_pretrained(place, variant="fp16")
    for name in ("tokenizer", "tokenizer_2"):
        built_tokenizer = pocket.WEIGHTS / "base" / name
        shutil.copytree(built_tokenizer, base / name)
    for pipeline in ("base", "refiner"):
        shutil.copytree(pocket.WEIGHTS / pipeline / "scheduler", folder / pipeline / "scheduler")
        shutil.copy(pocket.WEIGHTS / pipeline / "model_index.json", folder / pipeline)
    blobs = folder / "blobs"
    blobs.mkdir()
    for file in sorted(folder.rglob("*.safetensors")):
        blob = blobs / hashlib.sha256(str(file.relative_to(folder)).encode()).hexdigest()
        file.rename(blob)
        file.symlink_to(blob)


def measure(side: SideName, folder: Path, *, dtype: torch.dtype, edge: int, steps: int) -> dict[str, Any]:
    """Seconds from process start to the first encoded image, and peak bytes on the device (None on the CPU).

    Raises RuntimeError if the process fails.
    """
    command = [sys.executable, "-m", "benchmarks.first_image", side, str(folder)]
    command += ["--dtype", str(dtype).removeprefix("torch."), "--edge", str(edge), "--steps", str(steps)]
    started = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = next((line for line in process.stdout if line.strip() == _READY), None)
        seconds = time.perf_counter() - started
        rest = process.stdout.read()
    if said is None or process.returncode:
        raise RuntimeError(f"the process of {side} ended with {process.returncode}; its error is above")
    figures: dict[str, Any] = json.loads(rest)
    return {"seconds": seconds} | figures


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.first_image")
    parser.add_argument("side", choices=("engine", "plain"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--edge", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=30)
    chosen = parser.parse_args()
    quiet()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = models.pick_dtype(chosen.dtype, device)
    prepare = {"engine": _engine, "plain": _plain}[chosen.side]
    with prepare(chosen.folder, device, dtype) as job:
        job(an_order("a big red circle", edge=chosen.edge, steps=chosen.steps))
        print(_READY, flush=True)
    cuda = device.type == "cuda"
    figures = {
        "peak_allocated_bytes": torch.cuda.max_memory_allocated() if cuda else None,
        "peak_reserved_bytes": torch.cuda.max_memory_reserved() if cuda else None,
    }
    print(json.dumps(figures), flush=True)


Job = Callable[[Order], list[bytes]]


@contextmanager
def _engine(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[Job]:
    """As the service comes up: it makes its canary pictures before it is ready."""
    preset = Preset("full-size", folder / "base", folder / "refiner")
    engine = Engine(models.load(preset, device=device, dtype=dtype), memory.profile_for("auto", device))
    engine.start()
    canary.develop(engine)

    def job(order: Order) -> list[bytes]:
        (done,) = run(engine, order)
        return files(order, done)

    try:
        yield job
    finally:
        engine.close()


@contextmanager
def _plain(folder: Path, device: torch.device, dtype: torch.dtype) -> Iterator[Job]:
    pipelines = stock.from_folders(folder / "base", folder / "refiner", dtype=dtype, device=device)
    pipelines.base.vae.register_to_config(force_upcast=True)  # as the published VAE is
    yield lambda order: pillow_files(pipelines.pictures(order))


if __name__ == "__main__":
    main()
