"""`make bench`: the pocket model on the CPU, beside plain diffusers, and HTTP beside a direct call.

python -m benchmarks.cpu [--rounds N] [--quick] [--threads N] [--results FOLDER]
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch. By default OpenMP's threads spin while they wait for each other; where another process has one of the
# cores that made the same job 10 to 100 times as slow here, on every side. It is in the record.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import numpy as np
import torch

from benchmarks import (
    compare,
    crowded,
    device_sharing,
    findings,
    over_http,
    png,
    record,
    sides,
    swaps,
    training,
)
from benchmarks.apart import Apart, apart
from benchmarks.interleave import interleave
from benchmarks.orders import an_order
from benchmarks.report import Row, row, table, times_as_fast
from darkroom import Darkroom
from service.engine.orders import Order

EDGE = 64
STEPS = 20
IMAGES = 8
HTTP_GOAL_MS = 3.0
PNG_GOAL_MS = 20.0
_STARTED = time.perf_counter()


@dataclass(frozen=True)
class Rounds:
    """How often each section is repeated."""

    one_image: int = 25
    eight_images: int = 9
    http_2_steps: int = 80
    http_20_steps: int = 25
    png: int = 9
    mixed: int = 9
    swaps: int = 15
    crowded: int = 60
    train_steps: int = 60
    device_sharing: int = 6
    compare: int = 5
    findings: int = 5


QUICK = Rounds(
    one_image=4,
    eight_images=1,
    http_2_steps=12,
    http_20_steps=2,
    png=3,
    mixed=1,
    swaps=3,
    crowded=12,
    train_steps=10,
    device_sharing=1,
    compare=1,
    findings=1,
)


@dataclass(frozen=True)
class Sides:
    """The contenders, each in a process of its own and ready."""

    darkroom: Apart
    """The service's parts without HTTP."""
    plain: Apart
    client: Darkroom
    """Of the service with HTTP."""


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _parser().parse_args(arguments)
    rounds = QUICK if chosen.quick else Rounds()
    command = "python -m benchmarks.cpu" + (" --quick" if chosen.quick else "")
    if chosen.rounds:
        rounds = Rounds(**dict.fromkeys(asdict(rounds), chosen.rounds))
        command += f" --rounds {chosen.rounds}"
    if chosen.threads:
        command += f" --threads {chosen.threads}"
        torch.set_num_threads(chosen.threads)  # for the record; the contenders have processes of their own
    folder = chosen.results or (Path("build/benchmarks") if chosen.quick else record.RESULTS)
    kept = record.Record("cpu", command, torch.device("cpu"), folder)
    rows: list[Row] = []
    _say("starting the engine, plain diffusers and the service")
    with _sides(chosen.threads) as ready:
        for section in (beside_plain_diffusers, mixed_requests, http):
            rows += section(ready, rounds, kept)
    rows += png_encoding(rounds, kept)
    rows += lora_swaps(rounds, kept)
    rows += train_steps(rounds, kept)
    rows += shared_device(rounds, kept, device_sharing.SHORT if chosen.quick else device_sharing.FULL)
    rows += comparisons(rounds, kept, chosen.threads, compare.SHORT if chosen.quick else compare.FULL)
    rows += what_they_found(rounds, kept, findings.SHORT if chosen.quick else findings.FULL)
    rows += crowded_registry(rounds, kept, crowded.FEW if chosen.quick else crowded.SIZES)
    kept.add("goals", [line.as_dict() for line in rows])
    print(f"\n{table(rows)}\n\nwritten to {kept.file}")


@contextmanager
def _sides(threads: int | None) -> Iterator[Sides]:
    with ExitStack() as stack:
        client = stack.enter_context(over_http.served(threads))
        darkroom = stack.enter_context(apart(partial(sides.darkroom, threads)))
        plain = stack.enter_context(apart(partial(sides.plain, threads)))
        darkroom.wait_until_ready()
        plain.wait_until_ready()
        client.wait_until_ready(timeout_seconds=180)
        yield Sides(darkroom, plain, client)


