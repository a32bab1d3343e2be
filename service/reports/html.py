"""The report as one HTML file that needs nothing else: no network, no script but its own."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Final

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from darkroom.types import CompareCell, CompareVerdict, Comparison, MetricInfo, PictureSettings
from service.reports import words
from service.reports.differences import COLOURS, SCALE_DELTA_E
from service.reports.intervals import Scale, drawn_interval, scale_of
from service.reports.shown import Shown, shown
from service.reports.thumbnails import AS_IT_IS_PX, size_of

MAX_CELLS: Final = 1500
"""That are shown as pictures; a browser is slow with more. The tables are of all."""
MAX_PICTURE_BYTES: Final = 48_000_000
COLOUR_STOPS: Final = 16


@dataclass(frozen=True)
class ShownCell:
    """A cell with its places among the arms, prompts and seeds, which are what filters go by."""

    cell: CompareCell
    arm: int
    prompt: int
    seed: int
    picture: str
    """A data URL; empty where there is no picture."""
    difference: str
    is_small: bool
    """To be enlarged without smoothing."""
    instead: str
    """What is said where there is no picture."""
    measured: Sequence[tuple[MetricInfo, float | None, float | None]]
    """Metric, value, and the same of the baseline's picture."""
    request: str
    receipt: str


@dataclass(frozen=True)
class MetricTable:
    """All verdicts of one metric, drawn on one scale."""

    info: MetricInfo
    verdicts: Sequence[CompareVerdict]
    scale: Scale


def html_report(
    comparison: Comparison, thumbnails: Mapping[int, bytes], differences: Mapping[int, bytes]
) -> str:
    """The page. `thumbnails` and `differences` are encoded pictures by the index of their cell.

    Whatever a caller wrote is escaped, and a policy in the page forbids every script and every request but its own.
    """
    plan = comparison.plan
    part = shown(plan, _rows_that_fit(len(plan.arms), thumbnails, differences))
    tables = _tables(comparison)
    baseline = [arm.name for arm in plan.arms].index(plan.baseline)
    return (
        _environment()
        .get_template("report.html")
        .render(
            comparison=comparison,
            plan=plan,
            part=part,
            rows=_rows(comparison, part, thumbnails, differences),
            deciding=[table for table in tables if table.info.decides],
            describing=[table for table in tables if not table.info.decides],
            baseline=baseline,
            first_other=1 if baseline == 0 else 0,
            settings=[_settings(arm.settings) for arm in plan.arms],
            colours=[f"#{bytes(colour).hex()}" for colour in COLOURS[:: 255 // (COLOUR_STOPS - 1)]],
            full_scale=SCALE_DELTA_E,
        )
    )


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(words=words, drawn_interval=drawn_interval, tone=_tone)
    environment.filters["policy_hash"] = _policy_hash
    return environment


def _policy_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _rows_that_fit(arms: int, *pictures: Mapping[int, bytes]) -> int:
    size_bytes = sum(len(data) for by_index in pictures for data in by_index.values())
    cells = max((len(by_index) for by_index in pictures), default=0)
    fit = (
        int(cells * min(1.0, MAX_PICTURE_BYTES / size_bytes)) if size_bytes > MAX_PICTURE_BYTES else MAX_CELLS
    )
    return max(1, min(fit, MAX_CELLS) // max(1, arms))


def _rows(
    comparison: Comparison, part: Shown, thumbnails: Mapping[int, bytes], differences: Mapping[int, bytes]
) -> list[list[list[ShownCell]]]:
    """Cells by prompt, by seed and by arm."""
    plan = comparison.plan
    by_place = {(cell.prompt, cell.seed, cell.arm): cell for cell in comparison.cells}

    def shown_cell(prompt: int, seed: int, arm: int) -> ShownCell:
        name, row = plan.arms[arm].name, (part.prompts[prompt], part.seeds[seed])
        cell, baseline = by_place[*row, name], by_place[*row, plan.baseline]
        data, difference = thumbnails.get(cell.index, b""), differences.get(cell.index, b"")
        return ShownCell(
            cell=cell,
            arm=arm,
            prompt=prompt,
            seed=seed,
            picture=_data_url(data),
            difference=_data_url(difference),
            is_small=bool(data) and max(size_of(data)) <= AS_IT_IS_PX,
            instead="" if data else _instead(cell),
            measured=[
                (info, cell.measurements.get(info.metric), baseline.measurements.get(info.metric))
                for info in comparison.metrics
            ],
            request=_json(cell.request.model_dump(mode="json", exclude_defaults=True)),
            receipt=_json(cell.receipt.model_dump(mode="json")) if cell.receipt else "",
        )

    return [
        [[shown_cell(prompt, seed, arm) for arm in range(len(plan.arms))] for seed in range(len(part.seeds))]
        for prompt in range(len(part.prompts))
    ]


def _instead(cell: CompareCell) -> str:
    if cell.state == "failed":
        return f"failed: {cell.problem.detail if cell.problem else 'no reason was kept'}"
    return "not drawn yet" if cell.state == "waiting" else "the picture is gone"


def _tables(comparison: Comparison) -> list[MetricTable]:
    by_metric = {
        info.metric: [verdict for verdict in comparison.verdicts if verdict.metric == info.metric]
        for info in comparison.metrics
    }
    return [
        MetricTable(info, by_metric[info.metric], scale_of(by_metric[info.metric]))
        for info in comparison.metrics
        if by_metric[info.metric]
    ]


def _tone(info: MetricInfo, verdict: CompareVerdict) -> str:
    """`good` or `bad` where the metric says which way is the good one and the verdict which way it went."""
    if info.better is None or info.kind == "distance" or verdict.outcome not in ("higher", "lower"):
        return "plain"
    return "good" if verdict.outcome == info.better else "bad"


def _settings(settings: PictureSettings) -> dict[str, str]:
    """What an arm sets, each value as JSON."""
    chosen = settings.model_dump(mode="json", exclude_defaults=True)
    return {name: json.dumps(value, ensure_ascii=False) for name, value in chosen.items()}


def _json(value: object) -> Markup:
    """As the text of an element, in which quotes may stand as they are: there are thousands of them."""
    return Markup(escape(json.dumps(value, ensure_ascii=False, indent=2), quote=False))


def _data_url(data: bytes) -> str:
    if not data:
        return ""
    kind = "png" if data.startswith(b"\x89PNG") else "webp"
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
