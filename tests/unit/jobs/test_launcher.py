"""Processes of this machine: started, adopted, cancelled, killed, and always accounted for. They are real ones."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest

import job_child
from job_child import CHECKPOINT, DIGEST, tell
from lora_registry.errors import CatalogUnavailable
from processes import environment, until
from service.jobs.launcher import LocalLauncher
from service.jobs.processes import Holder
from service.store.database import location
from service.store.errors import LeaseLost
from work_store import new

SECONDS = 30.0


@pytest.fixture
def table(local):
    """With children there is but one clock."""
    local._clock = time.time
    return local


@pytest.fixture
def launched(table, data):
    """Makes launchers, and kills at the end whatever still runs."""
    known = set()

    def launch(command=None, **options):
        def child(job_id):
            os.close(job_child.pipe(data, job_id))
            return (command or job_child.command)(location("", data), data, job_id)

        known.add(
            launcher := LocalLauncher(table, data / "jobs", child, environment=environment(), **options)
        )
        return launcher

    yield launch
    for launcher in known:
        for child in launcher._children.values():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.process.pid, signal.SIGKILL)
            child.process.wait()


def is_running(table, job_id, attempt=1):
    job = table.get(job_id)
    return job.state == "running" and job.attempts == attempt


def started(table, launcher, job_id, attempt=1):
    """Has the job at work, and gives its process."""
    launcher.look()
    until(lambda: is_running(table, job_id, attempt), SECONDS, "the claim")
    return Holder.parse(next(job.holder for job in table.held() if job.id == job_id))


def in_state(table, launcher, job_id, state):
    def look():
        launcher.look()
        return table.get(job_id).state == state

    until(look, SECONDS, state)


def gone(holder):
    until(lambda: holder.life() == "dead", SECONDS, "the end of the process")


def at_step(table, data, job_id, step):
    tell(data, job_id, f"step {step}")
    until(lambda: table.get(job_id).step == step, SECONDS, f"step {step}")


def messages(table, job_id):
    return [event.message for event in table.events(job_id) if event.message]


def log_of(table, job_id):
    with table.open(job_id, "log.txt")[1] as file:
        return file.read().decode()


def test_waiting_jobs_are_done_one_after_another(table, data, launched):
    first, second = new(table), new(table, "wolf")
    launcher = launched()
    launcher.start()
    try:
        launcher.wake()
        for job_id in sorted((first, second), key=[job.id for job in table.waiting()].index):
            until(lambda j=job_id: is_running(table, j), SECONDS, "the claim")
            assert len(table.held()) == 1
            tell(data, job_id, "step 1", "finish")
            until(lambda j=job_id: table.get(j).state == "succeeded", SECONDS, "success")
            launcher.wake()
    finally:
        launcher.stop()
    assert [table.get(job_id).lora for job_id in (first, second)] == ["fox@1"] * 2


def test_a_process_has_a_session_and_a_log_of_its_own(table, data, launched):
    job_id = new(table)
    launcher = launched()
    holder = started(table, launcher, job_id)
    assert os.getsid(holder.pid) == holder.pid
    tell(data, job_id, "break")
    in_state(table, launcher, job_id, "failed")
    assert "the job's file `log.txt`" in table.get(job_id).problem.detail
    gone(holder)
    launcher.look()
    assert "ValueError: a secret at …/path" in log_of(table, job_id)
    assert not (data / "jobs" / job_id).exists()


def test_the_log_of_a_killed_process_is_kept_with_the_job_and_the_next_ones_is_added(table, data, launched):
    job_id = new(table)
    launcher = launched()
    holder = started(table, launcher, job_id)
    os.kill(holder.pid, signal.SIGKILL)
    gone(holder)
    until(lambda: launcher.look() or is_running(table, job_id, 2), SECONDS, "another process")
    first = log_of(table, job_id)
    assert "--- a process begins, " in first
    assert f"--- process {holder.pid} ended: signal 9, " in first
    tell(data, job_id, "fail")
    in_state(table, launcher, job_id, "failed")
    until(lambda: launcher.look() or log_of(table, job_id) != first, SECONDS, "the second log")
    second = log_of(table, job_id).removeprefix(first)
    assert "the job failed: the pictures are all the same" in second
    assert "ended: exit code 1, " in second


def test_the_log_of_a_process_that_another_launcher_started_is_kept_once_it_has_ended(table, data, launched):
    job_id = new(table)
    first = launched()
    holder = started(table, first, job_id)
    again = launched()
    again.look()
    assert [artifact.name for artifact in table.get(job_id).artifacts] == []  # it may have more to say
    tell(data, job_id, "fail")
    first._children[job_id].process.wait()  # it is this very process's child
    again.look()
    assert f"[{holder.pid}] the job failed: the pictures are all the same" in log_of(table, job_id)


def test_a_log_that_cannot_be_kept_stays_and_is_tried_again_after_a_while(table, data, launched, armed):
    job_id, time_now = new(table), [0.0]
    log = data / "jobs" / job_id / "train.log"
    log.parent.mkdir(parents=True)
    log.write_text("so far so good\n")
    launcher = launched(max_running=0, clock=lambda: time_now[0])
    armed("blob.rename=full")
    launcher.look()
    armed("")
    launcher.look()
    assert log.read_text() == "so far so good\n"
    assert table.get(job_id).artifacts == []
    time_now[0] += 60
    launcher.look()
    assert log_of(table, job_id) == "so far so good\n"
    assert not log.exists()


def test_a_killed_process_is_followed_by_another_that_goes_on_from_its_files(table, data, launched):
    job_id = new(table)
    launcher = launched()
    holder = started(table, launcher, job_id)
    at_step(table, data, job_id, 5)
    os.kill(holder.pid, signal.SIGKILL)
    gone(holder)
    until(lambda: launcher.look() or is_running(table, job_id, 2), SECONDS, "another process")
    assert [artifact.name for artifact in table.get(job_id).artifacts] == [CHECKPOINT, "log.txt"]
    tell(data, job_id, "finish")
    in_state(table, launcher, job_id, "succeeded")
    assert "the process was lost" in messages(table, job_id)


def test_a_job_whose_processes_die_at_once_fails_and_says_so(table, launched):
    job_id = new(table)
    launcher = launched(lambda *_: [sys.executable, "-c", "raise SystemExit(7)"])
    in_state(table, launcher, job_id, "failed")
    assert table.get(job_id).problem.code == "process_died"
    assert messages(table, job_id)[0] == "the process ended before it began (exit code 7)"


def test_a_stopped_launcher_has_its_processes_leave_and_a_new_one_goes_on(table, data, launched):
    job_id = new(table)
    launcher = launched()
    holder = started(table, launcher, job_id)
    at_step(table, data, job_id, 5)
    launcher.stop(patience_seconds=SECONDS)
    assert holder.life() == "dead"
    assert (table.get(job_id).state, table.get(job_id).step) == ("queued", 5)
    again = launched()
    started(table, again, job_id, attempt=2)
    tell(data, job_id, "finish")
    in_state(table, again, job_id, "succeeded")


def test_a_process_that_does_not_leave_in_time_is_left_and_adopted(table, data, launched):
    job_id, other = new(table), new(table, "wolf")
    first = next(job.id for job in table.waiting())
    launcher = launched()
    holder = started(table, launcher, first)
    tell(data, first, "hang")
    launcher.stop(patience_seconds=0.2)
    assert holder.life() == "alive"
    again = launched()
    again.look()
    assert table.get(first).attempts == 1  # it is not started twice
    assert again._children == {}  # nor is another beside it
    os.kill(holder.pid, signal.SIGKILL)
    launcher._children[first].process.wait()  # it is this very process's child
    until(lambda: again.look() or is_running(table, first, 2), SECONDS, "another process")
    assert {job_id, other} == {first, *(job.id for job in table.waiting())}


def test_an_adopted_process_is_stopped_like_a_child(table, data, launched):
    job_id = new(table)
    holder = started(table, launched(), job_id)
    launched().stop(patience_seconds=SECONDS)
    assert holder.life() == "dead"
    assert table.get(job_id).state == "queued"


def test_a_cancelled_job_ends_by_itself(table, data, launched):
    job_id = new(table)
    launcher = launched(lambda url, folder, job: job_child.command(url, folder, job, 0.3))
    started(table, launcher, job_id)
    table.cancel(job_id)
    in_state(table, launcher, job_id, "cancelled")
    assert table.get(job_id).attempts == 1


def test_a_cancelled_job_whose_process_hangs_is_killed(table, data, launched):
    job_id = new(table)
    launcher = launched(grace_seconds=0.2)
    holder = started(table, launcher, job_id)
    tell(data, job_id, "hang")
    table.cancel(job_id)
    in_state(table, launcher, job_id, "cancelled")
    assert holder.life() == "dead"
    launcher.look()
    assert launcher._children == {}  # nothing is started for it


def test_a_process_that_stopped_is_killed_after_its_lease_and_the_job_goes_on(table, data, launched):
    job_id = new(table)
    launcher = launched(lambda url, folder, job: job_child.command(url, folder, job, 0.5), grace_seconds=0.2)
    holder = started(table, launcher, job_id)
    os.kill(holder.pid, signal.SIGSTOP)
    until(lambda: launcher.look() or is_running(table, job_id, 2), SECONDS, "another process")
    assert holder.life() == "dead"


def test_a_process_that_hangs_before_it_claims_does_not_stand_in_the_way_for_ever(table, launched):
    job_id = new(table)
    launcher = launched(
        lambda *_: [sys.executable, "-c", "import signal; signal.pause()"],
        idle_seconds=0.2,
        poll_seconds=0.01,
    )
    in_state(table, launcher, job_id, "failed")
    assert messages(table, job_id)[0] == "the process ended before it began (signal 9)"


def test_a_job_of_a_machine_that_is_gone_waits_again_after_its_lease(table, data, launched):
    job_id = new(table)
    table.claim(job_id, holder="elsewhere 1 1", lease_seconds=0)
    launcher = launched()
    started(table, launcher, job_id, attempt=2)
    assert "the lease ran out" in messages(table, job_id)


def test_a_job_of_another_machine_is_left_alone(table, launched):
    job_id = new(table)
    table.claim(job_id, holder="elsewhere 1 1", lease_seconds=600)
    launcher = launched()
    launcher.look()
    launcher.stop()
    assert is_running(table, job_id)


def test_a_process_stopped_past_its_lease_writes_nothing_when_it_goes_on(table, data):
    """SIGSTOP, another takes the job, SIGCONT: the first one notices, and ends without a trace."""
    job_id = new(table)
    os.close(job_child.pipe(data, job_id))
    stale = subprocess.Popen(
        job_child.command(location("", data), data, job_id, 0.5), env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        until(lambda: is_running(table, job_id), SECONDS, "the claim")
        at_step(table, data, job_id, 5)
        os.kill(stale.pid, signal.SIGSTOP)
        until(lambda: table.abandoned(), SECONDS, "the end of the lease")
        fresh = table.claim(job_id, holder="another 1 1", lease_seconds=600)
        fresh.progress(step=6)
        before = table.get(job_id), table.events(job_id)
        orders = job_child.pipe(data, job_id)
        os.write(orders, b"step 7\nfinish\n")  # what it would have written next
        os.kill(stale.pid, signal.SIGCONT)
        assert stale.wait(SECONDS) == 4
        os.close(orders)
        assert (table.get(job_id), table.events(job_id)) == before
        assert fresh.read(CHECKPOINT) == b"5"
        assert fresh.succeeded("fox@1", DIGEST).state == "succeeded"
    finally:
        stale.kill()
        stale.wait()


def test_a_job_table_that_is_away_does_not_end_the_launcher(table, data, launched, armed):
    job_id = new(table)
    launcher = launched(poll_seconds=0.01)
    table_held, calls = table.held, []

    def away_once():
        calls.append(1)
        if len(calls) == 1:
            raise LeaseLost("job-x")
        return table_held()

    table.held = away_once
    launcher.start()
    until(lambda: is_running(table, job_id), SECONDS, "the claim")
    launcher.stop(patience_seconds=SECONDS)
    assert len(calls) > 1


def test_it_is_told_of_jobs_that_ended_and_of_no_others(table, data, launched):
    ended, (lost, done) = [], (new(table), new(table, "wolf"))
    launcher = launched(max_running=2, ended=ended.append)
    os.killpg(started(table, launcher, lost).pid, signal.SIGKILL)
    in_state(table, launcher, lost, "running")
    until(lambda: is_running(table, done), SECONDS, "the claim")
    tell(data, done, "finish")
    in_state(table, launcher, done, "succeeded")
    until(lambda: launcher.look() or ended, SECONDS, "the news")
    assert [(job.id, job.state) for job in ended] == [(done, "succeeded")]


def test_a_job_table_that_is_away_does_not_stand_in_the_way_of_a_stop(table, launched):
    def away(*_arguments):
        raise CatalogUnavailable("away")

    launcher = launched()
    started(table, launcher, new(table))
    table.held = table.get = table.fence = away
    launcher.stop(patience_seconds=SECONDS)
    until(lambda: not launcher._children or launcher.stop(), SECONDS, "the end of the process")
