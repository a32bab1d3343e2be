"""`make gpu`, every line of it, on a toy."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ABSENT = (
    *("bentoml", "fastapi", "starlette", "uvicorn", "prometheus_client", "pydantic_settings"),
    *("sqlalchemy", "alembic", "obstore", "psycopg"),
)
"""What a GPU machine need not have."""


def without_the_absent(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The script in a process that sees no CUDA device and cannot import what is `ABSENT`."""
    absent = folder / "absent"
    absent.mkdir()
    for name in ABSENT:
        (absent / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}', name='{name}')\n")
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(absent), str(ROOT), str(ROOT / "client" / "src")]),
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_WAIT_POLICY": "passive",
    }
    command = [sys.executable, "-m", "benchmarks.gpu", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run of everything, compiled variants included; its process and its record."""
    folder = tmp_path_factory.mktemp("gpu")
    process = without_the_absent(folder, "--tiny", "--compile", "--results", str(folder / "results"))
    assert process.returncode == 0, process.stderr
    (file,) = (folder / "results").glob("gpu-tiny-*.json")
    return process, json.loads(file.read_text())


@pytest.mark.slow
def test_every_line_of_the_table_is_there(run):
    _, record = run
    figures = record["figures"]
    assert {"parity", "G1", "G2", "G3", "G4", "G5", "G6", "G7", "G8", "G9 and G10", "lend", "train"} <= set(
        figures
    )
    assert not [name for name, found in figures.items() if str(found).startswith("left out")]


@pytest.mark.slow
def test_the_engine_is_measured_beside_plain_and_recommended_diffusers(run):
    _, record = run
    sides = {"engine", "plain", "recommended", "recommended_compiled", "engine_compiled"}
    assert set(record["figures"]["G1"]["seconds"]) == sides


@pytest.mark.slow
def test_the_latents_are_those_of_stock_diffusers(run):
    _, record = run
    parity = record["figures"]["parity"]
    assert max(parity["differences"].values()) <= parity["tolerance"]


@pytest.mark.slow
def test_swaps_are_measured_by_tier_and_recompile_nothing(run):
    _, record = run
    figures = record["figures"]
    assert set(figures["G6"]["swaps"]["seconds"]) == {"device", "host", "file"}
    assert figures["G6"]["beside_load_and_unload"]["times_faster_than"]["load_and_unload"]["median"] > 1
    assert figures["G6 recompiles"] == {"swaps": 50, "new_graphs": 0}


@pytest.mark.slow
def test_training_is_measured_with_and_without_checkpointing_beside_the_estimate(run):
    process, record = run
    figures = record["figures"]["train"]
    assert set(figures) == {"with checkpointing", "without checkpointing"}
    for found in figures.values():
        assert found["steps_per_second"]["median"] > 0
        assert found["estimated_gib"] > 0
        assert found["peak_gib"] is None  # of which a CPU says nothing
    assert "train with checkpointing, 64 px" in process.stdout


def test_a_machine_without_cuda_skips_with_a_reason(monkeypatch, capsys):
    from benchmarks import gpu

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    gpu.main([])
    assert capsys.readouterr().out.startswith("benchmarks.gpu skipped: torch sees no CUDA device here")
