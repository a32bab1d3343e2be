"""`make gpu`: SDXL in its true sizes on a CUDA machine, beside plain diffusers and diffusers as its docs recommend.

python -m benchmarks.gpu [--dtype bfloat16] [--rounds N] [--only G1 G4 ...] [--compile [MODE]] [--budget SECONDS]

Weights are random, so it needs no network. `--tiny` runs every line of it on a CPU, with a toy of the same shape.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch

from benchmarks import full_size, gpu_lending, gpu_loras, gpu_rows, gpu_training, record
from benchmarks.gpu_suite import Scale, Suite
from benchmarks.quiet import quiet
from benchmarks.report import table
from service.engine import models

FULL = Scale(
    full_size.FULL,
    edge=1024,
    small_edge=512,
    parity_edge=256,
    long_job=50,
    short_job=30,
    timed_steps=15,
    mixed_steps=20,
    train_steps=20,
)
TINY = Scale(
    full_size.TINY,
    edge=64,
    small_edge=32,
    parity_edge=32,
    long_job=3,
    short_job=2,
    timed_steps=4,
    mixed_steps=1,
    train_steps=2,
)
SECTIONS: dict[str, Callable[[Suite], None]] = {
    "parity": gpu_rows.parity_small,
    "G1": gpu_rows.step,
    "G2": gpu_rows.long_job,
    "G3": gpu_rows.short_job,
    "G4": gpu_rows.everything_but_the_unet,
    "G5": gpu_loras.step,
    "G6": gpu_loras.swap,
    "G7": gpu_rows.eight_large,
    "G8": gpu_rows.eight_small,
    "G9-G10": gpu_rows.first_images,
    "lend": gpu_lending.out_and_back,
    "train": gpu_training.steps,
}


def main(arguments: Sequence[str] | None = None) -> None:
    given = sys.argv[1:] if arguments is None else list(arguments)
    chosen = _parser().parse_args(given)
    if not chosen.tiny and not torch.cuda.is_available():
        print("benchmarks.gpu skipped: torch sees no CUDA device here (--tiny runs a toy on the CPU)")
        return
    quiet()
    suite = _suite(chosen)
    started = time.perf_counter()
    try:
        for name, section in SECTIONS.items():
            seconds = time.perf_counter() - started
            if chosen.only and name not in chosen.only:
                continue
            if chosen.budget and seconds > chosen.budget:
                suite.leave_out(name, "the time budget was spent")
                continue
            print(f"{name} ({seconds:.0f} s so far)", file=sys.stderr, flush=True)
            try:
                section(suite)
            except torch.OutOfMemoryError as exc:
                suite.leave_out(name, f"out of device memory: {str(exc).splitlines()[0]}")
    finally:
        suite.free()
    suite.kept.add("seconds_in_all", round(time.perf_counter() - started, 1))
    suite.kept.add("goals", [line.as_dict() for line in suite.rows])
    print(f"\n{table(suite.rows)}\n\nwritten to {suite.kept.file}")


def _suite(chosen: argparse.Namespace) -> Suite:
    device = torch.device("cpu" if chosen.tiny else "cuda")
    dtype = torch.float32 if chosen.tiny else models.pick_dtype(chosen.dtype, device)
    command = "python -m benchmarks.gpu" + (" --tiny" if chosen.tiny else f" --dtype {chosen.dtype}")
    compiling: dict[str, Any] | None = None
    if chosen.compile:
        command += f" --compile {chosen.compile}"
        # The toy is traced and not compiled, which would take longer than all the rest.
        compiling = {"backend": "eager"} if chosen.tiny else {"mode": chosen.compile}
    folder = chosen.results or (Path("build/benchmarks") if chosen.tiny else record.RESULTS)
    return Suite(
        scale=TINY if chosen.tiny else FULL,
        device=device,
        dtype=dtype,
        rounds=chosen.rounds or (1 if chosen.tiny else 5),
        kept=record.Record("gpu-tiny" if chosen.tiny else "gpu", command, device, folder),
        compiling=compiling,
        compile_seconds=chosen.compile_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16", help="(%(default)s)")
    parser.add_argument("--rounds", type=int, help="of every line; default: 5")
    parser.add_argument("--only", nargs="+", choices=tuple(SECTIONS), help="these lines only")
    parser.add_argument(
        "--compile",
        nargs="?",
        const="reduce-overhead",
        choices=("default", "reduce-overhead", "max-autotune"),
        help="also compiled variants: diffusers in this mode, the engine by repeated blocks",
    )
    parser.add_argument(
        "--compile-seconds", type=float, default=240, help="a variant that takes longer is left out"
    )
    parser.add_argument("--budget", type=float, help="seconds after which no further line is begun")
    parser.add_argument("--results", type=Path, help="folder for the JSON; default: benchmarks/results")
    parser.add_argument("--tiny", action="store_true", help="a toy on the CPU, written to build/benchmarks")
    return parser


if __name__ == "__main__":
    main()
