"""Comparisons beside the same pictures by requests of their own: what one costs more, and what shared steps save.

python -m benchmarks.compare [--rounds N] [--quick] [--threads N]

Prints; `make bench` records.
"""

import argparse
import asyncio
import io
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch; benchmarks.cpu says why

import httpx
import numpy as np
from PIL import Image

from benchmarks import findings
from benchmarks.apart import Apart, apart
from benchmarks.interleave import Contender, Rounds, Spread, interleave
from benchmarks.quiet import quiet
from benchmarks.report import Row, row, table
from darkroom import AsyncDarkroom
from darkroom.types import CompareRequest, GenerateRequest, PictureSettings
from service.api.app import create_app
from service.api.auth import KeyRing
from service.api.edge import Edge
from service.compare.expansion import expanded, request_of
from service.measurements.pictures import pixels_digest
from service.settings import Settings
from service.wiring import Components, build

GUIDANCE_SCALES = (3.0, 5.0, 7.0, 9.0)
HAND_OVERS = (0.6, 0.7, 0.8, 0.9, 1.0)
OVERHEAD_GOAL = 1.01
SHARED_GOAL = 0.45
WARM_UPS = 1
URL = "http://darkroom.benchmark"

Job = CompareRequest | tuple[GenerateRequest, ...]


@dataclass(frozen=True)
class Extent:
    """How much is drawn in a round."""

    steps: int
    seeds: int
    """Of the arms, for each of two prompts."""
    sweep_steps: int


FULL = Extent(steps=20, seeds=2, sweep_steps=50)
SHORT = Extent(steps=4, seeds=1, sweep_steps=10)


@dataclass(frozen=True)
class Spent:
    """What a comparison, or its cells as requests one after another, took of a service."""

    answered: float
    """Seconds until the caller had all that was asked for."""
    drawn: float
    """Seconds until the last picture was there. A comparison is then held against its baseline and told of."""
    ended: float
    """Seconds until it had ended; its caller, who looks now and then, hears of it up to 0.3 s later."""
    cpu: float
    """Seconds of the process's cores, its caller's included."""
    unet: float
    """Seconds in which a UNet was at work."""
    evaluations: float
    """Passes through a UNet, each with both branches of the guidance."""
    pictures: tuple[str, ...]
    """Digests of their pixels."""


@dataclass(frozen=True)
class Taken:
    """The rounds of both, a figure of `Spent` at a time."""

    spent: Mapping[str, Sequence[Spent]]
    differing: int
    """Pictures of the warm-up, in which both drew the same, that were not equal to the bit."""

    def rounds(self, figure: str) -> Rounds:
        return Rounds({name: [getattr(one, figure) for one in some] for name, some in self.spent.items()})

    def over_unet(self) -> Rounds:
        """Comparisons beside nothing but the UNet's time of the requests."""
        requests = self.rounds("unet").seconds["requests"]
        return Rounds({"comparison": self.rounds("answered").seconds["comparison"], "requests": requests})

    def unet_shares(self) -> dict[str, float]:
        """How much of the time until their pictures were there a UNet was at work in."""
        return {
            name: Rounds({"unet": [one.unet for one in some], "all": [one.drawn for one in some]})
            .ratio("unet", "all")
            .median
            for name, some in self.spent.items()
        }

    def figures(self) -> dict[str, Any]:
        """For the record: of each figure the medians of both, and the comparison's over the requests'."""
        found: dict[str, Any] = {
            "rounds": len(self.spent["comparison"]),
            "differing_pictures": self.differing,
            "unet_share_of_drawing": self.unet_shares(),
            "answered_over_unet_of_requests": asdict(self.over_unet().ratio("comparison", "requests")),
        }
        for figure in ("answered", "drawn", "ended", "cpu", "unet", "evaluations"):
            rounds = self.rounds(figure)
            found[figure] = {name: asdict(rounds.spread(name)) for name in rounds.seconds} | {
                "comparison_over_requests": asdict(rounds.ratio("comparison", "requests"))
            }
        return found


