"""What callers see of train jobs."""

import pytest

from darkroom.types import Problem
from lora_registry.errors import InvalidCursor
from service.jobs.errors import (
    ArtifactNotFound,
    JobNotFound,
    JobNotRetryable,
    NotClaimable,
)
from service.jobs.table import FRUITLESS_ATTEMPTS
from service.store.errors import KeyReused, LeaseLost
from work_store import at_once, new, request

PROBLEM = Problem(title="The training failed", status=500, detail="the loss is not a number", code="nan_loss")
DIGEST = "sha256:" + "a" * 64


def claim(table, job_id, lease_seconds=60.0):
    return table.claim(job_id, holder="here 1 1", lease_seconds=lease_seconds)


def states(table, job_id):
    return [event.state for event in table.events(job_id) if event.type == "state"]


def test_a_new_job_waits_and_says_what_was_asked_for(table):
    job, replayed = table.create(request(), max_train_steps=100)
    assert not replayed
    assert (job.state, job.stage, job.step, job.max_train_steps, job.attempts) == (
        "queued",
        "waiting",
        0,
        100,
        0,
    )
    assert job.request == request()
    assert job.dataset == request().dataset
    assert table.get(job.id) == job
    assert states(table, job.id) == ["queued"]


def test_the_same_key_with_the_same_body_is_the_same_job(table):
    job, _ = table.create(request(), max_train_steps=100, key="k", fingerprint="f")
    assert table.create(request(), max_train_steps=100, key="k", fingerprint="f") == (job, True)
    assert table.list().items == [job]
    assert [event.id for event in table.events(job.id)] == [1]


def test_a_key_with_another_body_is_refused(table):
    table.create(request(), max_train_steps=100, key="k", fingerprint="f")
    with pytest.raises(KeyReused, match="'k' was used with another body before"):
        table.create(request("wolf"), max_train_steps=100, key="k", fingerprint="g")


def test_many_posts_with_one_key_at_once_make_one_job(opened):
    def post(table):
        return lambda: table.create(request(), max_train_steps=100, key="k", fingerprint="f")

    made = at_once(*[post(opened()) for _ in range(6)])
    assert len({job.id for job, _ in made}) == 1
    assert sorted(replayed for _, replayed in made) == [False] + [True] * 5


def test_a_job_that_is_not_there_is_said_so(table):
    for ask in (table.get, table.cancel, table.retry, table.fence, lambda job_id: table.open(job_id, "x")):
        with pytest.raises(JobNotFound, match="'job-x' was not found"):
            ask("job-x")
    assert table.events("job-x") == []


def test_jobs_are_listed_newest_first_in_pages(table, clock):
    made = []
    for number in range(5):
        clock.now += number % 2  # some within the same millisecond
        made.append(new(table, f"fox-{number}"))
    seen, cursor = [], ""
    while True:
        page = table.list(limit=2, cursor=cursor)
        seen += page.items
        if not (cursor := page.next_cursor):
            break
    assert sorted(job.id for job in seen) == sorted(made)
    assert [job.created_at for job in seen] == sorted((job.created_at for job in seen), reverse=True)
    table.cancel(made[2])
    assert [job.id for job in table.list(state="cancelled").items] == [made[2]]
    with pytest.raises(InvalidCursor):
        table.list(cursor="nonsense")


def test_jobs_wait_in_the_order_in_which_they_came(table, clock):
    made = []
    for number in range(3):
        clock.now += 1
        made.append(new(table, f"fox-{number}"))
    claim(table, made[0]).release()
    assert [job.id for job in table.waiting()] == made


def test_a_claimed_job_runs_and_cannot_be_claimed_again(table):
    job_id = new(table)
    held = claim(table, job_id)
    assert (held.job.state, held.job.attempts, held.fence) == ("running", 1, 1)
    with pytest.raises(NotClaimable, match="another process works on it"):
        claim(table, job_id)


