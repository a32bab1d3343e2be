"""The comparisons of `FakeDarkroom`: over as soon as they are begun, of its own pictures."""

import base64
import hashlib
import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import unquote

from pydantic import ValidationError

from darkroom._errors import refusal_of
from darkroom._fake_answers import answered, refused, told
from darkroom._fake_arms import arms_of, seeds_of
from darkroom._fake_loras import Answer, Asked, FakeLoras, Refused
from darkroom._fake_pictures import generated, png, tiles
from darkroom._fake_verdicts import Rows, conclusion, distances, measured, metrics_of, verdict
from darkroom.types import (
    CompareCell,
    CompareEvaluations,
    CompareEvent,
    CompareFile,
    ComparePlan,
    CompareRequest,
    Comparison,
    ComparisonPage,
    GenerateRequest,
    PlannedArm,
    Problem,
)

_WHEN = datetime(2024, 1, 1, tzinfo=UTC)
_EVALUATIONS_A_STEP = 2
_EVALUATIONS_OF_ADHERENCE = 8


@dataclass(frozen=True)
class Failure:
    """What a comparison is to fail with: as a whole and half-way, or in these cells alone."""

    problem: Problem
    cells: frozenset[int] | None = None


@dataclass
class _Kept:
    run: Comparison
    events: list[CompareEvent] = field(default_factory=list)
    pictures: dict[int, bytes] = field(default_factory=dict)
    rows: dict[int, Rows] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


class FakeCompare:
    """All comparisons of one fake, whose LoRAs are those."""

    def __init__(self, loras: FakeLoras) -> None:
        self._loras = loras
        self._kept: dict[str, _Kept] = {}
        self._keys: dict[str, tuple[bytes, str]] = {}
        self._ids = itertools.count(1)
        self.failures: list[Failure] = []
        """Of the next comparisons."""

    def answer(self, asked: Asked) -> Answer:
        """What the service would say.

        Raises:
            Refused
        """
        _, _, resource, *parts = map(unquote, asked.path.split("/"))
        match asked.method, resource, parts:
            case "POST", "compare", []:
                return self._create(asked)
            case "GET", "runs", []:
                return answered(ComparisonPage(items=self._listed(asked.query.get("state", []))))
            case "GET" | "DELETE", "runs", [run]:
                return answered(self._find(run).run)
            case "GET", "runs", [run, "events"]:
                kept = self._find(run)
                return told(kept.events, kept.run, asked)
            case "GET", "runs", [run, "images", cell]:
                return _image(self._find(run), cell)
            case "GET", "runs", [run, "files", *name]:
                return _file(self._find(run), "/".join(name))
        raise refused(404, "not_found", "nothing is served at this path")

    def _create(self, asked: Asked) -> Answer:
        try:
            request = CompareRequest.model_validate_json(asked.body)
        except ValidationError as error:
            raise Refused(refusal_of(error)) from None
        key = asked.headers.get("idempotency-key", "")
        body, known = self._keys.get(key, (b"", ""))
        if known and body != asked.body:
            raise refused(422, "idempotency_key_reused", f"Idempotency-Key '{key}' was used for another run")
        if known:
            return answered(self._find(known).run, 202, {"Idempotent-Replayed": "true"})
        arms = arms_of(request, self._loras)
        cells, rows = _cells(arms, request)
        plan = _plan(arms, request, cells)
        if request.dry_run:
            return answered(plan)
        run = Comparison(
            id=f"cmp_{next(self._ids)}",
            state="queued",
            name=request.name,
            request=request,
            plan=plan,
            cells=cells,
            metrics=metrics_of(request),
            model="0" * 64,
            created_at=_WHEN,
        )
        kept = self._kept[run.id] = _Kept(run, rows=rows)
        if key:
            self._keys[key] = (asked.body, run.id)
        self._run(kept)
        return answered(run, 202, {"Location": f"/v1/runs/{run.id}"})

    def _run(self, kept: _Kept) -> None:
        """Everything that happens to a comparison, at once."""
        failure = self.failures.pop(0) if self.failures else None
        _tell(kept, "state", state="queued")
        _change(kept, state="running", stage="drawing", started_at=_WHEN, attempts=1)
        _tell(kept, "state", state="running")
        _tell(kept, "stage", stage="drawing")
        for cell in kept.run.cells:
            if failure and failure.cells is None and 2 * cell.index >= kept.run.plan.cells:
                _change(kept, state="failed", stage="done", problem=failure.problem, finished_at=_WHEN)
                _tell(kept, "state", state="failed", message=failure.problem.detail)
                return
            problem = failure.problem if failure and cell.index in (failure.cells or ()) else None
            self._draw(kept, cell, problem)
        _change(kept, stage="measuring")
        _tell(kept, "stage", stage="measuring")
        _measure(kept)
        for name, media_type, data in _made(kept):
            kept.files[name] = data
            file = CompareFile(
                name=name, media_type=media_type, size_bytes=len(data), digest=f"sha256:{_sha256(data)}"
            )
            _change(kept, files=[*kept.run.files, file])
        _change(kept, state="succeeded", stage="done", finished_at=_WHEN)
        _tell(kept, "state", state="succeeded")

    def _draw(self, kept: _Kept, cell: CompareCell, problem: Problem | None) -> None:
        if problem is None:
            loras = self._loras.named_in([use.ref for use in cell.request.loras])
            (image,) = generated(cell.request, cell.index, loras).images
            kept.pictures[cell.index] = base64.b64decode(image.b64)
            evaluations = 0 if cell.same_as is not None else _evaluations(cell.request)
            known: dict[str, Any] = {
                "state": "done",
                "image": f"/v1/runs/{kept.run.id}/images/{cell.index}",
                "width": image.width,
                "height": image.height,
                "pixels_digest": _digest(cell.request, kept.rows[cell.index]),
                "evaluations": evaluations,
                "measurements": measured(kept.rows[cell.index], kept.run.metrics),
                "receipt": image.receipt,
            }
        else:
            known = {"state": "failed", "problem": problem}
        _set_cell(kept, cell.index, **known)
        _change(kept, done=kept.run.done + 1)
        _tell(kept, "cell", cell=cell.index, message=problem and problem.detail)

    def _find(self, run_id: str) -> _Kept:
        if run_id not in self._kept:
            raise refused(404, "comparison_not_found", f"comparison '{run_id}' was not found")
        return self._kept[run_id]

    def _listed(self, states: Sequence[str]) -> list[Comparison]:
        runs = [kept.run for kept in reversed(self._kept.values()) if not states or kept.run.state in states]
        return [run.model_copy(update={"cells": [], "verdicts": [], "files": []}) for run in runs]


