"""The frame around the work: what becomes of a job in every way in which the work may end."""

import threading
import time

import pytest

from lora_registry.errors import StorageFull
from service.errors import OutOfDeviceMemory
from service.jobs import worker
from service.jobs.processes import Holder
from service.jobs.worker import Finished, Stop, Stopped
from work_store import new

DIGEST = "sha256:" + "a" * 64


@pytest.fixture
def job_id(local):
    return new(local)


def run(table, job_id, work, lease_seconds=60.0):
    return worker.run(table, job_id, work, lease_seconds=lease_seconds, patience_seconds=1)


def until_asked(_claim, stop):
    while stop.asked() is None:
        time.sleep(0.001)
    raise Stopped(stop.asked())


def raising(error):
    def work(_claim, _stop):
        raise error

    return work


def test_work_that_returns_has_succeeded(local, job_id):
    assert run(local, job_id, lambda *_: Finished("fox@1", DIGEST)) == worker.DONE
    job = local.get(job_id)
    assert (job.state, job.lora, job.digest) == ("succeeded", "fox@1", DIGEST)


def test_the_claim_names_the_process(local, job_id):
    def work(claim, _stop):
        (held,) = local.held()
        assert Holder.parse(held.holder) == Holder.this_process()
        return Finished("fox@1", DIGEST)

    assert run(local, job_id, work) == worker.DONE


def test_a_cancelled_job_ends_at_its_next_step(local, job_id):
    def work(claim, stop):
        local.cancel(job_id)
        return until_asked(claim, stop)

    assert run(local, job_id, work, lease_seconds=0.03) == worker.DONE
    assert local.get(job_id).state == "cancelled"


def test_work_that_leaves_is_taken_up_again(local, job_id):
    assert run(local, job_id, raising(Stopped("leave"))) == worker.LEFT
    assert local.get(job_id).state == "queued"
    assert run(local, job_id, lambda *_: Finished("fox@1", DIGEST)) == worker.DONE
    assert local.get(job_id).attempts == 2


def test_a_process_that_lost_its_lease_writes_nothing(local, job_id, clock):
    def work(claim, stop):
        clock.now += 1000
        local.claim(job_id, holder="another 1 1", lease_seconds=60)
        return until_asked(claim, stop)

    assert run(local, job_id, work, lease_seconds=0.03) == worker.LOST
    job = local.get(job_id)
    assert (job.state, job.attempts) == ("running", 2)


@pytest.mark.parametrize("told", [True, False])
def test_a_success_that_comes_after_the_lease_was_lost_is_not_recorded(local, job_id, clock, told):
    def work(claim, stop):
        clock.now += 1000
        local.claim(job_id, holder="another 1 1", lease_seconds=60)
        if told:
            claim.log("hello")
        return Finished("fox@1", DIGEST)

    assert run(local, job_id, work) == worker.LOST
    assert local.get(job_id).lora is None


@pytest.mark.parametrize(
    ("error", "code", "detail"),
    [
        (OutOfDeviceMemory("no room for 512 x 512"), "out_of_device_memory", "no room for 512 x 512"),
        (
            StorageFull(),
            "storage_full",
            "the storage is full; make room and retry the job, which goes on from its last checkpoint",
        ),
    ],
)
def test_an_error_that_is_known_is_told_as_it_is(local, job_id, error, code, detail):
    assert run(local, job_id, raising(error)) == worker.FAILED
    job = local.get(job_id)
    assert (job.state, job.problem.code, job.problem.detail) == ("failed", code, detail)


def test_an_error_that_is_not_known_is_told_to_the_log_only(local, job_id, capsys):
    assert run(local, job_id, raising(ValueError("a secret at /some/path"))) == worker.FAILED
    job = local.get(job_id)
    assert (job.state, job.problem.code) == ("failed", "internal")
    assert "secret" not in str(job) + str(local.events(job_id))
    assert "ValueError: a secret at /some/path" in capsys.readouterr().err


def test_a_job_that_another_process_has_is_left_alone(local, job_id):
    local.claim(job_id, holder="another 1 1", lease_seconds=60)
    before = local.get(job_id)
    assert run(local, job_id, raising(AssertionError)) == worker.NOT_CLAIMED
    assert run(local, "job-x", raising(AssertionError)) == worker.NOT_CLAIMED
    assert local.get(job_id) == before


def test_the_lease_is_kept_while_the_work_goes_on(local, job_id, clock):
    def work(_claim, _stop):
        for _ in range(3):
            clock.now += 10  # far beyond the lease
            while local.held()[0].has_expired:
                time.sleep(0.001)
        return Finished("fox@1", DIGEST)

    assert run(local, job_id, work, lease_seconds=0.03) == worker.DONE


def test_a_stronger_reason_takes_the_place_of_a_weaker_one():
    stop = Stop()
    stop.check()
    for reason, then in [
        ("leave", "leave"),
        ("cancelled", "cancelled"),
        ("leave", "cancelled"),
        ("lost", "lost"),
    ]:
        stop.ask(reason)
        assert stop.asked() == then
    with pytest.raises(Stopped):
        stop.check()


def test_the_heartbeat_ends_with_the_work(local, job_id):
    run(local, job_id, lambda *_: Finished("fox@1", DIGEST))
    assert "heartbeat" not in {thread.name for thread in threading.enumerate()}
