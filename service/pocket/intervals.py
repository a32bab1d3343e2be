"""Figures with their uncertainty: shares with Wilson's interval, means and differences by bootstrap."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch

CONFIDENCE_Z = 1.96


@dataclass(frozen=True)
class Figure:
    """One measured number with its 95 % interval; `target` is what it should reach, if there is a promise."""

    name: str
    value: float
    low: float
    high: float
    count: int
    kind: Literal["share", "mean", "difference"]
    target: float | None = None

    @property
    def is_met(self) -> bool:
        """A share or mean meets its target by its value; a difference must exceed it beyond doubt."""
        if self.target is None:
            return True
        return self.low > self.target if self.kind == "difference" else self.value >= self.target

    def __str__(self) -> str:
        goal = "" if self.target is None else f"  target {self.target:g} {'met' if self.is_met else 'MISSED'}"
        return f"{self.name}: {self.value:.4f} [{self.low:.4f}, {self.high:.4f}] n {self.count}{goal}"


def share(name: str, hits: Sequence[bool], target: float | None = None) -> Figure:
    """The share of `hits` with Wilson's score interval, which holds near 0 and 1 too."""
    n = len(hits)
    if n == 0:
        return Figure(name, 0.0, 0.0, 1.0, 0, "share", target)
    p, z = sum(hits) / n, CONFIDENCE_Z
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return Figure(name, p, max(0.0, centre - half), min(1.0, centre + half), n, "share", target)


def mean(name: str, values: Sequence[float], target: float | None = None) -> Figure:
    """The mean of `values` with a bootstrap interval."""
    return Figure(name, *_bootstrap(values), len(values), "mean", target)


def difference(
    name: str, after: Sequence[float], before: Sequence[float], target: float | None = 0.0
) -> Figure:
    """The mean of `after` minus `before`, pair by pair, with a bootstrap interval."""
    pairs = [a - b for a, b in zip(after, before, strict=True)]
    return Figure(name, *_bootstrap(pairs), len(pairs), "difference", target)


def _bootstrap(values: Sequence[float], rounds: int = 2000) -> tuple[float, float, float]:
    """Mean and the 2.5 % and 97.5 % quantiles of the means of `rounds` samples drawn with replacement."""
    data = torch.tensor(values, dtype=torch.float64)
    rows = torch.randint(0, len(data), (rounds, len(data)), generator=torch.Generator().manual_seed(0))
    means = data[rows].mean(1)
    return float(data.mean()), float(means.quantile(0.025)), float(means.quantile(0.975))


def write_figures(figures: Sequence[Figure], path: Path) -> None:
    path.write_text(json.dumps([asdict(figure) for figure in figures], indent=1) + "\n")


def read_figures(path: Path) -> list[Figure]:
    return [Figure(**facts) for facts in json.loads(path.read_text())]
