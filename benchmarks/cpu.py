"""`make bench`: the pocket model on the CPU, beside plain diffusers.

python -m benchmarks.cpu [--rounds N] [--quick] [--results FOLDER]
"""

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch

from benchmarks import over_http, png, record, stock
from benchmarks.interleave import interleave, wall
from benchmarks.orders import an_order, run
from benchmarks.quiet import quiet
from benchmarks.report import Row, row, table
from service import pocket
from service.engine import memory, models, presets
from service.engine.engine import Engine
from service.engine.orders import Order

EDGE = 64
STEPS = 20
IMAGES = 8
HTTP_GOAL_MS = 3.0
PNG_GOAL_MS = 20.0
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Rounds:
    """How often each section is repeated."""

    one_image: int
    eight_images: int
    http_short: int
    http_long: int
    png: int
    mixed: int

    def of(self, rounds: int) -> "Rounds":
        """`rounds` everywhere."""
        return Rounds(**dict.fromkeys(asdict(self), rounds))


DEFAULT = Rounds(one_image=25, eight_images=9, http_short=80, http_long=25, png=9, mixed=9)
QUICK = Rounds(one_image=4, eight_images=2, http_short=12, http_long=3, png=3, mixed=2)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = _parser().parse_args(arguments)
    rounds = DEFAULT.of(chosen.rounds) if chosen.rounds else QUICK if chosen.quick else DEFAULT
    quiet()
    command = " ".join(["python -m benchmarks.cpu", *(["--quick"] if chosen.quick else [])])
    if chosen.rounds:
        command += f" --rounds {chosen.rounds}"
    folder = chosen.results or (Path("build/benchmarks") if chosen.quick else record.RESULTS)
    kept = record.Record("cpu", command, _CPU, folder)
    rows: list[Row] = []
    with _engine() as engine:
        rows += beside_plain_diffusers(engine, rounds, kept)
        rows += mixed_requests(engine, rounds, kept)
    rows += http(rounds, kept)
    rows += png_encoding(rounds, kept)
    kept.add("goals", [line.as_dict() for line in rows])
    print(f"\n{table(rows)}\n\nwritten to {kept.file}")


def beside_plain_diffusers(engine: Engine, rounds: Rounds, kept: record.Record) -> list[Row]:
    """Prompt to pixels: base and refiner at 0.8, 20 steps, guidance 5, one image and eight."""
    _say(f"engine beside plain diffusers: one image, {rounds.one_image} rounds")
    plain = stock.from_folders(
        pocket.WEIGHTS / "base", pocket.WEIGHTS / "refiner", dtype=torch.float32, device=_CPU
    )

    def order(number: int, images: int = 1) -> Order:
        # Another prompt every round: the engine remembers what it has encoded, and plain diffusers does not.
        prompt = f"a big red circle above {images} small green stars, number {number}"
        return an_order(prompt, edge=EDGE, steps=STEPS, seeds=range(number, number + images))

    one = interleave(
        {
            "engine": wall(lambda number: run(engine, order(number))),
            "plain": wall(lambda number: plain.pictures(order(number))),
        },
        rounds.one_image,
        warm_ups=2,
    )
    _say(f"engine beside plain diffusers: {IMAGES} images, {rounds.eight_images} rounds")
    eight = interleave(
        {
            "engine": wall(lambda number: run(engine, order(number, IMAGES))),
            "plain_batch": wall(lambda number: plain.pictures(order(number, IMAGES))),
            "plain_in_a_row": wall(lambda number: plain.pictures_in_a_row(order(number, IMAGES))),
        },
        rounds.eight_images,
    )
    kept.add("engine_beside_plain_diffusers", {
        "job": f"{EDGE}x{EDGE}, base + refiner at 0.8, {STEPS} steps, guidance 5, Euler, prompt to pixels",
        "largest_pixel_difference": largest_difference(engine, plain, order(0)),
        "one_image": one.figures("engine"),
        "eight_images": eight.figures("engine"),
    })  # fmt: skip
    first = one.ratio("plain", "engine")
    return [
        row("engine over plain diffusers, 1 image", first, "times as fast", goal=1.0, at_least=True),
        row(
            "engine over plain diffusers, 8 images in a row",
            eight.ratio("plain_in_a_row", "engine"),
            "times as fast",
            goal=max(1.0, first.median),
            at_least=True,
            note="better than at one image",
        ),
        row(
            "engine over plain diffusers, batch of 8 images",
            eight.ratio("plain_batch", "engine"),
            "times as fast",
            goal=1.0,
            at_least=True,
        ),
    ]


