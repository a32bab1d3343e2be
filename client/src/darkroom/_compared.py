"""What a comparison found, as far as that takes no further word with the service: its cells, differences, tables."""

import difflib
import html
import importlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Generic, TypeAlias, TypeVar, overload

from darkroom._compare_calls import not_found
from darkroom._errors import BadResponse, api_error
from darkroom._files import PictureFile
from darkroom._images import Image
from darkroom.types import (
    CompareCell,
    CompareMetric,
    ComparePlan,
    CompareVerdict,
    Comparison,
    GenerateRequest,
    MetricInfo,
    Problem,
    Receipt,
    RunState,
)
from darkroom.types.compare import CellState
from darkroom.types.faults import bounded

CellKey: TypeAlias = tuple[str, str, int]
"""Arm, prompt and seed."""

_SIGNS = {"higher": "▲", "lower": "▼", "identical": "=", "no_difference": "·", "too_few": "?", "absent": ""}


class Compared:
    """One image of a comparison, without the way to its pixels."""

    def __init__(self, run: Comparison, cell: CompareCell) -> None:
        self._run = run
        self.cell = cell
        """The same as the service tells of it, with evaluations, seconds, and the cell that it is the `same_as`."""

    @property
    def arm(self) -> str:
        return self.cell.arm

    @property
    def prompt(self) -> str:
        """The comparison's; what was drawn is in `request`."""
        return self.cell.prompt

    @property
    def seed(self) -> int:
        return self.cell.seed

    @property
    def state(self) -> CellState:
        return self.cell.state

    @property
    def request(self) -> GenerateRequest:
        """`client.generate_request` makes this very picture of it."""
        return self.cell.request

    @property
    def measurements(self) -> dict[str, float]:
        """By metric. One that has no value here could not be measured."""
        return self.cell.measurements

    @property
    def receipt(self) -> Receipt | None:
        """How it was made, once it was."""
        return self.cell.receipt

    @property
    def problem(self) -> Problem | None:
        """Why it failed, where it did."""
        return self.cell.problem

    def __repr__(self) -> str:
        place = f"{self.arm!r}, {bounded(self.prompt)!r}, seed {self.seed}"
        return f"<{type(self).__name__} {place}: {self.state}>"

    def _drawn(self) -> Receipt:
        """How it was made.

        Raises: the error that a request of its own would have met, where it failed; `NotFound` before it is drawn.
        """
        if self.cell.problem is not None:
            raise api_error(self.cell.problem, self.cell.problem.status, None)
        if self.state != "done":
            detail = f"cell {self.cell.index} has no picture: comparison {self._run.id} is {self._run.state}"
            raise not_found(detail, "compare_cell_not_drawn")
        if self.cell.receipt is None:
            raise BadResponse(200, f"cell {self.cell.index} of {self._run.id} is done, but has no receipt")
        return self.cell.receipt

    def _image(self, data: bytes, receipt: Receipt) -> Image:
        return Image(data, "image/png", self.seed, self.cell.width, self.cell.height, receipt)


ComparedT = TypeVar("ComparedT", bound=Compared)


