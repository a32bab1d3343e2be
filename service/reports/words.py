"""Figures and findings of a comparison as people read them."""

from typing import Final

from darkroom.types import CompareEvaluations, CompareOutcome, CompareVerdict, Comparison

MINUS: Final = "\N{MINUS SIGN}"
OUTCOMES: Final[dict[CompareOutcome, str]] = {
    "higher": "higher",
    "lower": "lower",
    "no_difference": "no difference seen",
    "identical": "identical",
    "too_few": "too few pairs to say",
    "absent": "not measured",
}


def number(value: float | None, *, signed: bool = False) -> str:
    """Three significant digits; a dash for none."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    sign = MINUS if value < 0 else "+" if signed else ""
    size = abs(value)
    if 1e-4 <= size < 1e6:
        text = f"{size:#.3g}" if size < 100 else f"{size:.0f}"
        return sign + text.rstrip(".")
    return sign + f"{size:.2e}"


def interval(ends: tuple[float, float] | None, *, signed: bool = False) -> str:
    """`−0.2 to +1.4`."""
    return " to ".join(number(end, signed=signed) for end in ends) if ends else "–"


def chance(p_value: float | None) -> str:
    """A p-value; the very small ones are all alike."""
    if p_value is None:
        return "–"
    return "< 0.001" if p_value < 0.001 else f"{p_value:.3f}"


def counted(count: int, noun: str) -> str:
    """`1 arm`, `2 arms`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def record(verdict: CompareVerdict) -> str:
    """Wins and losses, and ties where there are any: `21–10`, `0–0 (8 ties)`."""
    ties = f" ({counted(verdict.ties, 'tie')})" if verdict.ties else ""
    return f"{verdict.wins}–{verdict.losses}{ties}"


def title(comparison: Comparison) -> str:
    return comparison.name or f"Comparison {comparison.id}"


def extent(comparison: Comparison) -> str:
    """`3 arms × 8 prompts × 4 seeds`."""
    plan = comparison.plan
    sizes = ((len(plan.arms), "arm"), (len(plan.prompts), "prompt"), (len(plan.seeds), "seed"))
    return " × ".join(counted(size, noun) for size, noun in sizes)


def standing(comparison: Comparison) -> str:
    """What is to be known where not every picture is there; else empty."""
    total, failed = len(comparison.cells), sum(cell.state == "failed" for cell in comparison.cells)
    waiting = sum(cell.state == "waiting" for cell in comparison.cells)
    parts = []
    if comparison.state != "succeeded":
        parts.append(f"This comparison is {comparison.state}." if waiting else f"It has {comparison.state}.")
    if waiting:
        parts.append(
            f"{waiting} of {counted(total, 'picture')} {'was' if waiting == 1 else 'were'} not drawn."
        )
    if failed:
        parts.append(f"{failed} of {counted(total, 'picture')} failed.")
    if comparison.problem:
        parts.append(comparison.problem.detail)
    return " ".join(parts)


def evaluations(cost: CompareEvaluations) -> str:
    """What was planned, held against a request for every picture."""
    saved = 1 - cost.planned / cost.naive if cost.naive else 0.0
    text = f"{cost.planned}, where a request for every picture would make {cost.naive}"
    if saved > 0:
        text += f": {100 * saved:.0f} % less"
    return f"{text}; {cost.measuring} more for the prompt adherence" if cost.measuring else text


def model(comparison: Comparison) -> str:
    """The resident model's name, and enough of its fingerprint to tell it from another one."""
    return f"{comparison.plan.model} ({comparison.model[:12]})"
