"""What is made of a comparison's pictures: measurements, verdicts, sheet and report. No model draws anything here."""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import cycle
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.interleave import Contender, Rounds, interleave
from benchmarks.png import photo
from benchmarks.quiet import quiet
from benchmarks.report import Row, row
from darkroom.types import Arm, CompareCell, CompareRequest, Comparison, PictureSettings
from service.compare.expansion import expanded
from service.compare.findings import files, found
from service.compare.planning import Prepared, cells_of, plan_of, prepared
from service.engine import models, presets
from service.engine.costs import Costs
from service.engine.models import Models
from service.engine.orders import Picture
from service.measurements.metrics import METRICS, described
from service.measurements.pictures import distances, measured
from service.reports.differences import difference_map
from service.reports.thumbnails import decoded, thumbnail
from service.translation import receipt_for

REPORT_GOAL_SECONDS = 2.0
VERDICTS = (9, 8, 4)
"""Arms, prompts and seeds: 32 pairs an arm, by all metrics."""
PHOTOS = 4
"""Different ones, whose turn comes again and again, shifted by another amount each time."""

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Extent:
    """How much there is to look at."""

    matrix: tuple[int, int, int]
    """Arms, prompts and seeds of a report."""
    edges: tuple[int, ...]


FULL = Extent((3, 8, 4), (64, 1024))
SHORT = Extent((3, 2, 2), (64, 256))


@dataclass(frozen=True)
class Reported:
    """A comparison at its end, with all that its files are made from."""

    comparison: Comparison
    thumbnails: Mapping[int, bytes]
    differences: Mapping[int, bytes]

    def write(self, _number: int) -> None:
        """Sheet and report, and the Markdown and JSON beside them."""
        for _ in files(self.comparison, self.thumbnails, self.differences):
            pass


def measure(rounds: int, extent: Extent = FULL) -> tuple[dict[str, Any], list[Row]]:
    """Figures for the record, and the rows. Seconds by the clock; the notes say how many a core took."""
    quiet()
    loaded = models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)
    judged = a_comparison(loaded, VERDICTS, extent.edges[0])
    works: dict[str, Callable[[int], object]] = {"verdicts": lambda _number: found(judged)}
    for edge in extent.edges:
        works[f"report {edge}"] = reported(loaded, extent.matrix, edge).write
        works[f"picture {edge}"] = partial(look_at, photo(edge, 0), photo(edge, 1))
    wall, cpu = by_both_clocks(works, rounds)
    figures = {
        name: {
            "rounds": rounds,
            "seconds": asdict(wall.spread(name)),
            "cpu_seconds": asdict(cpu.spread(name)),
        }
        for name in works
    }
    return figures, _rows(extent, wall, cpu)


def _rows(extent: Extent, wall: Rounds, cpu: Rounds) -> list[Row]:
    def one(name: str, what: str, unit: str, times: float, goal: float | None = None) -> Row:
        note = f"{cpu.spread(name).median * times:.3g} {unit} of a core"
        return row(what, wall.spread(name), unit, times=times, goal=goal, note=note)

    arms, prompts, seeds = VERDICTS
    sides = " x ".join(map(str, extent.matrix))
    return [
        *(
            one(
                f"report {edge}",
                f"sheet and report of {sides} pictures of {edge} px",
                "s",
                1,
                REPORT_GOAL_SECONDS,
            )
            for edge in extent.edges
        ),
        one("verdicts", f"verdicts, {arms} arms, {len(METRICS)} metrics, {prompts * seeds} pairs", "s", 1),
        *(
            one(f"picture {edge}", f"a picture measured, held against another, {edge} px", "ms", 1000)
            for edge in extent.edges
        ),
    ]