def _cells(arms: Sequence[PlannedArm], request: CompareRequest) -> tuple[list[CompareCell], dict[int, Rows]]:
    """All cells, waiting, and the tiles of their pictures."""
    cells: list[CompareCell] = []
    rows: dict[int, Rows] = {}
    first: dict[str, int] = {}
    places = itertools.product(request.prompts, seeds_of(request.seeds), arms)
    for index, (prompt, seed, arm) in enumerate(places):
        text = prompt if arm.prompt is None else arm.prompt.replace("{prompt}", prompt)
        said = arm.settings.model_dump(exclude_unset=True)
        try:
            order = GenerateRequest.model_validate({**said, "prompt": text, "seed": seed})
        except ValidationError as error:
            raise Refused(refusal_of(error)) from None
        rows[index] = tiles(order, seed)
        found = first.setdefault(_digest(order, rows[index]), index)
        same_as = None if found == index else found
        cells.append(
            CompareCell(index=index, arm=arm.name, prompt=prompt, seed=seed, request=order, same_as=same_as)
        )
    return cells, rows


def _plan(arms: list[PlannedArm], request: CompareRequest, cells: Sequence[CompareCell]) -> ComparePlan:
    drawn = [cell.request for cell in cells if cell.same_as is None]
    return ComparePlan(
        arms=arms,
        baseline=request.baseline or arms[0].name,
        prompts=list(request.prompts),
        seeds=seeds_of(request.seeds),
        cells=len(cells),
        pictures=len(drawn),
        evaluations=CompareEvaluations(
            planned=sum(map(_evaluations, drawn)),
            naive=sum(_evaluations(cell.request) for cell in cells),
            measuring=_EVALUATIONS_OF_ADHERENCE * len(drawn) if request.adherence else 0,
        ),
        swaps=len({order.loras for order in drawn} - {()}),
        estimated_seconds=0.0,
        metrics=[info.metric for info in metrics_of(request)],
        fits=True,
    )


