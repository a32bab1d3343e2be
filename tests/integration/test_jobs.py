"""Two services on one table, whose processes are killed at random: every job is done, and done once."""

import os
import random
import signal
import time

import job_child
from processes import environment, until
from service.jobs.launcher import LocalLauncher
from service.jobs.processes import Holder
from service.jobs.table import JobTable
from service.store.database import connect
from service.store.files import files
from work_store import data, empty_url, migrated_work, new, work_postgres, work_url  # noqa: F401

SECONDS = 120.0
STEPS = 40
KILLS = 2


def test_whatever_is_killed_each_job_ends_once_with_all_its_steps(work_url, data):  # noqa: F811
    table = JobTable(connect(work_url), files("", data))
    made = [new(table, f"fox-{number}") for number in range(3)]
    launchers = [
        LocalLauncher(
            JobTable(connect(work_url), files("", data)),
            data / f"jobs-{number}",
            lambda job_id: job_child.command(work_url, data, job_id, 2.0, STEPS),
            max_running=2,
            environment=environment(),
            poll_seconds=0.05,
        )
        for number in range(2)
    ]
    for launcher in launchers:
        launcher.start()
    chance, killed = random.Random(5), 0
    due = {job_id: sorted(chance.sample(range(1, STEPS), KILLS)) for job_id in made}

    def all_ended():
        return all(table.get(job_id).state not in ("queued", "running") for job_id in made)

    deadline = time.monotonic() + SECONDS
    while not all_ended() and time.monotonic() < deadline:
        for job in table.held():
            step = table.get(job.id).step
            if due[job.id] and step >= due[job.id][0]:
                Holder.parse(job.holder).send(signal.SIGKILL)
                killed += 1
                due[job.id] = [later for later in due[job.id] if later > step]
    until(all_ended, SECONDS, "the end of all jobs")
    for launcher in launchers:
        launcher.stop(patience_seconds=SECONDS)
    assert killed >= len(made)
    for job_id in made:
        job = table.get(job_id)
        assert (job.state, job.step, job.lora) == ("succeeded", STEPS, "fox@1")
        events = table.events(job_id)
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert [event.state for event in events].count("succeeded") == 1
        kept = [event.step for event in events if event.artifact == job_child.CHECKPOINT]
        assert kept == list(range(1, STEPS + 1))  # each checkpoint once, in order, whoever made it
        with table.open(job_id, job_child.CHECKPOINT)[1] as file:
            assert file.read() == str(STEPS).encode()
        with table.open(job_id, "log.txt")[1] as file:
            log = file.read().decode()
        # Those that came too late to claim it have a log as well.
        assert log.count("--- a process begins, ") == log.count(" ended: ") >= job.attempts
    table.gc(grace_seconds=-1e12)
    assert os.listdir(data / "training/incoming") == []
