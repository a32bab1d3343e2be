"""What a comparison found: verdicts from its cells' measurements, and the files that tell of it. Pure."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from darkroom.types import CompareVerdict, Comparison
from service.measurements.verdicts import conclusion, verdicts, warnings
from service.reports.html import html_report
from service.reports.markdown import markdown_report
from service.reports.sheet import contact_sheet


@dataclass(frozen=True)
class Findings:
    """What is said of a comparison at its end."""

    verdicts: tuple[CompareVerdict, ...]
    conclusion: str
    warnings: tuple[str, ...]


def found(comparison: Comparison, *, cancelled: bool = False) -> Findings:
    """What the measurements that are there say. `cancelled`: they are not all that there would have been."""
    request, plan = comparison.request, comparison.plan
    told = verdicts(
        {(c.arm, c.prompt, c.seed): c.measurements for c in comparison.cells if c.state == "done"},
        arms=[arm.name for arm in plan.arms],
        baseline=plan.baseline,
        metrics=plan.metrics,
        decides=request.metric,
        better=request.better,
    )
    said = conclusion(told, metric=request.metric, better=request.better, baseline=plan.baseline)
    weak = warnings(
        told,
        metric=request.metric,
        prompts=len(plan.prompts),
        seeds=len(plan.seeds),
        cells=plan.cells,
        failed=sum(cell.state == "failed" for cell in comparison.cells),
    )
    if cancelled:
        weak.append(
            f"It was cancelled after {comparison.done} of {plan.cells} cells. Where one stops as soon as the figures "
            "please, chance pleases sooner or later: do not decide by this."
        )
    return Findings(tuple(told), said, tuple(weak))


def files(
    comparison: Comparison, thumbnails: Mapping[int, bytes], differences: Mapping[int, bytes]
) -> Iterator[tuple[str, str, bytes]]:
    """Name, media type and bytes of everything to look at and to read on with. Takes a second or two."""
    yield "sheet.png", "image/png", contact_sheet(comparison, thumbnails)
    page = html_report(comparison, thumbnails, differences)
    yield "report.html", "text/html; charset=utf-8", page.encode()
    yield "report.md", "text/markdown; charset=utf-8", markdown_report(comparison).encode()
    yield "comparison.json", "application/json", comparison.model_dump_json(indent=1).encode()