def largest_difference(engine: Engine, plain: stock.Stock, order: Order) -> int:
    """Of 255, between the pictures of both sides: that they do the same job."""
    (done,) = run(engine, order)
    (picture,) = plain.pictures(order)
    return int(np.abs(done.pictures[0].pixels_HWC.astype(int) - np.asarray(picture).astype(int)).max())


def mixed_requests(engine: Engine, rounds: Rounds, kept: record.Record) -> list[Row]:
    """Eight requests that differ in size, steps and scheduler, at once and one after another."""
    _say(f"8 mixed requests, {rounds.mixed} rounds")

    def orders(number: int, take: str) -> list[Order]:
        kinds = [
            (64, 20, "euler"),
            (64, 12, "dpmpp_2m_karras"),
            (64, 30, "ddim"),
            (64, 8, "unipc"),
            (96, 20, "euler_ancestral"),
            (96, 15, "dpmpp_2m"),
            (128, 10, "euler"),
            (64, 20, "euler"),
        ]
        return [
            replace(
                an_order(f"a blue ring, {take} {number} of {index}", edge=edge, steps=steps, seeds=(index,)),
                scheduler=scheduler,
            )
            for index, (edge, steps, scheduler) in enumerate(kinds)
        ]

    taken = interleave(
        {
            "at_once": wall(lambda number: run(engine, *orders(number, "one"))),
            "one_after_another": wall(lambda number: [run(engine, order) for order in orders(number, "two")]),
        },
        rounds.mixed,
    )
    kept.add("mixed_requests", taken.figures("at_once"))
    ratio = taken.ratio("one_after_another", "at_once")
    return [row("8 mixed requests at once over one by one", ratio, "times as fast", goal=1.0, at_least=True)]


def http(rounds: Rounds, kept: record.Record) -> list[Row]:
    """Milliseconds that HTTP adds to a request of two steps and to one of twenty."""
    _say("HTTP beside a direct call: starting the service")
    rows = []
    with over_http.served() as client, over_http.direct_components() as components:
        for steps, repeats in ((2, rounds.http_short), (STEPS, rounds.http_long)):
            _say(f"HTTP beside a direct call: {steps} steps, {repeats} rounds")
            taken, within, figures = over_http.measure(client, components, steps, repeats)
            kept.add(f"http_over_direct_{steps}_steps", figures)
            rows += [
                row(
                    f"HTTP adds at p50, {steps} steps, pair by pair",
                    taken.difference("http", "direct"),
                    "ms",
                    times=1000,
                    goal=HTTP_GOAL_MS,
                ),
                row(
                    f"HTTP adds at p50, {steps} steps, within a call",
                    within,
                    "ms",
                    times=1000,
                    goal=HTTP_GOAL_MS,
                ),
            ]
    return rows


def png_encoding(rounds: Rounds, kept: record.Record) -> list[Row]:
    """A megapixel that compresses like a photo, as PNG."""
    _say(f"PNG, {rounds.png} rounds")
    figures = png.measure(rounds.png)
    kept.add("png", figures)
    return [
        Row("PNG of 1024 x 1024, CPU", figures["cpu_seconds"]["darkroom"] * 1000, "ms", goal=PNG_GOAL_MS),
        Row(
            "PNG beside Pillow's default",
            figures["times_faster_than"]["pillow_default"],
            "times as fast",
        ),
    ]


@contextmanager
def _engine() -> Iterator[Engine]:
    engine = Engine(models.load(presets.POCKET, device=_CPU, dtype=torch.float32), memory.PROFILES["24"])
    engine.start()
    try:
        yield engine
    finally:
        engine.close()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cpu", description=__doc__)
    parser.add_argument("--rounds", type=int, help="of every section; default: as many as five minutes allow")
    parser.add_argument("--quick", action="store_true", help="under a minute, into build/benchmarks")
    parser.add_argument("--results", type=Path, help="folder for the JSON; default: benchmarks/results")
    return parser


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
