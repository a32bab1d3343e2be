"""Verdicts: what each metric says of each arm, from pairs of the same prompt and seed. Absolute scores of different
prompts are never averaged: a prompt that scores high would drown what the arm does."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from darkroom.types import CompareMetric, CompareOutcome, CompareVerdict, Direction
from service.measurements import sentences
from service.measurements.metrics import EQUAL, METRICS, good_direction
from service.measurements.sentences import conclusion, warnings
from service.measurements.statistics import SIGNIFICANT_BELOW, fewest_pairs, holm, intervals, sign_test

__all__ = ["conclusion", "verdicts", "warnings"]

CONFIDENCE: Final = 1 - SIGNIFICANT_BELOW

Pair = tuple[str, int]
"""A prompt and a seed."""
Cell = tuple[str, str, int]
"""An arm, a prompt and a seed."""


@dataclass
class _Finding:
    """One metric of one arm: a difference by pair, or a distance, and what is worked out of them."""

    arm: str
    metric: CompareMetric
    by_pair: dict[Pair, float]
    interval: tuple[float, float] | None = None
    corrected_interval: tuple[float, float] | None = None
    corrected_p_value: float | None = None

    @property
    def is_distance(self) -> bool:
        return METRICS[self.metric].kind == "distance"

    @property
    def wins(self) -> int:
        return 0 if self.is_distance else sum(value > 0 for value in self.by_pair.values())

    @property
    def losses(self) -> int:
        return 0 if self.is_distance else sum(value < 0 for value in self.by_pair.values())


def verdicts(
    values: Mapping[Cell, Mapping[str, float]],
    *,
    arms: Sequence[str],
    baseline: str,
    metrics: Sequence[CompareMetric],
    decides: CompareMetric | None,
    better: Direction | None,
    seed: int = 0,
) -> list[CompareVerdict]:
    """A verdict on every arm but the baseline by every metric, arm by arm. `seed` is of the bootstrap.

    What a cell lacks, or has as no finite number, is in no pair. The outcome of a value is

    absent          there is no pair
    identical       every pair has exactly the same value twice
    too_few         so few pairs differ that even unanimous ones could not be significant for this number of arms
    higher, lower   the corrected interval excludes 0, and most of the pairs that differ do so in this direction: a few
                    extreme pairs must not speak against the others. That the sign test be significant is not asked
                    for, since it throws away how large differences are and would miss much
    no_difference   else

    A distance cannot be negative, so that "is it 0?" is answered by any pair that differs. Its outcome says just that:
    `identical` where all pictures equal the baseline's, else the side of equality on which distances lie, `lower` for
    SSIM and PSNR and `higher` for the perceptual distance. It has no wins and no p-value.
    """
    compared = [arm for arm in arms if arm != baseline]
    findings = [
        _Finding(arm, metric, _by_pair(values, arm, baseline, metric))
        for arm in compared
        for metric in metrics
    ]
    _find_intervals(findings, arms=len(compared), seed=seed)
    for metric in metrics:
        _correct_sign_tests([finding for finding in findings if finding.metric == metric])
    found = []
    for finding in findings:
        verdict = _verdict(finding, decides, arms=len(compared))
        way = good_direction(finding.metric, decides, better)
        told = sentences.note(verdict, baseline=baseline, arms=len(compared), decides=decides, better=way)
        found.append(verdict.model_copy(update={"note": told}))
    return found


def _by_pair(
    values: Mapping[Cell, Mapping[str, float]], arm: str, baseline: str, metric: CompareMetric
) -> dict[Pair, float]:
    is_distance = METRICS[metric].kind == "distance"
    found = {}
    for (name, prompt, seed), measured in values.items():
        if name != arm:
            continue
        value = measured.get(metric, math.nan)
        if not is_distance:
            value -= values.get((baseline, prompt, seed), {}).get(metric, math.nan)
        if math.isfinite(value):
            found[prompt, seed] = value
    return found


def _find_intervals(findings: Sequence[_Finding], *, arms: int, seed: int) -> None:
    """Give an interval to every finding of two pairs or more; those with the same pairs are resampled together."""
    alike: dict[tuple[Pair, ...], list[_Finding]] = {}
    for finding in findings:
        if len(finding.by_pair) > 1:
            alike.setdefault(tuple(sorted(finding.by_pair)), []).append(finding)
    for pairs, members in alike.items():
        columns = np.array([[finding.by_pair[pair] for finding in members] for pair in pairs])
        prompts = [prompt for prompt, _ in pairs]
        alone, together = intervals(columns, prompts, (CONFIDENCE, 1 - SIGNIFICANT_BELOW / arms), seed=seed)
        for finding, own, corrected in zip(members, alone, together, strict=True):
            finding.interval = _within_bounds(finding.metric, own)
            finding.corrected_interval = _within_bounds(finding.metric, corrected)


def _within_bounds(metric: CompareMetric, interval: np.ndarray) -> tuple[float, float]:
    """The ends as numbers; those of a distance stop where pictures are equal."""
    low, high = float(interval[0]), float(interval[1])
    if metric not in EQUAL:
        return low, high
    equal = EQUAL[metric]
    return (max(low, equal), max(high, equal)) if equal == 0 else (min(low, equal), min(high, equal))


def _correct_sign_tests(of_one_metric: Sequence[_Finding]) -> None:
    corrected = holm([sign_test(finding.wins, finding.losses) for finding in of_one_metric])
    for finding, p_value in zip(of_one_metric, corrected, strict=True):
        finding.corrected_p_value = p_value


def _verdict(finding: _Finding, decides: CompareMetric | None, *, arms: int) -> CompareVerdict:
    """All but the note."""
    pairs, wins, losses = len(finding.by_pair), finding.wins, finding.losses
    return CompareVerdict(
        arm=finding.arm,
        metric=finding.metric,
        decides=finding.metric == decides,
        outcome=_distance_outcome(finding) if finding.is_distance else _outcome(finding, arms),
        pairs=pairs,
        mean_difference=math.fsum(finding.by_pair.values()) / pairs if pairs else None,
        interval=finding.interval,
        corrected_interval=finding.corrected_interval,
        wins=wins,
        losses=losses,
        ties=0 if finding.is_distance else pairs - wins - losses,
        win_rate=wins / (wins + losses) if wins + losses else None,
        p_value=sign_test(wins, losses),
        corrected_p_value=finding.corrected_p_value,
        note="",
    )


def _outcome(finding: _Finding, arms: int) -> CompareOutcome:
    wins, losses = finding.wins, finding.losses
    if not finding.by_pair:
        return "absent"
    if not wins + losses:
        return "identical"
    if wins + losses < fewest_pairs(arms) or finding.corrected_interval is None:
        return "too_few"
    low, high = finding.corrected_interval
    if low > 0 and wins > losses:
        return "higher"
    if high < 0 and losses > wins:
        return "lower"
    return "no_difference"


def _distance_outcome(finding: _Finding) -> CompareOutcome:
    if not finding.by_pair:
        return "absent"
    equal = EQUAL[finding.metric]
    if all(value == equal for value in finding.by_pair.values()):
        return "identical"
    return "higher" if equal == 0 else "lower"
