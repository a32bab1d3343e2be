"""The JSON of a run, and the table that people read."""

import json
import os
import platform
from pathlib import Path

import torch

from benchmarks.record import Record
from benchmarks.report import Row, table

CPU = torch.device("cpu")


def a_record(folder) -> Record:
    return Record("cpu", "python -m benchmarks.cpu", CPU, folder)


def test_a_record_is_named_by_suite_date_and_kind_of_machine(tmp_path):
    kept = a_record(tmp_path)
    kept.add("png", {"milliseconds": 12.0})
    cores = len(os.sched_getaffinity(0))
    assert kept.file.name == f"cpu-{kept.started:%Y-%m-%d}-cpu-{cores}-cores.json"
    assert json.loads(kept.file.read_text())["figures"] == {"png": {"milliseconds": 12.0}}


def test_a_run_that_is_cut_short_leaves_what_it_had(tmp_path):
    kept = a_record(tmp_path)
    kept.add("first", 1)
    assert json.loads(kept.file.read_text())["figures"] == {"first": 1}
    kept.add("second", 2)
    assert json.loads(kept.file.read_text())["figures"] == {"first": 1, "second": 2}


def test_a_record_tells_the_machine_but_neither_its_name_nor_a_path(tmp_path):
    kept = a_record(tmp_path)
    kept.add("png", 1)
    text = kept.file.read_text()
    described = json.loads(text)
    assert described["machine"]["cores"] >= 1
    assert described["machine"]["memory_gb"] > 0
    assert "torch" in described["versions"]
    assert platform.node() not in text
    assert str(Path.cwd()) not in text


def test_the_table_says_which_goals_were_missed():
    text = table(
        [
            Row("PNG", 12.3, "ms", goal=20.0),
            Row("HTTP", 4.0, "ms", goal=3.0),
            Row("ratio", 1.2, "times as fast", goal=1.0, at_least=True),
            Row("G9", None, "", note="left out: no device"),
        ]
    )
    _, png, http, ratio, left_out = text.splitlines()
    assert png.endswith("≤ 20  met")
    assert http.endswith("≤ 3   MISSED")
    assert ratio.endswith("≥ 1   met")
    assert left_out.endswith("left out: no device")
