"""The train step of `make bench`: the bare loop beside ours does the same work."""

import json
from dataclasses import replace

import torch

from benchmarks import cpu
from benchmarks.record import Record


def test_the_bare_loop_has_the_same_losses_and_the_ratio_its_goal(tmp_path):
    kept = Record("cpu", "python -m benchmarks.cpu --quick", torch.device("cpu"), tmp_path)
    rows = cpu.train_steps(replace(cpu.QUICK, train_steps=3), kept)
    figures = json.loads(kept.file.read_text())["figures"]["train_step"]
    for batch in ("batch_8", "batch_1"):
        assert figures[batch]["largest_difference_of_losses"] < 1e-5
        assert set(figures[batch]["darkroom_over_bare"]) == {"median", "quartile_1", "quartile_3"}
    assert [(row.what, row.goal) for row in rows] == [
        ("train step over a bare loop, batch 8", 1.02),
        ("train step over a bare loop, batch 1", None),
    ]