def test_of_two_that_claim_at_once_one_wins(opened):
    first, second = opened(), opened()
    for _ in range(5):
        job_id = new(first)
        results = at_once(lambda j=job_id: claim(first, j), lambda j=job_id: claim(second, j))
        assert sum(isinstance(result, NotClaimable) for result in results) == 1
        assert first.get(job_id).attempts == 1


def test_a_lease_that_ran_out_can_be_claimed_and_the_former_holder_writes_nothing_more(table, clock):
    job_id = new(table)
    stale = claim(table, job_id)
    stale.put("checkpoints/1", b"old", "application/octet-stream", step=1)
    clock.now += 61
    assert [job.id for job in table.abandoned()] == [job_id]
    fresh = claim(table, job_id)
    assert fresh.fence == 2
    before = table.get(job_id), table.events(job_id)
    writes = [
        stale.heartbeat,
        stale.release,
        stale.cancelled,
        lambda: stale.stage("training"),
        lambda: stale.progress(step=9),
        lambda: stale.log("hello"),
        lambda: stale.put("checkpoints/1", b"stale", "application/octet-stream"),
        lambda: stale.drop("checkpoints/1"),
        lambda: stale.dataset_made(DIGEST),
        lambda: stale.succeeded("fox@1", DIGEST),
        lambda: stale.failed(PROBLEM),
    ]
    for write in writes:
        with pytest.raises(LeaseLost, match="no longer this process's"):
            write()
    assert (table.get(job_id), table.events(job_id)) == before
    assert fresh.read("checkpoints/1") == b"old"


def test_a_heartbeat_extends_the_lease(table, clock):
    job_id = new(table)
    held = claim(table, job_id)
    clock.now += 50
    assert held.heartbeat() is False
    clock.now += 50
    assert table.abandoned() == []


def test_a_late_heartbeat_keeps_a_job_that_nobody_took(table, clock):
    job_id = new(table)
    held = claim(table, job_id)
    clock.now += 1000
    held.heartbeat()
    assert table.abandoned() == []


def test_a_waiting_job_is_cancelled_at_once(table):
    job_id = new(table)
    assert table.cancel(job_id).state == "cancelled"
    assert table.get(job_id).finished_at is not None
    with pytest.raises(NotClaimable, match="it is cancelled"):
        claim(table, job_id)


def test_a_running_job_hears_of_its_cancellation_with_its_heartbeat(table):
    job_id = new(table)
    held = claim(table, job_id)
    assert table.cancel(job_id).state == "running"
    assert table.cancel(job_id).cancel_requested
    assert held.heartbeat() is True
    assert held.cancelled().state == "cancelled"
    assert states(table, job_id) == ["queued", "running", "cancelled"]


def test_a_job_that_has_ended_stays_as_it_is_when_it_is_cancelled(table):
    job_id = new(table)
    done = claim(table, job_id).succeeded("fox@1", DIGEST)
    assert table.cancel(job_id) == done


def test_success_records_what_was_published(table):
    done = claim(table, new(table)).succeeded("fox@1", DIGEST)
    assert (done.state, done.stage, done.lora, done.digest) == ("succeeded", "done", "fox@1", DIGEST)


@pytest.mark.parametrize("when", ["asked for", "done"])
def test_a_job_cancelled_meanwhile_stays_cancelled_and_keeps_its_lora(table, when):
    job_id = new(table)
    held = claim(table, job_id)
    table.cancel(job_id)
    if when == "done":
        table.died(job_id, held.fence, "the process was lost")
    done = held.succeeded("fox@1", DIGEST)
    assert (done.state, done.lora, done.digest) == ("cancelled", "fox@1", DIGEST)


def test_cancel_and_success_at_once_end_in_one_of_both_and_never_lose_the_lora(opened):
    first, second = opened(), opened()
    for _ in range(5):
        job_id = new(first)
        held = claim(first, job_id)
        at_once(lambda h=held: h.succeeded("fox@1", DIGEST), lambda j=job_id: second.cancel(j))
        job = first.get(job_id)
        assert job.state == ("cancelled" if job.cancel_requested else "succeeded")
        assert job.lora == "fox@1"


