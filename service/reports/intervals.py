"""An interval as a small drawing: where it lies, seen from zero."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from markupsafe import Markup

from darkroom.types import CompareVerdict
from service.reports import words

WIDTH: Final = 220
HEIGHT: Final = 22
MARGIN: Final = 8


@dataclass(frozen=True)
class Scale:
    """The values at the left and at the right end. Zero always lies between them."""

    low: float
    high: float

    def x(self, value: float) -> float:
        """Where a value lies, in units of the drawing."""
        span = (self.high - self.low) or 1.0
        return round(MARGIN + (WIDTH - 2 * MARGIN) * (value - self.low) / span, 2)


def scale_of(verdicts: Sequence[CompareVerdict]) -> Scale:
    """One that has room for all of them, so that arms can be held against each other."""
    ends = [0.0]
    for verdict in verdicts:
        for pair in (verdict.interval, verdict.corrected_interval):
            ends.extend(pair or ())
        if verdict.mean_difference is not None:
            ends.append(verdict.mean_difference)
    low, high = min(ends), max(ends)
    return Scale(low, high) if low < high else Scale(-1.0, 1.0)


def drawn_interval(verdict: CompareVerdict, scale: Scale) -> Markup:
    """Inline SVG: a line at zero, the corrected interval pale, the arm's own one dark, a dot at the mean."""
    if verdict.mean_difference is None:
        return Markup("")
    middle, zero = HEIGHT / 2, scale.x(0.0)
    parts = [f'<line class="zero" x1="{zero}" x2="{zero}" y1="1" y2="{HEIGHT - 1}"/>']
    for name, ends, thick in (
        ("corrected", verdict.corrected_interval, 10),
        ("own", verdict.interval, 4),
    ):
        if ends is not None:
            left, right = scale.x(ends[0]), scale.x(ends[1])
            parts.append(
                f'<rect class="{name}" x="{left}" y="{middle - thick / 2}" width="{max(1.0, right - left):.2f}" '
                f'height="{thick}" rx="{thick / 2}"/>'
            )
    parts.append(f'<circle class="mean" cx="{scale.x(verdict.mean_difference)}" cy="{middle}" r="4"/>')
    says = f"mean {words.number(verdict.mean_difference, signed=True)}"
    if verdict.corrected_interval:
        says += f", corrected interval {words.interval(verdict.corrected_interval, signed=True)}"
    return Markup(
        f'<svg class="interval" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{says}">{"".join(parts)}</svg>'
    )
