"""Whatever step of a job's life fails: nothing acknowledged is lost, nothing half-written is visible."""

import hashlib
import os
import shutil
from contextlib import suppress

import pytest

from lora_registry import faults
from lora_registry.errors import CatalogUnavailable, RegistryError
from service.jobs.table import JobTable
from service.store.database import connect, location
from service.store.errors import LeaseLost
from service.store.files import files
from work_store import new

MAX_POINTS = 300
STORY = [
    ("queued", {}),
    ("running", {}),
    ("running", {"checkpoints/1": b"one"}),
    ("running", {"checkpoints/1": b"one", "loss.png": b"first"}),
    ("running", {"checkpoints/1": b"one", "loss.png": b"second"}),
    ("running", {"loss.png": b"second"}),
    ("succeeded", {"loss.png": b"second"}),
]
"""A job's state and its files, after each step of `story`."""
DIGEST = "sha256:" + "a" * 64


def opened_at(folder, clock):
    database = connect(location("", folder))
    return database, JobTable(database, files("", folder), clock=clock)


def story(table, job_id):
    """A job's life; after each step, what is acknowledged by it."""
    held = table.claim(job_id, holder="here 1 1", lease_seconds=60)
    yield STORY[1]
    held.put("checkpoints/1", b"one", "application/octet-stream", step=1)
    yield STORY[2]
    held.put("loss.png", b"first", "image/png", step=1)
    yield STORY[3]
    held.put("loss.png", b"second", "image/png", step=2)
    yield STORY[4]
    held.drop("checkpoints/1")
    yield STORY[5]
    held.succeeded("fox@1", DIGEST)
    yield STORY[6]


def check(table, job_id, staging):
    """The invariants; gives the job's state and its files."""
    job = table.get(job_id)
    kept = {}
    for artifact in job.artifacts:
        with table.open(job_id, artifact.name)[1] as file:
            kept[artifact.name] = file.read()
        assert f"sha256:{hashlib.sha256(kept[artifact.name]).hexdigest()}" == artifact.digest
        assert len(kept[artifact.name]) == artifact.size_bytes
    events = table.events(job_id)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.state for event in events if event.type == "state"][-1] == job.state
    assert (job.state == "succeeded") == (job.lora == "fox@1") == (job.finished_at is not None)
    assert not staging.is_dir() or list(staging.iterdir()) == []
    return job.state, kept


@pytest.mark.parametrize("action", ["error", "full"])
def test_each_step_may_fail_and_the_job_stays_whole(data, migrated_work, clock, armed, action):
    points = set()
    for number in range(1, MAX_POINTS):
        folder = data / str(number)
        folder.mkdir()
        shutil.copy(migrated_work, folder)
        database, table = opened_at(folder, clock)
        job_id = new(table)
        told = [STORY[0]]
        plan = armed(f"#{number}={action}")
        with suppress(RegistryError):
            for step in story(table, job_id):
                told.append(step)
        armed("")
        points |= set(plan.passed)
        database.close()
        database, table = opened_at(folder, clock)
        # What was not acknowledged is not there: a step that failed has changed nothing.
        assert check(table, job_id, folder / "training/incoming") == told[-1]
        if told[-1][0] == "running":  # and the next process can take it to its end
            clock.now += 61
            assert list(story(table, job_id))[-1][0] == "succeeded"
            check(table, job_id, folder / "training/incoming")
        database.close()
        shutil.rmtree(folder)
        if len(plan.passed) < number:
            break
    else:
        pytest.fail("the story has more points than expected")
    assert {"job.after_blob", "job.after_artifact", "job.before_success", "job.after_success"} <= points


def killed_at(number, folder, job_id, clock):
    """A process that lives the story until its Nth point. What it acknowledged, and whether it came to the end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        faults.load(f"#{number}=kill")
        table = opened_at(folder, clock)[1]
        for _ in story(table, job_id):
            os.write(writing, b".")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        acknowledged = len(pipe.read())
    return acknowledged, os.waitpid(child, 0)[1] == 0


def test_killed_at_each_step_the_job_is_whole_when_it_is_taken_up_again(data, migrated_work, clock):
    for number in range(1, MAX_POINTS):
        folder = data / str(number)
        folder.mkdir()
        shutil.copy(migrated_work, folder)
        database, table = opened_at(folder, clock)
        job_id = new(table)
        database.close()
        acknowledged, has_ended = killed_at(number, folder, job_id, clock)
        database, table = opened_at(folder, clock)
        # A step that was cut off was done or was not; the steps before it were.
        table.gc(grace_seconds=-1e12)
        seen = check(table, job_id, folder / "training/incoming")
        assert seen in STORY[acknowledged : acknowledged + 2]
        if seen[0] != "succeeded":
            clock.now += 61
            assert list(story(table, job_id))[-1] == STORY[-1]
            assert check(table, job_id, folder / "training/incoming") == STORY[-1]
        database.close()
        shutil.rmtree(folder)
        if has_ended:
            return
    pytest.fail("the story has more points than expected")


def test_a_database_that_comes_back_in_time_is_waited_for(local, armed):
    job_id = new(local)
    held = local.claim(job_id, holder="here 1 1", lease_seconds=60, patience_seconds=5)
    plan = armed("#2=error")  # the first commit fails
    held.progress(step=3)
    assert plan.passed == ["catalog.begin", "catalog.commit"] * 2
    assert local.get(job_id).step == 3


def test_a_database_that_stays_away_is_said_so(local, armed):
    held = local.claim(new(local), holder="here 1 1", lease_seconds=60, patience_seconds=0.3)
    armed("catalog.begin=error")
    with pytest.raises(CatalogUnavailable, match="datasets, train jobs and comparisons does not answer"):
        held.progress(step=3)


def test_success_that_is_told_twice_is_refused_the_second_time(local):
    held = local.claim(new(local), holder="here 1 1", lease_seconds=60)
    held.succeeded("fox@1", DIGEST)
    with pytest.raises(LeaseLost):
        held.succeeded("fox@1", DIGEST)