def beside_plain_diffusers(ready: Sides, rounds: Rounds, kept: record.Record) -> list[Row]:
    """Prompt to pixels: base and refiner at 0.8, 20 steps, guidance 5, one image and eight."""

    def order(number: int, images: int = 1) -> Order:
        # Another prompt every round: the engine remembers what it has encoded, and plain diffusers does not.
        prompt = f"a big red circle above {images} small green stars, number {number}"
        return an_order(prompt, edge=EDGE, steps=STEPS, seeds=range(number, number + images))

    def plain_in_a_row(number: int) -> float:
        eight = order(number, IMAGES)
        return sum(ready.plain.seconds(replace(eight, seeds=(seed,))) for seed in eight.seeds)

    _say(f"engine beside plain diffusers: one image, {rounds.one_image} rounds")
    one = interleave(
        {
            "engine": lambda number: ready.darkroom.seconds((order(number),)),
            "plain": lambda number: ready.plain.seconds(order(number)),
        },
        rounds.one_image,
        warm_ups=2,
    )
    _say(f"engine beside plain diffusers: {IMAGES} images, {rounds.eight_images} rounds")
    eight = interleave(
        {
            "engine": lambda number: ready.darkroom.seconds((order(number, IMAGES),)),
            "plain_batch": lambda number: ready.plain.seconds(order(number, IMAGES)),
            "plain_in_a_row": plain_in_a_row,
        },
        rounds.eight_images,
    )
    kept.add(
        "engine_beside_plain_diffusers",
        {
            "job": f"{EDGE} px, base + refiner at 0.8, {STEPS} steps, guidance 5, Euler, prompt to pixels",
            "largest_difference_of_pixels": _largest_difference(ready, order(0, IMAGES)),
            "one_image": one.figures("engine"),
            "eight_images": eight.figures("engine"),
        },
    )
    at_one = one.ratio("plain", "engine")
    in_a_row = eight.ratio("plain_in_a_row", "engine")
    in_a_batch = eight.ratio("plain_batch", "engine")
    return [
        times_as_fast("engine over plain diffusers, 1 image", at_one, at_least=1.0),
        times_as_fast("engine over plain diffusers, 8 images in a row", in_a_row, at_least=at_one.median),
        times_as_fast("engine over plain diffusers, 8 images in one call", in_a_batch, at_least=1.0),
    ]


def _largest_difference(ready: Sides, order: Order) -> int:
    """Of 255, between the pictures of both sides: that they do the same job."""
    _, ours = ready.darkroom.do((order,))
    _, theirs = ready.plain.do(order)
    return int(np.abs(np.stack(ours).astype(int) - np.stack(theirs).astype(int)).max())


MIXED = (
    (64, 20, "euler"),
    (64, 12, "dpmpp_2m_karras"),
    (64, 30, "ddim"),
    (64, 8, "unipc"),
    (96, 20, "euler_ancestral"),
    (96, 15, "dpmpp_2m"),
    (128, 10, "euler"),
    (64, 20, "euler"),
)
"""Edge, steps and scheduler of requests that come at once."""


def mixed_requests(ready: Sides, rounds: Rounds, kept: record.Record) -> list[Row]:
    """Eight requests that differ in size, steps and scheduler, at once and one after another."""

    def orders(number: int, take: str) -> tuple[Order, ...]:
        return tuple(
            an_order(
                f"a blue ring, {take} {number} of {index}",
                edge=edge,
                steps=steps,
                seeds=(index,),
                scheduler=scheduler,
            )
            for index, (edge, steps, scheduler) in enumerate(MIXED)
        )

    _say(f"8 mixed requests, {rounds.mixed} rounds")
    taken = interleave(
        {
            "at_once": lambda number: ready.darkroom.seconds(orders(number, "one")),
            "one_after_another": lambda number: sum(
                ready.darkroom.seconds((order,)) for order in orders(number, "two")
            ),
        },
        rounds.mixed,
    )
    kept.add("mixed_requests", {"edge_steps_scheduler": MIXED} | taken.figures("at_once"))
    ratio = taken.ratio("one_after_another", "at_once")
    return [times_as_fast("8 mixed requests, at once over in a row", ratio, at_least=1.0)]