def by_both_clocks(works: Mapping[str, Callable[[int], object]], rounds: int) -> tuple[Rounds, Rounds]:
    """Rounds in seconds by the clock and in those of the process's cores."""
    cpu: dict[str, list[float]] = {name: [] for name in works}

    def contender(name: str) -> Contender:
        def timed(number: int) -> float:
            core, started = time.process_time(), time.perf_counter()
            works[name](number)
            seconds = time.perf_counter() - started
            cpu[name].append(time.process_time() - core)
            return seconds

        return timed

    wall = interleave({name: contender(name) for name in works}, rounds, warm_ups=1)
    return wall, Rounds({name: taken[1:] for name, taken in cpu.items()})


def look_at(pixels_HWC: Pixels, baseline_HWC: Pixels, _number: int = 0) -> bytes:
    """All that pixels alone tell of one picture, and the small map of its differences."""
    measured(pixels_HWC)
    distances(pixels_HWC, baseline_HWC)
    return thumbnail(difference_map(pixels_HWC, baseline_HWC))


def a_comparison(loaded: Models, matrix: tuple[int, int, int], edge: int) -> Comparison:
    """One that has ended, planned as any other, with random measurements by every metric there is."""
    arms, prompts, seeds = matrix
    request = CompareRequest(
        prompts=tuple(f"a big red circle above {number} small green stars" for number in range(prompts)),
        seeds=tuple(range(seeds)),
        base=PictureSettings(width=edge, height=edge, num_inference_steps=20),
        arms=tuple(
            Arm(name=f"guidance {number + 2}", set=PictureSettings(guidance_scale=number + 2.0))
            for number in range(arms)
        ),
        metric="sharpness",
        name="How much guidance is best?",
    )
    wanted = expanded(request)
    cells = cells_of(wanted, {}, loaded)
    ready = prepared(cells, {}, loaded)
    plan = plan_of(
        request,
        wanted,
        {},
        ready,
        Costs(),
        tuple(METRICS),
        max_cells=len(cells),
        max_seconds=np.inf,
        model=loaded.name,
    )
    now = datetime.now(UTC)
    comparison = Comparison(
        id="cmp_benchmark",
        state="succeeded",
        stage="done",
        name=request.name,
        request=request,
        plan=plan,
        done=len(cells),
        cells=[_done(cell, ready, loaded) for cell in cells],
        metrics=described(tuple(METRICS), request.metric, request.better),
        model=loaded.fingerprint,
        created_at=now,
        started_at=now,
        finished_at=now,
    )
    findings = found(comparison)
    told = {"verdicts": list(findings.verdicts), "warnings": list(findings.warnings)}
    return comparison.model_copy(update=told | {"conclusion": findings.conclusion})


def _done(cell: CompareCell, ready: Prepared, loaded: Models) -> CompareCell:
    order, way = ready.orders[cell.index], ready.ways[cell.index]
    picture = Picture(0, cell.seed, np.empty(0), way.base_steps, way.steps - way.base_steps)
    values = np.random.default_rng(cell.index).uniform(0.2, 0.8, len(METRICS))
    return cell.model_copy(
        update={
            "state": "done",
            "image": f"/v1/runs/cmp_benchmark/images/{cell.index}",
            "width": order.width,
            "height": order.height,
            "pixels_digest": f"{cell.index:064x}",
            "evaluations": way.steps * way.rows,
            "measurements": dict(zip(METRICS, values.tolist(), strict=True)),
            "receipt": receipt_for(cell.request, order, picture, loaded, {}),
        }
    )


def reported(loaded: Models, matrix: tuple[int, int, int], edge: int) -> Reported:
    """A comparison of photos of that edge, whose small pictures are made before a clock runs."""
    comparison = a_comparison(loaded, matrix, edge)
    photos = cycle([photo(edge, number) for number in range(PHOTOS)])
    thumbnails = {
        cell.index: thumbnail(np.roll(pixels, 7 * cell.index, axis=1))
        for cell, pixels in zip(comparison.cells, photos, strict=False)
    }
    small = {index: decoded(data) for index, data in thumbnails.items()}
    arms = matrix[0]
    differences = {
        index: thumbnail(difference_map(pixels, small[index - index % arms]))
        for index, pixels in small.items()
        if index % arms
    }
    return Reported(comparison, thumbnails, differences)
