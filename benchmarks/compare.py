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
import torch
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
from service.engine.models import Models
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
    """Seconds in which steps were made, by the service's own metric."""
    unet_cpu: float
    """Seconds of the engine's thread in UNets; with one thread of torch that is all that they take of the cores."""
    evaluations: int
    """Rows that went through a UNet, two a step with guidance."""
    pictures: tuple[str, ...]
    """Digests of their pixels."""


@dataclass(frozen=True)
class Taken:
    """The rounds of both."""

    spent: Mapping[str, Sequence[Spent]]
    differing: int
    """Pictures of the warm-up, in which both drew the same, that were not equal to the bit."""

    def ratio(self, one: tuple[str, str], other: tuple[str, str]) -> Spread:
        """Round by round, a contender's figure over one of the same or the other contender."""
        return self._beside(one, other).ratio("one", "other")

    def over_requests(self, figure: str) -> Spread:
        return self.ratio(("comparison", figure), ("requests", figure))

    def over_unet_of_requests(self) -> Spread:
        """All that a comparison takes of the cores, over what UNets take of them for the same by requests."""
        return self.ratio(("comparison", "cpu"), ("requests", "unet_cpu"))

    def unet_share(self, name: str) -> Spread:
        """How much of the seconds until the pictures were there went into steps."""
        return self.ratio((name, "unet"), (name, "drawn"))

    def unet_cpu_share(self, name: str) -> Spread:
        return self.ratio((name, "unet_cpu"), (name, "cpu"))

    def telling(self) -> Spread:
        """Seconds from a comparison's last picture to its end."""
        return self._beside(("comparison", "ended"), ("comparison", "drawn")).difference("one", "other")

    def figures(self) -> dict[str, Any]:
        """For the record: each figure of both, and the comparison's over the requests'."""
        found: dict[str, Any] = {
            "rounds": len(self.spent["comparison"]),
            "differing_pictures": self.differing,
            "unet_share_of_drawing": {name: asdict(self.unet_share(name)) for name in self.spent},
            "unet_share_of_cpu": {name: asdict(self.unet_cpu_share(name)) for name in self.spent},
            "seconds_from_last_picture_to_end": asdict(self.telling()),
            "cpu_over_unet_cpu_of_requests": asdict(self.over_unet_of_requests()),
        }
        for figure in ("answered", "drawn", "ended", "cpu", "unet", "unet_cpu", "evaluations"):
            found[figure] = {
                name: asdict(Rounds({name: self._all(name, figure)}).spread(name)) for name in self.spent
            } | {"comparison_over_requests": asdict(self.over_requests(figure))}
        return found

    def _beside(self, one: tuple[str, str], other: tuple[str, str]) -> Rounds:
        return Rounds({"one": self._all(*one), "other": self._all(*other)})

    def _all(self, name: str, figure: str) -> list[float]:
        return [getattr(spent, figure) for spent in self.spent[name]]


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
    what = f"{len(GUIDANCE_SCALES)} arms over requests in a row"
    of_steps, of_cores = (
        " and ".join(f"{share(name).median:.0%}" for name in ("comparison", "requests"))
        for share in (taken.unet_share, taken.unet_cpu_share)
    )
    return [
        row(
            f"{what}, until drawn",
            taken.over_requests("drawn"),
            "",
            goal=OVERHEAD_GOAL,
            note=f"steps are {of_steps} of either",
        ),
        row(f"{what}, until told", taken.over_requests("answered"), "", goal=OVERHEAD_GOAL),
        row(
            f"{what}, in CPU seconds",
            taken.over_requests("cpu"),
            "",
            goal=OVERHEAD_GOAL,
            note=f"UNets are {of_cores} of either",
        ),
        row(
            f"{len(GUIDANCE_SCALES)} arms over the UNet alone, in CPU seconds",
            taken.over_unet_of_requests(),
            "",
            goal=OVERHEAD_GOAL,
        ),
        row(f"{len(GUIDANCE_SCALES)} arms, from the last picture to the end", taken.telling(), "s"),
    ]


def _rows_of_sweep(taken: Taken) -> list[Row]:
    what = f"{len(HAND_OVERS)} hand-overs over requests in a row"
    return [
        row(f"{what}, UNet evaluations", taken.over_requests("evaluations"), "", goal=SHARED_GOAL),
        row(f"{what}, until drawn", taken.over_requests("drawn"), ""),
        row(f"{what}, until told", taken.over_requests("answered"), ""),
        row(f"{what}, in CPU seconds", taken.over_requests("cpu"), ""),
    ]


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
            _, taken = ready.do(request if name == "comparison" else requests_of(request))
            spent[name].append(taken)
            return float(taken.answered)

        return work

    interleave({name: contender(name) for name in spent}, rounds, warm_ups=WARM_UPS)
    same = zip(spent["comparison"][0].pictures, spent["requests"][0].pictures, strict=True)
    counted = {name: some[WARM_UPS:] for name, some in spent.items()}
    return Taken(counted, differing=sum(one != other for one, other in same))


def requests_of(request: CompareRequest) -> tuple[GenerateRequest, ...]:
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
                unets = _UNets(components.engine().models)
                yield lambda job: runner.run(_spent(components, unets, client, job))
            finally:
                runner.run(http.aclose())
                components.close()


async def _spent(components: Components, unets: "_UNets", client: AsyncDarkroom, job: Job) -> Spent:
    meter = _Meter(components, unets)
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


class _UNets:
    """What goes through the UNets: the rows, and seconds of the thread that has them work."""

    def __init__(self, models: Models) -> None:
        self.rows, self.cpu = 0, 0.0
        for unet in models.unets.values():
            unet.register_forward_pre_hook(self._begin, prepend=True)
            unet.register_forward_hook(self._end)

    def _begin(self, _unet: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.rows += len(inputs[0])
        self.cpu -= time.thread_time()

    def _end(self, _unet: torch.nn.Module, _inputs: object, _output: object) -> None:
        self.cpu += time.thread_time()


class _Meter:
    """Clocks and counters from its making on."""

    def __init__(self, components: Components, unets: _UNets) -> None:
        self._metrics, self._unets = components.metrics.registry, unets
        self._before = self._now()
        self.began_at = time.time()

    def read(self) -> dict[str, Any]:
        return {name: value - self._before[name] for name, value in self._now().items()}

    def _now(self) -> dict[str, float]:
        steps = (
            self._metrics.get_sample_value("darkroom_step_seconds_sum", {"unet": unet})
            for unet in ("base", "refiner")
        )
        return {
            "answered": time.perf_counter(),
            "cpu": time.process_time(),
            "unet": sum(seconds or 0.0 for seconds in steps),
            "unet_cpu": self._unets.cpu,
            "evaluations": self._unets.rows,
        }


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