def test_a_failed_job_says_why_and_can_be_retried(table):
    job_id = new(table)
    held = claim(table, job_id)
    held.progress(step=40, loss=0.5)
    held.put("checkpoints/40", b"state", "application/octet-stream", step=40)
    failed = held.failed(PROBLEM)
    assert (failed.state, failed.problem) == ("failed", PROBLEM)
    assert table.events(job_id)[-1].message == "the loss is not a number"
    waiting = table.retry(job_id)
    assert (waiting.state, waiting.problem, waiting.finished_at, waiting.step) == ("queued", None, None, 40)
    again = claim(table, job_id)
    assert (again.job.attempts, again.read("checkpoints/40")) == (2, b"state")


@pytest.mark.parametrize("state", ["queued", "running", "succeeded"])
def test_only_failed_and_cancelled_jobs_are_retried(table, state):
    job_id = new(table)
    if state != "queued":
        held = claim(table, job_id)
    if state == "succeeded":
        held.succeeded("fox@1", DIGEST)
    with pytest.raises(JobNotRetryable, match=f"is {state}; only a failed or cancelled one"):
        table.retry(job_id)


def test_a_released_job_waits_with_its_step_and_its_files(table):
    job_id = new(table)
    held = claim(table, job_id)
    held.progress(step=10)
    held.put("checkpoints/10", b"state", "application/octet-stream", step=10)
    held.release()
    job = table.get(job_id)
    assert (job.state, job.stage, job.step, len(job.artifacts)) == ("queued", "waiting", 10, 1)


def test_a_job_that_leaves_after_its_cancellation_is_cancelled(table):
    job_id = new(table)
    held = claim(table, job_id)
    table.cancel(job_id)
    held.release()
    assert table.get(job_id).state == "cancelled"


def test_events_are_numbered_from_one_without_a_gap_and_can_be_read_on(table):
    job_id = new(table)
    held = claim(table, job_id)
    held.stage("training")
    held.stage("training")  # said already
    held.progress(step=1, loss=float("nan"), learning_rate=1e-4)
    held.log("a picture was left out")
    held.put("loss.png", b"png", "image/png", step=1)
    held.succeeded("fox@1", DIGEST)
    events = table.events(job_id)
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    kinds = ["state", "state", "stage", "progress", "log", "artifact", "stage", "state"]
    assert [event.type for event in events] == kinds
    assert (events[3].loss, events[3].learning_rate, events[3].step) == (None, 1e-4, 1)
    assert (events[5].artifact, events[5].step) == ("loss.png", 1)
    assert table.events(job_id, after=6) == events[6:]
    assert table.events(job_id, after=2, limit=2) == events[2:4]


def test_events_of_many_writers_at_once_have_no_gap(opened):
    first, second = opened(), opened()
    job_id = new(first)
    held = claim(first, job_id)

    def many():
        for step in range(10):
            held.progress(step=step)

    at_once(many, many, lambda: [second.cancel(job_id) for _ in range(5)])
    ids = [event.id for event in first.events(job_id)]
    assert ids == list(range(1, 24))


def test_a_file_takes_the_place_of_one_with_its_name(table):
    job_id = new(table)
    held = claim(table, job_id)
    held.put("loss.png", b"first", "image/png", step=1)
    held.put("loss.png", b"second", "image/png", step=2)
    (artifact,) = table.get(job_id).artifacts
    assert (artifact.name, artifact.size_bytes, artifact.step) == ("loss.png", 6, 2)
    found, file = table.open(job_id, "loss.png")
    with file:
        assert (found, file.read()) == (artifact, b"second")


def test_a_dropped_file_is_gone(table):
    job_id = new(table)
    held = claim(table, job_id)
    held.put("checkpoints/1", b"state", "application/octet-stream")
    held.drop("checkpoints/1")
    held.drop("checkpoints/1")
    assert held.read("checkpoints/1") is None
    with pytest.raises(ArtifactNotFound, match="has no file 'checkpoints/1'"):
        table.open(job_id, "checkpoints/1")


def test_the_dataset_that_a_job_made_is_recorded(table):
    held = claim(table, new(table))
    held.dataset_made(DIGEST)
    assert held.job.dataset == table.get(held.job.id).dataset == DIGEST