def http(ready: Sides, rounds: Rounds, kept: record.Record) -> list[Row]:
    """Milliseconds that HTTP adds to a request of two steps and to one of twenty."""
    rows = []
    for steps, repeats in ((2, rounds.http_2_steps), (20, rounds.http_20_steps)):
        _say(f"HTTP beside a direct call: {steps} steps, {repeats} rounds")
        taken, within, figures = over_http.measure(ready.client, ready.darkroom, steps, repeats)
        kept.add(f"http_beside_direct_{steps}_steps", figures)
        ways = {"pair by pair": taken.difference("http", "direct"), "within a call": within}
        rows += [
            row(f"HTTP adds at p50, {steps} steps, {way}", spread, "ms", times=1000, goal=HTTP_GOAL_MS)
            for way, spread in ways.items()
        ]
    return rows


def png_encoding(rounds: Rounds, kept: record.Record) -> list[Row]:
    """A megapixel that compresses like a photo, as PNG."""
    _say(f"PNG, {rounds.png} rounds")
    figures = png.measure(rounds.png)
    kept.add("png", figures)
    milliseconds = figures["cpu_seconds"]["darkroom"] * 1000
    return [
        Row("PNG of 1024 x 1024, CPU", milliseconds, "ms", goal=PNG_GOAL_MS),
        Row(
            "PNG beside Pillow's default",
            figures["times_faster_than"]["pillow_default"],
            "times as fast",
        ),
    ]


def lora_swaps(rounds: Rounds, kept: record.Record) -> list[Row]:
    """Another LoRA, beside the ways that diffusers has for it."""
    _say(f"swaps of LoRAs, {rounds.swaps} rounds")
    figures, rows = swaps.measure(rounds.swaps)
    kept.add("lora_swaps", figures)
    return rows


def train_steps(rounds: Rounds, kept: record.Record) -> list[Row]:
    """A step of a training beside one of a bare loop."""
    _say(f"train steps beside a bare loop, {rounds.train_steps} rounds")
    figures, rows = training.measure(rounds.train_steps)
    kept.add("train_step", figures)
    return rows


def shared_device(rounds: Rounds, kept: record.Record, extent: device_sharing.Extent) -> list[Row]:
    """Pictures while a train job works on the same device, under each policy."""
    _say(f"pictures while a job trains, {rounds.device_sharing} rounds")
    figures, rows = device_sharing.measure(rounds.device_sharing, extent)
    kept.add("device_sharing", figures)
    return rows


def comparisons(
    rounds: Rounds, kept: record.Record, threads: int | None, extent: compare.Extent
) -> list[Row]:
    """Comparisons beside the same pictures by requests of their own."""
    _say(f"comparisons beside requests in a row, {rounds.compare} rounds")
    figures, rows = compare.measure(rounds.compare, threads, extent=extent)
    kept.add("comparisons", figures)
    return rows


def what_they_found(rounds: Rounds, kept: record.Record, extent: findings.Extent) -> list[Row]:
    """Measurements, verdicts, sheet and report."""
    _say(f"measurements, verdicts and reports, {rounds.findings} rounds")
    figures, rows = findings.measure(rounds.findings, extent)
    kept.add("findings", figures)
    return rows


def crowded_registry(rounds: Rounds, kept: record.Record, sizes: Sequence[int]) -> list[Row]:
    """The same request where the registry has more and more LoRAs."""
    _say(f"registries of {sizes[0]} to {sizes[-1]} LoRAs, {rounds.crowded} rounds")
    figures, rows = crowded.measure(rounds.crowded, sizes)
    kept.add("crowded_registry", figures)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, help="of every section; default: what ten minutes allow")
    parser.add_argument(
        "--quick", action="store_true", help="about four minutes, written to build/benchmarks"
    )
    parser.add_argument(
        "--threads", type=int, help="of torch, in every process; 1 keeps ratios steady on a busy machine"
    )
    parser.add_argument("--results", type=Path, help="folder for the JSON; default: benchmarks/results")
    return parser


def _say(line: str) -> None:
    print(f"{time.perf_counter() - _STARTED:4.0f} s  {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
