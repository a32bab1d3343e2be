"""What was found, in words: a sentence on each verdict, the conclusion, and what is weak about a study."""

import math
from collections.abc import Callable, Sequence

from darkroom.types import CompareMetric, CompareVerdict, Direction
from service.measurements.metrics import METRICS
from service.measurements.statistics import fewest_pairs


def note(
    verdict: CompareVerdict,
    *,
    baseline: str,
    arms: int,
    decides: CompareMetric | None,
    better: Direction | None,
) -> str:
    """The verdict as a sentence. `arms` are those that are held against the baseline, `better` is its good way."""
    name = f"{title(verdict.metric)} of “{verdict.arm}”"
    found = (
        _distance(verdict, baseline)
        if _is_distance(verdict.metric)
        else _value(verdict, baseline, arms, better)
    )
    if verdict.decides or verdict.outcome == "absent":
        return f"{name} {found}."
    instead = f"“{title(decides)}” decides" if decides else "no metric was named to decide"
    return f"{name} {found}. This only describes: {instead}."


def _value(verdict: CompareVerdict, baseline: str, arms: int, better: Direction | None) -> str:
    pairs, differ = verdict.pairs, verdict.wins + verdict.losses
    if verdict.outcome == "absent":
        return f"could not be measured in any pair with “{baseline}”"
    if verdict.outcome == "identical":
        return f"is that of “{baseline}” to the last digit, in {_pairs(pairs)}"
    mean = _confident(verdict)
    if verdict.outcome == "too_few":
        needed = fewest_pairs(arms)
        return (
            f"is not known well enough to say ({mean}): {differ} of {_pairs(pairs)} differ, and "
            f"{needed} must before even a unanimous result would count; add seeds"
        )
    if verdict.outcome == "no_difference":
        if verdict.corrected_interval is not None and not _holds_zero(verdict.corrected_interval):
            return (
                f"differs on average ({mean}), but not the same way in most pairs: higher in {verdict.wins} and "
                f"lower in {verdict.losses} of {pairs}, so no difference is claimed"
            )
        return f"shows no difference to “{baseline}” ({mean}), which is not the same as being equal"
    agreeing = verdict.wins if verdict.outcome == "higher" else verdict.losses
    value = "" if better is None else ", which is better" if verdict.outcome == better else ", which is worse"
    return f"is {verdict.outcome} than that of “{baseline}” ({mean}) in {agreeing} of {_pairs(pairs)}{value}"


def _distance(verdict: CompareVerdict, baseline: str) -> str:
    if verdict.outcome == "absent":
        return f"could not be measured in any pair with “{baseline}”"
    if verdict.outcome == "identical":
        return f"is that of equal pictures, in {_pairs(verdict.pairs)} with “{baseline}”"
    return f"is {_confident(verdict)}, in {_pairs(verdict.pairs)} with “{baseline}”"


def conclusion(
    verdicts: Sequence[CompareVerdict],
    *,
    metric: CompareMetric | None,
    better: Direction | None,
    baseline: str,
) -> str:
    """What the deciding metric says of every arm. `better` is what the request says, if it does."""
    if metric is None:
        return (
            "No metric was named to decide, so nothing is decided: the figures only describe. "
            "Name one as `metric` in the request, before there are pictures, to have an answer."
        )
    deciding = [verdict for verdict in verdicts if verdict.metric == metric]
    if not deciding:
        return f"There is no arm to hold against “{baseline}”, so nothing is decided."
    if _is_distance(metric):
        told = _listed(
            deciding, lambda v: f"“{v.arm}” {figures(v)}" if v.pairs else f"“{v.arm}” could not be measured"
        )
        return (
            f"The metric that was named to decide, {title(metric)}, says how far pictures are from those of "
            f"“{baseline}”, not which are better: {told}."
        )
    good = better or METRICS[metric].better
    way = f"{good} is better" if good else "neither way was said to be better"
    return " ".join((f"{title(metric)} decides, and {way}.", *_groups(deciding, good, baseline)))


