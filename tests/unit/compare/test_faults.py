"""Whatever step of a comparison's life fails: nothing acknowledged is lost, nothing half-written is visible."""

import hashlib
import os
import shutil
import signal
from contextlib import suppress

import pytest

from lora_registry import faults
from lora_registry.errors import RegistryError
from service.compare.table import ComparisonTable
from service.jobs.table import JobTable
from service.store.database import connect, location
from service.store.files import files
from work_store import MODEL, draft

MAX_POINTS = 150
POINTS = {"compare.after_blobs": 0, "compare.after_cell": 0, "compare.after_blob": 2, "compare.after_file": 2}
"""Steps of writing a cell and a file, and how many cells are acknowledged by the first time that they are passed."""


def story(held):
    """A comparison's life from its claim on; after each step, what is acknowledged by it: cells, files, the state."""
    for cell in held.comparison.cells[:2]:
        held.keep(cell, b"picture %d" % cell.index, b"thumbnail %d" % cell.index)
        yield cell.index + 1, 0, "running"
    held.put_file("sheet.png", "image/png", b"sheet")
    yield 2, 1, "running"
    held.finish("succeeded")
    yield 2, 1, "succeeded"


def check(comparisons, comparison_id, data):
    """The invariants; gives what there is, as `story` tells it."""
    found = comparisons.get(comparison_id)
    done = [cell.index for cell in found.cells if cell.state == "done"]
    opened = [comparisons.picture(found.id, index) for index in done]
    opened += [comparisons.open(found.id, one.name) for one in found.files]
    for named, file in opened:
        with file:
            content = file.read()
        assert (named.size_bytes, named.digest) == (
            len(content),
            f"sha256:{hashlib.sha256(content).hexdigest()}",
        )
    events = comparisons.events(found.id)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert [event.cell for event in events if event.type == "cell"] == done
    assert [event.state for event in events if event.type == "state"][-1] == found.state
    (listed,) = comparisons.list().items
    assert (listed.done, events[-1].done) == (len(done), len(done))
    assert list((data / "training/incoming").glob("*")) == []
    return len(done), len(found.files), found.state


@pytest.mark.parametrize("action", ["error", "full"])
def test_each_step_may_fail_and_the_comparison_stays_whole(data, migrated_work, clock, armed, action):
    points = set()
    for number in range(1, MAX_POINTS):
        shutil.rmtree(data / "training", ignore_errors=True)
        shutil.copy(migrated_work, data)
        database = connect(location("", data))
        comparisons = ComparisonTable(database, files("", data), clock=clock)
        comparison_id = comparisons.create(draft())[0].id
        told = [(0, 0, "running")]
        held = comparisons.claim_next(holder="here 1 1", lease_seconds=60, model=MODEL)
        plan = armed(f"#{number}={action}")
        with suppress(RegistryError):
            for step in story(held):
                told.append(step)
        armed("")
        points |= set(plan.passed)
        # What was not acknowledged is not there: a step that failed has changed nothing.
        assert check(comparisons, comparison_id, data) == told[-1]
        if told[-1][2] == "running":  # and the next process takes it to its end
            clock.now += 61
            JobTable(database, files("", data), clock=clock).gc(grace_seconds=-1e12, also=comparisons.digests)
            again = comparisons.claim_next(holder="there 1 1", lease_seconds=60, model=MODEL)
            assert (again.comparison.done, len(again.comparison.files)) == told[-1][:2]
            assert list(story(again))[-1] == check(comparisons, comparison_id, data)
        database.close()
        for left in data.glob("work.sqlite3*"):
            left.unlink()
        if len(plan.passed) < number:
            break
    else:
        pytest.fail("the story has more points than expected")
    assert points >= {*POINTS, "compare.before_end"}


@pytest.mark.parametrize(("step", "cells"), POINTS.items())
def test_a_process_that_is_killed_leaves_what_the_next_one_goes_on_with(
    data, migrated_work, clock, step, cells
):
    shutil.copy(migrated_work, data)
    child = os.fork()
    if child == 0:
        comparisons = ComparisonTable(connect(location("", data)), files("", data), clock=clock)
        comparisons.create(draft())
        held = comparisons.claim_next(holder="here 1 1", lease_seconds=60, model=MODEL)
        faults.load(f"{step}=kill")
        list(story(held))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    database = connect(location("", data))
    comparisons = ComparisonTable(database, files("", data), clock=clock)
    (left,) = comparisons.list().items
    JobTable(database, files("", data), clock=clock).gc(grace_seconds=-1e12, also=comparisons.digests)
    assert check(comparisons, left.id, data) == (cells, 0, "running")
    clock.now += 61
    again = comparisons.claim_next(holder="there 1 1", lease_seconds=60, model=MODEL)
    assert list(story(again))[-1] == check(comparisons, left.id, data)
    database.close()


@pytest.mark.parametrize("step", ["catalog.begin", "catalog.commit"])
def test_a_claim_that_fails_leaves_the_comparison_to_the_next(data, migrated_work, clock, armed, step):
    shutil.copy(migrated_work, data)
    database = connect(location("", data))
    comparisons = ComparisonTable(database, files("", data), clock=clock)
    comparison_id = comparisons.create(draft())[0].id
    armed(f"{step}=error")
    with pytest.raises(RegistryError):
        comparisons.claim_next(holder="here 1 1", lease_seconds=60, model=MODEL)
    armed("")
    assert comparisons.get(comparison_id).attempts == 0
    assert comparisons.claim_next(holder="here 1 1", lease_seconds=60, model=MODEL).comparison.attempts == 1
    database.close()
