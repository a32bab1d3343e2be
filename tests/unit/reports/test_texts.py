"""The report in Markdown, and figures as people read them."""

import pytest

from comparisons import METRICS, a_comparison
from darkroom.types import CompareEvaluations
from service.reports import html, html_report, markdown_report, words
from service.reports.intervals import drawn_interval, scale_of
from service.reports.markdown import escaped
from service.reports.shown import shown

HOSTILE = "a|b `code` <img src=x>\n# not a heading *not bold* [not](a-link) $x$"


def cells_of(line: str) -> list[str]:
    """The cells of a row, split where a bar is not escaped."""
    return [cell.strip() for cell in line.strip("|").replace("\\|", "\0").split("|")]


def test_conclusion_comes_before_every_figure():
    comparison = a_comparison(warnings=["only four seeds a prompt"])
    report = markdown_report(comparison)
    first_table = report.index("| arm")
    assert report.index(comparison.verdicts[0].note.split(":")[0]) < first_table
    assert report.index("only four seeds a prompt") < first_table


def test_what_decides_is_set_apart_from_what_describes():
    report = markdown_report(a_comparison())
    decides, describes = report.split("## What only describes")
    assert "### sharpness" in decides.split("## What decides")[1]
    assert "### sharpness" not in describes
    assert "## What decides" not in markdown_report(a_comparison(metric=None))


def test_table_of_every_metric_has_a_row_for_every_arm_but_the_baseline():
    comparison = a_comparison(arms=4)
    report = markdown_report(comparison)
    for metric, (title, *_) in METRICS.items():
        table = report.split(f"### {escaped(title)}")[1].split("\n#")[0]
        rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
        found = [verdict for verdict in comparison.verdicts if verdict.metric == metric]
        assert [cells_of(row)[0] for row in rows] == [escaped(verdict.arm) for verdict in found]


def test_callers_text_stays_in_its_cell_and_is_no_markup():
    comparison = a_comparison((HOSTILE, "plain"), (HOSTILE,), 2, failed=(0,), name=HOSTILE)
    report = markdown_report(comparison)
    assert "<img" not in report
    assert report.splitlines()[0].startswith(
        "# a\\|b \\`code\\` &lt;img src=x&gt; \\# not a heading \\*not bold\\*"
    )
    tables = [line for line in report.splitlines() if line.startswith("|")]
    widths = {len(cells_of(line)) for line in tables}
    assert widths <= {2, 4, 5, 8}
    assert not [line for line in report.splitlines() if line.startswith("# not a heading")]


def test_failed_cells_are_listed_with_their_reason():
    report = markdown_report(a_comparison(prompts=1, seeds=2, failed=(4,)))
    row = report.split("## What failed")[1].strip().splitlines()[2]
    assert cells_of(row)[1:3] == ["84061038", "wrong in the negative prompt"]
    assert "the decoded picture is black" in row
    assert "1 of 6 pictures failed." in report


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (4.527, "+4.53"),
        (-17.84, "−17.8"),
        (1234.5, "+1234"),
        (-3e-7, "−3.00e-07"),
        (100.0, "+100"),
        (None, "–"),
    ],
)
def test_number_has_three_significant_digits(value, text):
    assert words.number(value, signed=True) == text


def test_cost_is_held_against_a_request_for_every_picture():
    text = words.evaluations(CompareEvaluations(planned=450, naive=1000))
    assert text == "450, where a request for every picture would make 1000: 55 % less"
    assert "less" not in words.evaluations(CompareEvaluations(planned=1000, naive=1000))


def test_drawing_puts_zero_and_both_intervals_on_one_scale():
    verdicts = [verdict for verdict in a_comparison().verdicts if verdict.metric == "sharpness"]
    scale = scale_of(verdicts)
    ends = [end for verdict in verdicts for end in verdict.corrected_interval]
    assert (scale.low, scale.high) == (min(0.0, *ends), max(0.0, *ends))
    svg = drawn_interval(verdicts[0], scale)
    assert f'x1="{scale.x(0.0)}"' in svg
    assert f'cx="{scale.x(verdicts[0].mean_difference)}"' in svg
    assert svg.index('class="corrected"') < svg.index('class="own"') < svg.index('class="mean"')


def test_verdict_without_a_figure_is_not_drawn():
    verdict = a_comparison(2, 1, 1).verdicts[0]
    assert verdict.mean_difference is None
    assert drawn_interval(verdict, scale_of([verdict])) == ""


def test_rows_are_left_out_evenly_and_the_reader_is_told():
    plan = a_comparison(2, 4, 16).plan
    assert shown(plan, 64).left_out == ""
    part = shown(plan, 20)
    assert (list(part.prompts), list(part.seeds)) == (plan.prompts, plan.seeds[:5])
    assert part.left_out.startswith(
        "20 of 64 rows are shown: the first 5 of 16 seeds of all 4 prompts. The other 44 "
    )
    few = shown(plan, 3)
    assert (list(few.prompts), list(few.seeds)) == (plan.prompts[:3], plan.seeds[:1])


def test_large_report_leaves_pictures_out_and_says_so(monkeypatch):
    monkeypatch.setattr(html, "MAX_CELLS", 12)
    page = html_report(a_comparison(2, 2, 5), {}, {})
    assert "6 of 10 rows are shown: the first 3 of 5 seeds of all 2 prompts." in page
    assert page.count('class="cell"') == 12


def test_comparison_that_was_cancelled_has_a_report():
    comparison = a_comparison(
        2, 1, 2, waiting=(2, 3), state="cancelled", conclusion="", verdicts=[], metrics=[], stage="drawing"
    )
    for report in (markdown_report(comparison), html_report(comparison, {}, {})):
        assert "This comparison is cancelled. 2 of 4 pictures were not drawn." in report