def _groups(deciding: Sequence[CompareVerdict], good: Direction | None, baseline: str) -> list[str]:
    """A sentence for each outcome that some arm has."""
    needed = fewest_pairs(len(deciding))
    better, worse = ("Better", "Worse") if good else ("Higher", "Lower")
    said = {
        "higher": f"{worse if good == 'lower' else better} than “{baseline}”",
        "lower": f"{better if good == 'lower' else worse} than “{baseline}”",
        "no_difference": "No clear difference, which is not the same as being equal",
        "identical": f"The same as “{baseline}” to the last digit",
        "too_few": f"Too few pairs to say, where at least {needed} must differ; add seeds",
        "absent": "Not measured in any pair",
    }
    told = []
    for outcome, heading in said.items():
        if arms := [verdict for verdict in deciding if verdict.outcome == outcome]:
            told.append(f"{heading}: {_listed(arms, _arm_with_figures)}.")
    told.sort(key=lambda sentence: not sentence.startswith("Better"))
    intervals = any(verdict.corrected_interval for verdict in deciding)
    return [*told, "Intervals are at 95 % for all arms together."] if intervals else told


def _arm_with_figures(verdict: CompareVerdict) -> str:
    bare = verdict.outcome in ("identical", "absent")
    return f"“{verdict.arm}”" if bare else f"“{verdict.arm}” ({figures(verdict)}, {_pairs(verdict.pairs)})"


def warnings(
    verdicts: Sequence[CompareVerdict],
    *,
    metric: CompareMetric | None,
    prompts: int,
    seeds: int,
    cells: int,
    failed: int,
) -> list[str]:
    """What is weak about a study of so many prompts and seeds a prompt, of whose cells so many failed."""
    told = []
    if seeds == 1:
        told.append("There is one seed a prompt: what seeds do cannot be told from what arms do. Add seeds.")
    if prompts == 1:
        told.append(
            "There is one prompt: whatever was found is about this prompt, and may not hold for others."
        )
    if failed:
        told.append(
            f"{failed} of {cells} cells failed. Their pairs are missing, and what is left is "
            "kinder to an arm than it deserves where it is the arm that makes them fail."
        )
    for verdict in verdicts:
        if verdict.metric == metric and verdict.pairs < prompts * seeds:
            told.append(
                f"{title(verdict.metric)}, which decides, could be measured in {verdict.pairs} of "
                f"{prompts * seeds} pairs of “{verdict.arm}”."
            )
    return told


def title(metric: CompareMetric) -> str:
    """The metric's title without what stands in parentheses."""
    name = METRICS[metric].title.split(" (")[0]
    return name[0].upper() + name[1:]


def figures(verdict: CompareVerdict) -> str:
    """The mean with its interval for all arms, as `+0.031, 0.012 to 0.050`, to the digits that mean something."""
    mean, interval = verdict.mean_difference, verdict.corrected_interval
    assert mean is not None, "what has pairs has a mean"
    sign = "" if _is_distance(verdict.metric) else "+"
    largest = max(abs(number) for number in (mean, *(interval or ())))
    decimals = max(0, 2 - math.floor(math.log10(largest))) if largest else 0
    if interval is None:
        return f"{mean:{sign}.{decimals}f}, of one pair"
    return f"{mean:{sign}.{decimals}f}, {interval[0]:{sign}.{decimals}f} to {interval[1]:{sign}.{decimals}f}"


def _confident(verdict: CompareVerdict) -> str:
    return figures(verdict) + (" at 95 %" if verdict.corrected_interval else "")


def _is_distance(metric: CompareMetric) -> bool:
    return METRICS[metric].kind == "distance"


def _holds_zero(interval: tuple[float, float]) -> bool:
    return interval[0] <= 0 <= interval[1]


def _pairs(count: int) -> str:
    return "1 pair" if count == 1 else f"{count} pairs"


def _listed(verdicts: Sequence[CompareVerdict], told: Callable[[CompareVerdict], str]) -> str:
    return "; ".join(told(verdict) for verdict in verdicts)
