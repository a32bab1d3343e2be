"""The crowded registry's section of `make bench`, on registries that are small enough for a test."""

import json
from dataclasses import replace

import pytest
import torch

from benchmarks import cpu, crowded
from benchmarks.record import Record

SIZES = (10, 20)


pytestmark = pytest.mark.slow


def test_the_section_asks_services_and_registries_of_every_size(tmp_path):
    kept = Record("cpu", "python -m benchmarks.cpu --quick", torch.device("cpu"), tmp_path)
    rows = cpu.crowded_registry(replace(cpu.QUICK, crowded=2), kept, SIZES)
    figures = json.loads(kept.file.read_text())["figures"]["crowded_registry"]
    for name in ("picture", "lookup_over_http", "resolve", "start", "resident_bytes"):
        assert set(figures[name].get("seconds", figures[name])) == {"10", "20"}, name
    assert figures["tiers"] == ["host"]
    goals = [(row.what, row.goal) for row in rows if row.goal is not None]
    assert ("picture with a LoRA, 20 LoRAs over 10", 1.05) in goals
    assert {goal for _, goal in goals} == {1.05, 0.2, 0.5, 20}


def test_entries_that_were_filled_in_are_like_published_ones(tmp_path):
    crowd = crowded.Crowd(20, tmp_path)
    crowded.publish(crowd, crowded.lora_files())
    crowded.fill(crowd, crowded.REAL)
    with crowd.connect() as registry:
        assert len(registry.list(limit=50).items) == 20
        published, filled = registry.resolve("lora-00000:prod"), registry.resolve("lora-00019:prod")
        assert registry.resolve("lora-00019@1") == registry.resolve(filled.digest) == filled
    assert filled.metadata == {"ss_steps": "19"}
    same = {"name": "", "digest": "", "auto_v2": "", "auto_v3": "", "metadata": {}}
    assert replace(filled, **same) == replace(published, **same)