def test_a_job_whose_process_died_waits_again(table):
    job_id = new(table)
    held = claim(table, job_id)
    held.progress(step=5)
    table.died(job_id, held.fence, "the process was lost")
    assert table.get(job_id).state == "queued"
    assert "the process was lost" in [event.message for event in table.events(job_id)]


def test_a_death_that_is_told_late_changes_nothing(table, clock):
    job_id = new(table)
    stale = claim(table, job_id)
    clock.now += 61
    claim(table, job_id)
    table.died(job_id, stale.fence, "the process was lost")
    assert table.get(job_id).state == "running"


def test_a_job_that_dies_three_times_without_a_new_step_has_failed(table):
    job_id = new(table)
    for step in (7, 7, 3, 7):  # the first attempt got somewhere, the others not beyond it
        assert table.get(job_id).state == "queued"
        held = claim(table, job_id)
        held.progress(step=step)
        table.died(job_id, held.fence, "the process was lost")
    job = table.get(job_id)
    assert (job.state, job.problem.code) == ("failed", "process_died")
    assert "3 times in a row without a new step" in job.problem.detail
    table.retry(job_id)
    held = claim(table, job_id)
    table.died(job_id, held.fence, "the process was lost")
    assert table.get(job_id).state == "queued"


def test_a_death_that_two_launchers_tell_of_counts_once(table):
    job_id = new(table)
    for _ in range(FRUITLESS_ATTEMPTS - 1):
        held = claim(table, job_id)
        for tell in (table.died, table.died, table.died):
            tell(job_id, held.fence, "the process was lost")
    assert table.get(job_id).state == "queued"
    assert [event.message for event in table.events(job_id)].count("the process was lost") == 2


def test_a_process_that_never_began_is_not_told_of_a_job_that_was_claimed_since(table):
    job_id = new(table)
    claim(table, job_id)
    before = table.get(job_id), table.events(job_id)
    table.never_began(job_id, 0, "the process ended before it began (exit code 1)")
    table.never_began(job_id, 1, "the process ended before it began (exit code 1)")
    assert (table.get(job_id), table.events(job_id)) == before


def test_a_job_that_gets_on_between_its_deaths_goes_on_for_ever(table):
    job_id = new(table)
    for step in range(1, 3 * FRUITLESS_ATTEMPTS):
        held = claim(table, job_id)
        held.progress(step=step)
        table.died(job_id, held.fence, "the process was lost")
        assert table.get(job_id).state == "queued"


def test_a_job_that_dies_before_it_is_claimed_fails_in_the_end(table):
    job_id = new(table)
    for _ in range(FRUITLESS_ATTEMPTS):
        table.never_began(job_id, 0, "the process ended before it began (exit code 1)")
    assert table.get(job_id).state == "failed"


def test_a_collection_removes_what_no_job_and_no_one_else_names(table, clock):
    held = claim(table, new(table))
    for name in ("kept", "replaced", "dropped", "others"):
        held.put(name, name.encode(), "text/plain")
    others = next(one.digest for one in table.get(held.job.id).artifacts if one.name == "others")
    held.put("replaced", b"by this", "text/plain")
    held.drop("dropped")
    held.drop("others")
    assert table.gc(also=lambda: [others]).blobs == 0  # within the grace period
    clock.now += 10**9
    assert table.gc(also=lambda: [others]).blobs == 2
    assert held.read("kept") == b"kept"
    assert held.read("replaced") == b"by this"
    assert table.gc().blobs == 1


def test_a_file_that_is_put_again_while_it_is_collected_is_there(opened, clock):
    first, second = opened(), opened()
    held = first.claim(new(first), holder="here 1 1", lease_seconds=1e12)
    for _ in range(10):
        held.put("one", b"bytes", "text/plain")
        held.drop("one")
        clock.now += 10**9
        at_once(lambda: held.put("one", b"bytes", "text/plain"), lambda: second.gc(grace_seconds=0))
        assert held.read("one") == b"bytes"
