"""The mathematics of paired comparisons: an interval of a mean, the sign test, and both for several arms.

Shapes: N pairs, K columns that have the same pairs.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

SIGNIFICANT_BELOW: Final = 0.05
MOST_ROUNDS: Final = 10_000
FEWEST_ROUNDS: Final = 2_000
ROUNDS_TIMES_PAIRS: Final = 5_000_000
"""Few pairs need many resamplings for far tails; of many pairs the mean is close to normal, and fewer do."""
_CHUNK: Final = 4_000_000


def intervals(
    differences_NK: NDArray[np.float64],
    groups: Sequence[Hashable],
    confidences: Sequence[float],
    *,
    seed: int = 0,
) -> list[NDArray[np.float64]]:
    """Bootstrap intervals (K, 2) of the columns' means, one array for each confidence; N is at least 2.

    `groups` names the prompt of each pair. Pairs are drawn again within their prompt, since prompts are chosen and
    seeds are the sample; where a prompt has a single pair, out of all.

    The percentiles are scaled about the mean by sqrt(n / (n - 1)) × t / z, with n of each prompt and t with N less the
    number of prompts degrees of freedom, after Hesterberg (The American Statistician 69, 2015), who shows why they are
    too narrow as they are; and no end is nearer than Student's t has it, which helps where differences have few levels.
    Share of 95 % intervals that hold the truth, in 1500 simulated studies or more, for n = 8 (and 16) pairs:

                      normal        skewed        heavy tails   few levels
        percentile    0.90 (0.93)   0.85 (0.89)   0.88 (0.90)   0.91 (0.93)
        BCa           0.90 (0.92)   0.86 (0.90)   0.85 (0.86)   0.91 (0.93)
        studentized   0.95 (0.95)   0.94 (0.94)   0.93 (0.91)   0.93 (0.95)
        this one      0.95 (0.95)   0.90 (0.92)   0.96 (0.96)   0.96 (0.95)

    False findings come from arms without effect, whose differences are symmetric: there this one holds best, whereas
    the studentized one has no finite width where resamples are all alike, as with two seeds a prompt. Of strongly
    skewed differences (exponential ones, above) it holds less than it promises: of intervals for eight arms 0.97, not
    0.994, with 8 pairs.
    """
    n = len(differences_NK)
    members = _members(groups)
    mean_K = differences_NK.mean(0)
    spread_NK = np.empty_like(differences_NK)
    for rows in members:
        size = len(rows)
        spread_NK[rows] = (differences_NK[rows] - differences_NK[rows].mean(0)) * math.sqrt(size / (size - 1))
    error_K = np.sqrt(np.square(spread_NK).sum(0)) / n
    means_BK = _resampled_means(spread_NK, members, np.random.default_rng(seed))
    found = []
    for confidence in confidences:
        tail = (1 - confidence) / 2
        t = float(stats.t.isf(tail, n - len(members)))
        low_K, high_K = t / stats.norm.isf(tail) * np.quantile(means_BK, [tail, 1 - tail], axis=0)
        low_K, high_K = np.minimum(low_K, -t * error_K), np.maximum(high_K, t * error_K)
        found.append(np.stack([mean_K + low_K, mean_K + high_K], axis=1))
    return found


def _members(groups: Sequence[Hashable]) -> list[NDArray[np.intp]]:
    """The rows of each group; one group of all where a group has a single row, which shows no spread."""
    rows: dict[Hashable, list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(group, []).append(row)
    if min(map(len, rows.values())) < 2:
        return [np.arange(len(groups))]
    return [np.array(members) for members in rows.values()]


def _resampled_means(
    spread_NK: NDArray[np.float64], members: Sequence[NDArray[np.intp]], rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means (B, K) of pairs drawn with replacement within their groups: how often each was drawn, times its value."""
    n = len(spread_NK)
    rounds = min(MOST_ROUNDS, max(FEWEST_ROUNDS, ROUNDS_TIMES_PAIRS // n))
    parts = []
    for start in range(0, rounds, max(1, _CHUNK // n)):
        count = min(max(1, _CHUNK // n), rounds - start)
        drawn_BN = np.concatenate(
            [rows[rng.integers(len(rows), size=(count, len(rows)))] for rows in members], axis=1
        )
        drawn_BN += n * np.arange(count)[:, None]
        times_BN = np.bincount(drawn_BN.ravel(), minlength=count * n).reshape(count, n)
        parts.append(times_BN.astype(np.float64) @ spread_NK / n)
    return np.concatenate(parts)


def sign_test(wins: int, losses: int) -> float | None:
    """The two-sided p-value of as many wins and losses, were both as likely; None without any."""
    return float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number (Holm, Scandinavian Journal of Statistics 6, 1979).

    What could not be tested counts as a test that found nothing.
    """
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(p_values) - rank)))
        corrected[place] = largest
    return corrected


def fewest_pairs(arms: int) -> int:
    """How many pairs must differ before a unanimous sign test of one of `arms` is significant after correction."""
    return math.ceil(1 - math.log2(SIGNIFICANT_BELOW / arms))
