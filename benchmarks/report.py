"""What was measured beside what was wanted, for people and for the record."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.interleave import Spread


@dataclass(frozen=True)
class Row:
    """One line of the table: a measurement, and its goal where it has one."""

    what: str
    measured: float | None
    unit: str
    goal: float | None = None
    at_least: bool = False
    """The goal is a floor; else a ceiling."""
    spread: tuple[float, float] | None = None
    """The quartiles."""
    note: str = ""

    @property
    def met(self) -> bool | None:
        """None where there is nothing to meet, or nothing was measured."""
        if self.measured is None or self.goal is None:
            return None
        return self.measured >= self.goal if self.at_least else self.measured <= self.goal

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def row(what: str, spread: Spread, unit: str, *, times: float = 1.0, **more: Any) -> Row:
    """The row of a measurement with its quartiles; `times` converts the unit, 1000 for seconds to ms."""
    quartiles = (spread.quartile_1 * times, spread.quartile_3 * times)
    return Row(what, spread.median * times, unit, spread=quartiles, **more)


def times_as_fast(what: str, ratio: Spread, *, at_least: float | None = None) -> Row:
    """The row of a ratio, with its floor."""
    return row(what, ratio, "times as fast", goal=at_least, at_least=True)


def table(rows: Sequence[Row]) -> str:
    """The rows, aligned."""
    header = ("", "measured", "quartiles", "goal", "")
    lines = [header, *[_cells(row) for row in rows]]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    if row.measured is None:
        return row.what, "-", "", "", row.note
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    return (
        row.what,
        f"{_number(row.measured)} {row.unit}",
        f"{_number(row.spread[0])} to {_number(row.spread[1])}" if row.spread else "",
        f"{'≥' if row.at_least else '≤'} {_number(row.goal)}" if row.goal is not None else "",
        "; ".join(part for part in (verdict, row.note) if part),
    )


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"