def measure(rounds: int, threads: int | None, *, extent: Extent = FULL) -> tuple[dict[str, Any], list[Row]]:
    """Figures for the record, and the rows: arms that share nothing, and a sweep that shares most."""
    with apart(partial(service, threads)) as ready:
        ready.wait_until_ready()
        arms = _beside_requests(ready, partial(arms_that_share_nothing, extent), rounds)
        sweep = _beside_requests(ready, partial(sweep_of_hand_overs, extent), rounds)
    figures = {
        "job": f"pocket model, {asdict(extent)}, guidance {GUIDANCE_SCALES}, hand-overs {HAND_OVERS}",
        "arms_that_share_nothing": arms.figures(),
        "sweep_of_hand_overs": sweep.figures(),
    }
    return figures, [*_rows_of_arms(arms), *_rows_of_sweep(sweep)]


def _rows_of_arms(taken: Taken) -> list[Row]:
    shares = taken.unet_shares()
    note = f"UNet {shares['comparison']:.0%} of its drawing, {shares['requests']:.0%} of theirs"
    what = f"{len(GUIDANCE_SCALES)} arms over requests in a row"
    return [
        row(what, _ratio(taken, "answered"), "", goal=OVERHEAD_GOAL, note=note),
        row(f"{what}, until drawn", _ratio(taken, "drawn"), "", goal=OVERHEAD_GOAL),
        row(f"{what}, in CPU seconds", _ratio(taken, "cpu"), ""),
        row(
            f"{len(GUIDANCE_SCALES)} arms over the UNet's time of requests",
            taken.over_unet().ratio("comparison", "requests"),
            "",
            goal=OVERHEAD_GOAL,
        ),
    ]


def _rows_of_sweep(taken: Taken) -> list[Row]:
    what = f"{len(HAND_OVERS)} hand-overs over requests in a row"
    return [
        row(f"{what}, UNet evaluations", _ratio(taken, "evaluations"), "", goal=SHARED_GOAL),
        row(what, _ratio(taken, "answered"), ""),
        row(f"{what}, until drawn", _ratio(taken, "drawn"), ""),
        row(f"{what}, in CPU seconds", _ratio(taken, "cpu"), ""),
    ]


def _ratio(taken: Taken, figure: str) -> Spread:
    return taken.rounds(figure).ratio("comparison", "requests")


def arms_that_share_nothing(extent: Extent, subject: str) -> CompareRequest:
    """Guidance scales, two prompts and some seeds: every step of every picture is its own."""
    return CompareRequest(
        prompts=(f"a big red circle, {subject}", f"a small green star, {subject}"),
        seeds=tuple(range(extent.seeds)),
        base=PictureSettings(num_inference_steps=extent.steps),
        axes={"guidance_scale": GUIDANCE_SCALES},
        adherence=False,
    )


def sweep_of_hand_overs(extent: Extent, subject: str) -> CompareRequest:
    """One picture, handed over from base to refiner at several places: up to each of them the steps are the same."""
    return CompareRequest(
        prompts=(f"a blue ring, {subject}",),
        seeds=(1,),
        base=PictureSettings(num_inference_steps=extent.sweep_steps, guidance_scale=5.0),
        axes={"refiner.denoising_end": HAND_OVERS},
        adherence=False,
    )


def _beside_requests(ready: Apart, compared: Callable[[str], CompareRequest], rounds: int) -> Taken:
    spent: dict[str, list[Spent]] = {"comparison": [], "requests": []}

    def contender(name: str) -> Contender:
        def work(number: int) -> float:
            # Another prompt for each: the engine remembers what it has encoded. The first round is not counted.
            request = compared(f"{name[:2]} {number}" if number >= WARM_UPS else "the same")
            _, taken = ready.do(request if name == "comparison" else cells_of(request))
            spent[name].append(taken)
            return float(taken.answered)

        return work

    interleave({name: contender(name) for name in spent}, rounds, warm_ups=WARM_UPS)
    same = zip(spent["comparison"][0].pictures, spent["requests"][0].pictures, strict=True)
    counted = {name: some[WARM_UPS:] for name, some in spent.items()}
    return Taken(counted, differing=sum(one != other for one, other in same))


