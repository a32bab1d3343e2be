"""What is made of a comparison's pictures, in `make bench`: a comparison as complete as a service's own."""

import json
import re
from dataclasses import replace
from io import BytesIO

import torch
from PIL import Image

from benchmarks import cpu, findings
from benchmarks.findings import Extent
from benchmarks.record import Record
from service.compare.findings import files
from service.measurements.metrics import METRICS


def test_every_arm_but_the_baseline_has_a_verdict_by_every_metric(models):
    comparison = findings.a_comparison(models, findings.VERDICTS, 64)
    assert len(comparison.verdicts) == 8 * len(METRICS) == 8 * 13
    assert {verdict.pairs for verdict in comparison.verdicts} == {32}
    assert comparison.conclusion


def test_the_report_shows_every_picture_every_difference_and_every_recipe(models):
    made = findings.reported(models, (3, 2, 2), 64)
    written = {name: data for name, _, data in files(made.comparison, made.thumbnails, made.differences)}
    assert len(re.findall(rb"data:image/(?:png|webp);base64", written["report.html"])) == 12 + 8
    assert len(set(made.thumbnails.values())) == 12
    assert min(Image.open(BytesIO(written["sheet.png"])).size) > 64
    recipes = [cell["receipt"] for cell in json.loads(written["comparison.json"])["cells"]]
    assert {recipe["guidance_scale"] for recipe in recipes} == {2.0, 3.0, 4.0}


def test_the_map_of_a_picture_is_a_small_picture():
    seen = findings.look_at(findings.photo(64, 0), findings.photo(64, 1))
    assert Image.open(BytesIO(seen)).size == (64, 64)


def test_warm_ups_are_counted_by_neither_clock():
    wall, core = findings.by_both_clocks({"a": lambda number: number, "b": lambda number: number}, 3)
    assert {name: len(taken) for name, taken in wall.seconds.items()} == {"a": 3, "b": 3}
    assert {name: len(taken) for name, taken in core.seconds.items()} == {"a": 3, "b": 3}


def test_the_section_tells_seconds_by_both_clocks_beside_the_goal_of_a_report(tmp_path):
    kept = Record("cpu", "python -m benchmarks.cpu --quick", torch.device("cpu"), tmp_path)
    rows = cpu.what_they_found(replace(cpu.QUICK, findings=1), kept, Extent((3, 2, 1), (64,)))
    figures = json.loads(kept.file.read_text())["figures"]["findings"]
    assert set(figures) == {"verdicts", "report 64", "picture 64"}
    assert all({"seconds", "cpu_seconds"} <= set(found) for found in figures.values())
    assert [(row.what, row.goal) for row in rows if row.goal is not None] == [
        ("sheet and report of 3 x 2 x 1 pictures of 64 px", 2.0)
    ]
    assert all(row.note.endswith("of a core") for row in rows)
