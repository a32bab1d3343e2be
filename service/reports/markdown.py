"""The report as GitHub Markdown: what decides, what describes, the plan, and what failed."""

import re
from collections.abc import Iterator, Sequence

from darkroom.types import CompareVerdict, Comparison, MetricInfo
from service.reports import words

_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")


def markdown_report(comparison: Comparison) -> str:
    """Headings and tables, without pictures. Whatever a caller wrote is escaped, and stays on its line."""
    return "\n".join(_lines(comparison)).rstrip() + "\n"


def escaped(text: str) -> str:
    """Text that Markdown shows as it is, in a table too: no markup, no HTML, no line break."""
    on_one_line = " ".join(text.split())
    without_html = on_one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", without_html)


def _lines(comparison: Comparison) -> Iterator[str]:
    plan = comparison.plan
    yield f"# {escaped(words.title(comparison))}"
    yield ""
    yield f"{escaped(words.extent(comparison))}, model {escaped(words.model(comparison))}, {escaped(comparison.id)}"
    for paragraph in (comparison.conclusion, words.standing(comparison)):
        if paragraph:
            yield f"\n**{escaped(paragraph)}**"
    if comparison.warnings:
        yield "\n## Before you rely on this\n"
        yield from (f"- {escaped(warning)}" for warning in comparison.warnings)
    yield from _verdicts(comparison)
    yield "\n## The plan\n"
    cost = words.evaluations(plan.evaluations)
    yield f"{plan.cells} cells, {plan.pictures} different pictures. UNet evaluations: {cost}.\n"
    yield from _table(
        ("arm", "settings that are not the default"),
        [
            (
                arm.name + (" (baseline)" if arm.name == plan.baseline else ""),
                arm.settings.model_dump_json(exclude_defaults=True)
                + (f" with the prompt {arm.prompt}" if arm.prompt else ""),
            )
            for arm in plan.arms
        ],
    )
    failed = [cell for cell in comparison.cells if cell.state == "failed"]
    if failed:
        yield "\n## What failed\n"
        yield from _table(
            ("prompt", "seed", "arm", "why"),
            [
                (cell.prompt, str(cell.seed), cell.arm, cell.problem.detail if cell.problem else "–")
                for cell in failed
            ],
        )


def _verdicts(comparison: Comparison) -> Iterator[str]:
    for decides, heading in ((True, "What decides"), (False, "What only describes")):
        infos = [info for info in comparison.metrics if info.decides == decides]
        with_verdicts = [
            (info, found)
            for info in infos
            if (found := [verdict for verdict in comparison.verdicts if verdict.metric == info.metric])
        ]
        if with_verdicts:
            yield f"\n## {heading}"
        for info, verdicts in with_verdicts:
            yield f"\n### {escaped(info.title)}{escaped(', ' + info.unit) if info.unit else ''}\n"
            yield from _table(*_verdict_table(info, verdicts))


def _verdict_table(
    info: MetricInfo, verdicts: Sequence[CompareVerdict]
) -> tuple[Sequence[str], list[Sequence[str]]]:
    if info.kind == "distance":
        return ("arm", "mean distance", "95 % for all arms", "pairs", "finding"), [
            (
                verdict.arm,
                words.number(verdict.mean_difference),
                words.interval(verdict.corrected_interval),
                str(verdict.pairs),
                verdict.note,
            )
            for verdict in verdicts
        ]
    names = ("arm", "mean difference", "95 % for all arms", "95 % alone", "pairs", "higher–lower", "p (Holm)")
    return (*names, "finding"), [
        (
            verdict.arm,
            words.number(verdict.mean_difference, signed=True),
            words.interval(verdict.corrected_interval, signed=True),
            words.interval(verdict.interval, signed=True),
            str(verdict.pairs),
            words.record(verdict),
            words.chance(verdict.corrected_p_value),
            f"{words.OUTCOMES[verdict.outcome]}: {verdict.note}",
        )
        for verdict in verdicts
    ]


def _table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(escaped(name) for name in names)} |"
    yield f"|{' --- |' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(escaped(text) for text in row)} |"