def _measure(kept: _Kept) -> None:
    """Distances to the baseline's pictures, verdicts and what they come to."""
    run = kept.run
    done = {(cell.arm, cell.prompt, cell.seed): cell for cell in run.cells if cell.state == "done"}
    for cell in done.values():
        held = done.get((run.plan.baseline, cell.prompt, cell.seed))
        if held is not None and (held.width, held.height) == (cell.width, cell.height):
            apart = distances(kept.rows[cell.index], kept.rows[held.index])
            _set_cell(kept, cell.index, measurements={**cell.measurements, **apart})
    values = {(cell.arm, cell.prompt, cell.seed): cell.measurements for cell in kept.run.cells}
    places = [*itertools.product(run.plan.prompts, run.plan.seeds)]
    found = [
        verdict(arm.name, run.plan.baseline, info, values, places)
        for arm in run.plan.arms
        if arm.name != run.plan.baseline
        for info in run.metrics
    ]
    _change(kept, verdicts=found, conclusion=conclusion(found))


def _made(kept: _Kept) -> list[tuple[str, str, bytes]]:
    """Name, media type and bytes of the files that a comparison leaves."""
    run = kept.run
    title, notes = run.name or run.id, [one.note for one in run.verdicts]
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<h1>{html.escape(title)}</h1><p>{html.escape(run.conclusion)}</p><ul>{items}</ul></html>"
    )
    lines = "\n".join(f"- {note}" for note in notes)
    return [
        ("sheet.png", "image/png", _sheet(kept)),
        ("report.html", "text/html; charset=utf-8", page.encode()),
        ("report.md", "text/markdown; charset=utf-8", f"# {title}\n\n{run.conclusion}\n\n{lines}\n".encode()),
        ("comparison.json", "application/json", run.model_dump_json(exclude_unset=True).encode()),
    ]


def _sheet(kept: _Kept) -> bytes:
    """Arms side by side, a row for each prompt and seed, one pixel a tile."""
    arms = len(kept.run.plan.arms)
    rows = []
    for start in range(0, kept.run.plan.cells, arms):
        beside = [kept.rows[index] for index in range(start, start + arms)]
        rows += [b"".join(parts) for parts in zip(*beside, strict=True)]
    return png(rows)


def _digest(order: GenerateRequest, rows: Rows) -> str:
    """Of the pixels, which the tiles and the size determine."""
    return _sha256(f"{order.width} {order.height} ".encode() + b"".join(rows))


def _evaluations(order: GenerateRequest) -> int:
    return _EVALUATIONS_A_STEP * order.num_inference_steps


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _change(kept: _Kept, **fields: Any) -> None:
    kept.run = kept.run.model_copy(update=fields)


def _set_cell(kept: _Kept, index: int, **fields: Any) -> None:
    # A new list: the answer that told of the cells before has the old one.
    cells = list(kept.run.cells)
    cells[index] = cells[index].model_copy(update=fields)
    _change(kept, cells=cells)


def _tell(kept: _Kept, type: str, **fields: Any) -> None:
    total = kept.run.plan.cells
    said = {"id": len(kept.events) + 1, "type": type, "at": _WHEN, "done": kept.run.done, "total": total}
    kept.events.append(CompareEvent.model_validate({**said, **fields}))


def _image(kept: _Kept, cell: str) -> Answer:
    data = kept.pictures.get(int(cell)) if cell.isdecimal() else None
    if data is None:
        raise refused(404, "compare_file_not_found", f"comparison '{kept.run.id}' has no image '{cell}'")
    return Answer(200, data, {"Content-Type": "image/png"})


def _file(kept: _Kept, name: str) -> Answer:
    if name not in kept.files:
        raise refused(404, "compare_file_not_found", f"comparison '{kept.run.id}' has no file '{name}'")
    (file,) = (one for one in kept.run.files if one.name == name)
    return Answer(200, kept.files[name], {"Content-Type": file.media_type, "ETag": f'"{file.digest}"'})
