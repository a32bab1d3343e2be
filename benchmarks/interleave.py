"""Contenders that take turns, and what can be said of their seconds.

A machine that grows slower for a minute does so for all of them, so a ratio taken round by round stands where two
medians taken one after the other would not.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from typing import Any

Contender = Callable[[int], float]
"""Does its work for the round of this number, and answers the seconds that it counts."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of some measurements."""

    median: float
    quartile_1: float
    quartile_3: float


@dataclass(frozen=True)
class Rounds:
    """Seconds of each contender, round by round."""

    seconds: dict[str, list[float]]

    def spread(self, name: str) -> Spread:
        return _spread(self.seconds[name])

    def ratio(self, slower: str, faster: str) -> Spread:
        """How many times as long `slower` took, pair by pair."""
        return _spread([one / other for one, other in self._pairs(slower, faster)])

    def difference(self, slower: str, faster: str) -> Spread:
        """How many seconds more `slower` took, pair by pair."""
        return _spread([one - other for one, other in self._pairs(slower, faster)])

    def figures(self, ours: str) -> dict[str, Any]:
        """All of it for a record: seconds of each, and how many times faster `ours` is than each other."""
        return {
            "rounds": len(self.seconds[ours]),
            "seconds": {name: asdict(self.spread(name)) for name in self.seconds},
            "times_faster_than": {
                name: asdict(self.ratio(name, ours)) for name in self.seconds if name != ours
            },
        }

    def _pairs(self, one: str, other: str) -> list[tuple[float, float]]:
        return list(zip(self.seconds[one], self.seconds[other], strict=True))


def interleave(contenders: Mapping[str, Contender], rounds: int, *, warm_ups: int = 1) -> Rounds:
    """Measure the contenders in turn, another one first in every round. Warm-up rounds are not counted."""
    names = list(contenders)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(-warm_ups, rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            taken = contenders[name](number + warm_ups)
            if number >= 0:
                seconds[name].append(taken)
    return Rounds(seconds)


def wall(work: Callable[[int], object], *, settle: Callable[[], None] = lambda: None) -> Contender:
    """A contender that counts the seconds that `work` takes by the clock; `settle` waits for a device."""

    def measured(number: int) -> float:
        settle()
        started = time.perf_counter()
        work(number)
        settle()
        return time.perf_counter() - started

    return measured


def _spread(values: list[float]) -> Spread:
    if len(values) == 1:
        return Spread(values[0], values[0], values[0])
    lower, _, upper = quantiles(values, n=4, method="inclusive")
    return Spread(median(values), lower, upper)