class Matrix(Generic[ComparedT]):
    """All cells of a comparison, by arm, prompt and seed, and what was found in them."""

    def __init__(self, comparison: Comparison, cells: Iterable[ComparedT]) -> None:
        self.comparison = comparison
        """As the service tells of it."""
        self._cells = {(cell.arm, cell.prompt, cell.seed): cell for cell in cells}

    @property
    def state(self) -> RunState:
        return self.comparison.state

    @property
    def plan(self) -> ComparePlan:
        """What was to be drawn, and what it cost."""
        return self.comparison.plan

    @property
    def arms(self) -> tuple[str, ...]:
        """Their names; `plan.arms` has what they are."""
        return tuple(arm.name for arm in self.plan.arms)

    @property
    def prompts(self) -> tuple[str, ...]:
        return tuple(self.plan.prompts)

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.plan.seeds)

    @property
    def verdicts(self) -> tuple[CompareVerdict, ...]:
        """What each metric says of each arm; `decides` is true of the metric that was named beforehand."""
        return tuple(self.comparison.verdicts)

    @property
    def conclusion(self) -> str:
        """What the deciding metric says, in a sentence or two."""
        return self.comparison.conclusion

    @overload
    def __getitem__(self, key: CellKey) -> ComparedT: ...
    @overload
    def __getitem__(self, key: str | tuple[str] | tuple[str, str]) -> tuple[ComparedT, ...]: ...
    def __getitem__(self, key: str | tuple[str | int, ...]) -> ComparedT | tuple[ComparedT, ...]:
        """The cell of an arm, a prompt and a seed; of an arm, or an arm and a prompt, all of its cells.

        Raises: `KeyError`, which says what there is.
        """
        asked = (key,) if isinstance(key, str) else key
        whole = ("arm", self.arms), ("prompt", self.prompts), ("seed", self.seeds)
        if not 1 <= len(asked) <= len(whole):
            raise KeyError("a key is an arm, an arm and a prompt, or an arm, a prompt and a seed")
        for (what, there), one in zip(whole, asked, strict=False):
            _known(what, one, there)
        found = tuple(cell for place, cell in self._cells.items() if place[: len(asked)] == asked)
        return found[0] if len(asked) == len(whole) else found

    def __iter__(self) -> Iterator[ComparedT]:
        return iter(self._cells.values())

    def __len__(self) -> int:
        return len(self._cells)

    def differences(self, metric: CompareMetric, arm: str) -> dict[tuple[str, int], float]:
        """The arm's values less the baseline's of the same prompt and seed, by those two, where both were measured.
        Of a metric that is a distance, the arm's values, which are distances to the baseline already.

        Raises: `KeyError` for a metric that was not measured or an arm that there is not.
        """
        info = self._metric(metric)
        values = {(cell.prompt, cell.seed): cell.measurements.get(metric) for cell in self[arm]}
        base = {
            (cell.prompt, cell.seed): 0.0 if info.kind == "distance" else cell.measurements.get(metric)
            for cell in self[self.plan.baseline]
        }
        pairs = {place: (value, base.get(place)) for place, value in values.items()}
        return {
            place: value - held
            for place, (value, held) in pairs.items()
            if value is not None and held is not None
        }

    def to_pandas(self) -> Any:
        """A `pandas.DataFrame` with one row a cell: arm, prompt, seed, state, and every measurement.

        Raises: `ImportError` where pandas is not installed.
        """
        try:
            pandas = importlib.import_module("pandas")
        except ImportError as error:
            raise ImportError(
                f"{type(self).__name__}.to_pandas() needs pandas; install it with: "
                "pip install 'darkroom-client[pandas]'"
            ) from error
        metrics = [info.metric for info in self.comparison.metrics]
        rows = [
            (cell.arm, cell.prompt, cell.seed, cell.state, *map(cell.measurements.get, metrics))
            for cell in self
        ]
        # Seeds have 64 bits without a sign, more than pandas would choose for small ones.
        frame = pandas.DataFrame(rows, columns=["arm", "prompt", "seed", "state", *metrics])
        return frame.astype({"seed": "uint64"} | dict.fromkeys(metrics, "float64"))

    def __repr__(self) -> str:
        run, plan = self.comparison, self.plan
        shape = " × ".join(
            _counted(len(those), what)
            for what, those in (("arm", plan.arms), ("prompt", plan.prompts), ("seed", plan.seeds))
        )
        failed = sum(cell.state == "failed" for cell in self)
        facts = f"{shape}, {run.done} of {plan.cells} cells" + (f", {failed} failed" if failed else "")
        return f"<{type(self).__name__} {run.id} {run.state}: {facts}>"

    def _metric(self, metric: str) -> MetricInfo:
        there = {str(info.metric): info for info in self.comparison.metrics}
        _known("metric", metric, [*there])
        return there[metric]

    def _html(self, sheet: PictureFile | None) -> str:
        """The conclusion, the verdicts as a table, and the sheet."""
        title = html.escape(self.comparison.name or self.comparison.id)
        says = html.escape(self.conclusion or f"The comparison is {self.state}.")
        picture = ""
        if sheet is not None:
            source = f"data:{sheet.media_type};base64,{sheet._base64()}"
            picture = f'<img src="{source}" alt="contact sheet" style="max-width:100%">'
        return f"<div><p><b>{title}</b></p><p>{says}</p>{self._table()}{picture}</div>"

    def _table(self) -> str:
        if not self.verdicts:
            return ""
        metrics = sorted(self.comparison.metrics, key=lambda info: not info.decides)
        found = {(verdict.arm, verdict.metric): verdict for verdict in self.verdicts}
        heads = "".join(
            f'<th title="{html.escape(info.title)}">{_strong(info.metric, info.decides)}</th>'
            for info in metrics
        )
        rows = "".join(
            f'<tr><th style="text-align:left">{html.escape(arm)}</th>'
            + "".join(_verdict_cell(found.get((arm, info.metric))) for info in metrics)
            + "</tr>"
            for arm in self.arms
            if arm != self.plan.baseline
        )
        baseline = html.escape(self.plan.baseline)
        return f"<table><thead><tr><th>less {baseline}</th>{heads}</tr></thead><tbody>{rows}</tbody></table>"


def _verdict_cell(verdict: CompareVerdict | None) -> str:
    if verdict is None:
        return "<td></td>"
    value = "" if verdict.mean_difference is None else f"{verdict.mean_difference:+.3g}"
    text = f"{value} {_SIGNS.get(verdict.outcome, verdict.outcome)}".strip()
    return f'<td title="{html.escape(verdict.note)}">{_strong(text, verdict.decides)}</td>'


def _strong(text: str, strong: bool) -> str:
    return f"<b>{html.escape(text)}</b>" if strong else html.escape(text)


def _known(what: str, one: object, there: Sequence[object]) -> None:
    if one in there:
        return
    near = difflib.get_close_matches(str(one)[:200], [str(other) for other in there], n=1)
    guess = f"; did you mean {bounded(near[0])!r}?" if near else "."
    names = bounded(", ".join(repr(other) for other in there) or "none")
    raise KeyError(f"no {what} {bounded(repr(one))} in this comparison{guess} It has {names}")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")
