"""The device sharing of `make bench`: whose turn it is, and what is told of it."""

import json
import signal
import subprocess
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path

import pytest
import torch

from benchmarks import cpu, device_sharing
from benchmarks.device_sharing import Extent, Lending, Side
from benchmarks.interleave import Rounds
from benchmarks.record import Record
from darkroom.types import JobEvent
from service.jobs.processes import Holder

BRIEF = Extent(requests=2, every_seconds=0.0, quiet_seconds=0.0, lendings=1, lent_steps=2)


@dataclass
class Client:
    """In the place of a service's: notes what the trainer does while a picture is asked for."""

    pid: int
    seen: list[str] = field(default_factory=list)

    def generate_request(self, _request: object) -> None:
        self.seen.append(state(self.pid))


def state(pid: int) -> str:
    """The letter of a process: T where it was stopped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.fixture
def side():
    process = subprocess.Popen(["sleep", "60"])
    yield Side(Client(process.pid), None, Holder.of(process.pid))
    process.kill()
    process.wait()


def reported(step: int, at: float) -> JobEvent:
    return JobEvent(id=step + 1, type="progress", step=step, at=datetime.fromtimestamp(at, UTC))


def test_a_job_trains_in_its_own_turn_only(side):
    side.process.send(signal.SIGSTOP)
    side.take_turn(BRIEF, count(), trains=False)
    side.take_turn(BRIEF, count(), trains=True)
    side.take_turn(BRIEF, count(), trains=False)
    stopped = [seen == "T" for seen in side.client.seen]
    assert stopped == [True, True, False, False, True, True]


def test_a_turn_without_training_says_nothing_of_the_pace(side):
    side.take_turn(BRIEF, count(), trains=False)
    assert side.turns == []
    assert len(side.take_turn(BRIEF, count(), trains=True)) == BRIEF.requests
    (turn,) = side.turns
    assert turn.resumed_at <= turn.asked_at <= turn.ended_at


def test_the_pace_is_that_of_the_reports_within_the_span():
    progress = [reported(10, 100.0), reported(20, 101.0), reported(40, 103.0), reported(90, 104.0)]
    assert device_sharing.steps_per_second(progress, 100.5, 103.5) == 10.0


def test_a_job_that_never_comes_to_report_has_no_pace():
    assert device_sharing.steps_per_second([reported(10, 100.0)], 99.0, 101.0) == 0.0


def test_rows_tell_ratios_pair_by_pair_beside_both_ends_of_the_distribution():
    asked = Rounds({"no job": [0.1, 0.2], "share": [0.2, 0.4], "separate": [0.3, 0.8]})
    paces = {name: Rounds({"quiet": [10.0], "asked": [8.0]}) for name in ("share", "separate")}
    rows = device_sharing.rows_of_requests(asked, paces)
    assert [round(row.measured, 3) for row in rows] == [2.0, 3.5, 1.75, 0.8, 0.8]
    assert rows[0].note == "p50 300 ms of 150, p95 390 of 195"
    assert rows[2].note == "a train step takes 100 ms"


def test_the_row_of_pause_tells_what_callers_were_answered():
    lendings = [Lending(2, 40, ("device_lent",), 30.0, 5.0, back) for back in (0.2, 0.6)]
    (row,) = device_sharing.rows_of_lendings(lendings)
    assert (row.measured, row.unit) == (0.4, "s")
    assert row.note == "80 of 503 device_lent, Retry-After 30 s"


@pytest.mark.slow
def test_the_section_tells_of_every_policy_on_real_processes(tmp_path):
    kept = Record("cpu", "python -m benchmarks.cpu --quick", torch.device("cpu"), tmp_path)
    rows = cpu.shared_device(replace(cpu.QUICK, device_sharing=1), kept, device_sharing.SHORT)
    figures = json.loads(kept.file.read_text())["figures"]["device_sharing"]
    assert set(figures["request_seconds"]) == {"no job", "share", "separate"}
    assert all(found["median"] > 0 for found in figures["request_seconds"].values())
    assert all(pace["quiet"]["median"] > 0 for pace in figures["train_steps_per_second"].values())
    (lending,) = figures["pause"]
    assert (lending["codes"], lending["retry_after_seconds"]) == (["device_lent"], 30.0)
    assert lending["refused"] > 0
    assert [row.what for row in rows][-1].startswith("pictures again after a job")
