"""What `FakeDarkroom` measures in its pictures and makes of it: real arithmetic, simpler than the service's."""

import hashlib
import itertools
import math
from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev, pvariance

from darkroom.types import CompareMetric, CompareOutcome, CompareRequest, CompareVerdict, MetricInfo

Rows = Sequence[bytes]
"""Of RGB."""
Measured = Mapping[tuple[str, str, int], Mapping[str, float]]
"""Measurements by arm, prompt and seed."""

_VALUES: tuple[CompareMetric, ...] = ("sharpness", "contrast", "luminance", "prompt_adherence")
_EQUAL: dict[CompareMetric, float] = {"ssim": 1.0, "psnr": 100.0, "perceptual_distance": 0.0}
"""The distances, and what they are of equal pictures."""
_BETTER_IF_HIGHER = ("prompt_adherence", "clip_score", "pocket_accuracy", "pocket_quality")
_FEWEST_PAIRS = 6
"""With fewer, not even unanimous ones are significant by a sign test."""


def metrics_of(request: CompareRequest) -> list[MetricInfo]:
    """What is measured: a few metrics, and the one that decides, whichever it is."""
    named = [metric for metric in _VALUES if request.adherence or metric != "prompt_adherence"]
    chosen: list[CompareMetric] = [*named, *_EQUAL]
    if request.metric and request.metric not in chosen:
        chosen.append(request.metric)
    return [
        MetricInfo(
            metric=metric,
            title=metric.replace("_", " "),
            kind="distance" if metric in _EQUAL else "value",
            better=request.better
            if request.better and metric == request.metric
            else ("higher" if metric in _BETTER_IF_HIGHER else None),
            decides=metric == request.metric,
        )
        for metric in chosen
    ]


def measured(rows: Rows, metrics: Sequence[MetricInfo]) -> dict[str, float]:
    """The values of a picture. What would need a model is made up, the same for the same picture."""
    grey = [_grey(row) for row in rows]
    flat = [level for row in grey for level in row]
    steps = [after - before for row in grey for before, after in itertools.pairwise(row)]
    known = {"luminance": fmean(flat), "contrast": pstdev(flat), "sharpness": pvariance(steps)}
    return {
        info.metric: known.get(info.metric, _made_up(rows, info.metric))
        for info in metrics
        if info.kind == "value"
    }


def distances(rows: Rows, baseline: Rows) -> dict[str, float]:
    """How far a picture is from the baseline's."""
    pairs = zip(b"".join(rows), b"".join(baseline), strict=True)
    apart = fmean(abs(one - other) for one, other in pairs) / 255
    psnr = min(_EQUAL["psnr"], -20 * math.log10(apart)) if apart else _EQUAL["psnr"]
    return {"ssim": 1 - apart, "psnr": psnr, "perceptual_distance": 100 * apart}


def verdict(
    arm: str, baseline: str, info: MetricInfo, values: Measured, places: Sequence[tuple[str, int]]
) -> CompareVerdict:
    """What a metric says of an arm: `higher` or `lower` only where six pairs or more all say so."""
    equal = _EQUAL.get(info.metric)
    found = []
    for prompt, seed in places:
        value = values.get((arm, prompt, seed), {}).get(info.metric)
        held = equal if equal is not None else values.get((baseline, prompt, seed), {}).get(info.metric)
        if value is not None and held is not None:
            found.append((value, value - held))
    differences = [difference for _, difference in found]
    shown = [value if equal is not None else difference for value, difference in found]
    wins, losses = sum(one > 0 for one in differences), sum(one < 0 for one in differences)
    outcome = _outcome(wins, losses, len(found), is_distance=equal is not None)
    return CompareVerdict(
        arm=arm,
        metric=info.metric,
        decides=info.decides,
        outcome=outcome,
        pairs=len(found),
        mean_difference=fmean(shown) if shown else None,
        interval=(min(shown), max(shown)) if shown else None,
        corrected_interval=(min(shown), max(shown)) if shown else None,
        wins=0 if equal is not None else wins,
        losses=0 if equal is not None else losses,
        note=f"{info.title} of '{arm}' against '{baseline}' in {len(found)} pairs: {outcome.replace('_', ' ')}",
    )


def conclusion(verdicts: Sequence[CompareVerdict]) -> str:
    """What the metric that was named beforehand says."""
    notes = [one.note for one in verdicts if one.decides]
    return ". ".join(notes) + "." if notes else "No metric was named beforehand, so nothing is decided."


def _outcome(wins: int, losses: int, pairs: int, *, is_distance: bool) -> CompareOutcome:
    if not pairs:
        return "absent"
    if not wins + losses:
        return "identical"
    if wins + losses < _FEWEST_PAIRS and not is_distance:
        return "too_few"
    if not losses:
        return "higher"
    return "no_difference" if wins else "lower"


def _grey(row: bytes) -> list[float]:
    pixels = zip(row[::3], row[1::3], row[2::3], strict=True)
    return [(0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255 for red, green, blue in pixels]


def _made_up(rows: Rows, metric: str) -> float:
    digest = hashlib.sha256(metric.encode() + b"".join(rows)).digest()
    return int.from_bytes(digest[:4], "big") / 2**32