def cells_of(request: CompareRequest) -> tuple[GenerateRequest, ...]:
    """The same pictures as requests, in the order of the comparison's cells."""
    return tuple(request_of(*cell) for cell in expanded(request).cells())


@contextmanager
def service(threads: int | None) -> Iterator[Callable[[Job], Spent]]:
    """The whole service on the pocket model and its client in one process, without a socket."""
    quiet()
    with tempfile.TemporaryDirectory() as folder:
        settings = Settings(
            model="pocket",
            offline=True,
            threads=threads,
            data=Path(folder),
            training="off",
            max_queue_seconds=3600,
            timeout_seconds=600,
        )
        components = build(settings)
        components.start()
        while not components.ready().ready:
            if not components.alive():
                raise RuntimeError(f"the engine could not start: {components.ready().reason}")
            time.sleep(0.05)
        app = create_app(lambda: components)
        edge = Edge(app, keys=KeyRing(()), metrics=components.metrics, max_body_bytes=settings.max_body_bytes)
        http = httpx.AsyncClient(transport=httpx.ASGITransport(edge))
        client = AsyncDarkroom(URL, http_client=http, max_retries=0)
        with asyncio.Runner() as runner:
            try:
                yield lambda job: runner.run(_spent(components, client, job))
            finally:
                runner.run(http.aclose())
                components.close()


async def _spent(components: Components, client: AsyncDarkroom, job: Job) -> Spent:
    meter = _Meter(components)
    if isinstance(job, CompareRequest):
        run = (await client.comparisons.wait(await client.comparisons.create(job), on_event=False)).comparison
        read = meter.read()
        events = await components.comparisons.past_events(run.id)
        measuring_at = next(event.at for event in events if event.stage == "measuring")
        assert run.finished_at is not None
        return Spent(
            **read,
            drawn=measuring_at.timestamp() - meter.began_at,
            ended=run.finished_at.timestamp() - meter.began_at,
            pictures=tuple(cell.pixels_digest for cell in run.cells),
        )
    generations = [await client.generate_request(request) for request in job]
    read = meter.read()
    return Spent(
        **read,
        drawn=read["answered"],
        ended=read["answered"],
        pictures=tuple(_digest(generation.image.data) for generation in generations),
    )


class _Meter:
    """Clocks, and what the service's own metrics say of its UNets, from its making on."""

    def __init__(self, components: Components) -> None:
        self._components = components
        self._before = self._now()
        self.began_at = time.time()

    def read(self) -> dict[str, float]:
        return {name: value - self._before[name] for name, value in self._now().items()}

    def _now(self) -> dict[str, float]:
        return {
            "answered": time.perf_counter(),
            "cpu": time.process_time(),
            "unet": self._of_unets("sum"),
            "evaluations": self._of_unets("count"),
        }

    def _of_unets(self, what: str) -> float:
        value = self._components.metrics.registry.get_sample_value
        name = f"darkroom_step_seconds_{what}"
        return sum(value(name, {"unet": unet}) or 0.0 for unet in ("base", "refiner"))


def _digest(file: bytes) -> str:
    with Image.open(io.BytesIO(file)) as image:
        return pixels_digest(np.asarray(image.convert("RGB")))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="of each (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="fewer pictures in fewer steps")
    parser.add_argument("--threads", type=int, help="of torch")
    chosen = parser.parse_args()
    extent, to_look_at = (SHORT, findings.SHORT) if chosen.quick else (FULL, findings.FULL)
    _, rows = measure(chosen.rounds, chosen.threads, extent=extent)
    _, more = findings.measure(chosen.rounds, to_look_at)
    print(table([*rows, *more]))


if __name__ == "__main__":
    main()
