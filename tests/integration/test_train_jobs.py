"""Trainings whose processes are killed, stopped, told to leave and tripped up: the LoRA is the same, to the bit."""

import io
import os
import random
import signal
import tempfile
import threading
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest
import torch
from safetensors.torch import load

from lora_files import lora_file
from processes import until
from service import __version__
from service.datasets.datasets import Datasets
from service.jobs import worker
from service.settings import Settings
from service.training import trainer
from service.training.errors import TrainingTooLarge
from training_jobs import EVERY, SECONDS, STEPS, Trainer, Trap, Workshop, workshop

STATE = "state.safetensors"
SHORT_LEASE_SECONDS = 1.5
names = (f"hearts-{number}" for number in count())


@pytest.fixture(scope="module")
def shop() -> Iterator[Workshop]:
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="train-", dir=where) as folder, workshop(Path(folder)) as shop:
        yield shop


@pytest.fixture(scope="module")
def whole(shop) -> bytes:
    """What a training publishes that nothing has befallen."""
    return shop.published(shop.finish(shop.new(next(names))))


def next_death(shop: Workshop, job_id: str, trainer: Trainer, chance: random.Random, beyond: int) -> bool:
    """Kill the process some time after its claim, once it has told of a step `beyond` that. False: it ended before."""

    def is_due() -> bool:
        job = shop.table.get(job_id)
        return (job.state == "running" and job.step > beyond) or trainer.process.exitcode is not None

    until(is_due, SECONDS, "a step to be killed after")
    threading.Event().wait(chance.uniform(0, 0.4))
    trainer.process.kill()
    return trainer.ended() == -signal.SIGKILL


def test_the_published_version_tells_where_it_comes_from(shop):
    job = shop.finish(shop.new(next(names), alias="good"))
    (version,) = shop.versions(job.name)
    request = job.request.model_dump(mode="json")
    del request["recipe"]["sample_prompts"]
    lineage = dict(version.lineage)
    assert len(lineage.pop("model")) == 64
    assert lineage == {
        "origin": "train-job",
        "job": job.id,
        "dataset": job.dataset,
        "pictures": 6,
        "step": STEPS,
        "seed": 3,
        "code": __version__,
        "request": request,
    }
    assert version.description == ""


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_training_that_is_killed_again_and_again_publishes_the_same_file_once(shop, whole, seed):
    job_id, chance, deaths = shop.new(next(names)), random.Random(seed), 0
    # The first death may come before there is anything to go on from, each later one after a step that was new.
    beyond = -1
    while next_death(shop, job_id, shop.begin(job_id), chance, beyond):
        deaths, beyond = deaths + 1, max(beyond, shop.table.get(job_id).step)
        shop.mourn()
        if deaths == 3:
            shop.finish(job_id)
            break
    job = shop.table.get(job_id)
    assert (job.state, job.attempts) == ("succeeded", deaths + 1)
    assert deaths > 0
    assert shop.published(job) == whole
    assert shop.logs(job_id).count("the process was lost") == deaths


def test_sigterm_leaves_a_checkpoint_behind_from_which_another_process_goes_on(shop, whole, tmp_path):
    job_id = shop.new(next(names))
    # Step 3 is no step at which a checkpoint was due.
    trainer = shop.begin(job_id, Trap("loss.png 3", f"wait {tmp_path / 'go'}"))
    until((tmp_path / "go.waits").exists, SECONDS, "step 3")
    os.kill(trainer.pid, signal.SIGTERM)
    (tmp_path / "go").touch()
    assert trainer.ended() == worker.LEFT
    left = shop.table.get(job_id)
    assert (left.state, left.stage, left.problem) == ("queued", "waiting", None)
    assert shop.kept(job_id)[STATE] == 3
    assert shop.published(shop.finish(job_id)) == whole
    assert shop.logs(job_id) == ["goes on from step 3"]


@pytest.mark.parametrize("moment", [f"{STATE} {2 * EVERY}", "publishing"])
def test_a_process_that_stood_still_past_its_lease_changes_nothing_any_more(shop, whole, tmp_path, moment):
    job_id = shop.new(next(names))
    stale = shop.begin(job_id, Trap(moment, f"wait {tmp_path / 'go'}"), lease_seconds=SHORT_LEASE_SECONDS)
    until((tmp_path / "go.waits").exists, SECONDS, "the moment")
    shop.hold_still(stale)
    until(lambda: [job.id for job in shop.table.abandoned()] == [job_id], SECONDS, "the end of the lease")
    job = shop.finish(job_id)
    events, versions = shop.events(job_id), shop.versions(job.name)
    (tmp_path / "go").touch()
    os.kill(stale.pid, signal.SIGCONT)
    assert stale.ended() == worker.LOST
    assert shop.table.get(job_id) == job
    assert shop.events(job_id) == events
    assert shop.versions(job.name) == versions
    assert shop.published(job) == whole


def test_a_process_that_stood_still_while_it_published_moves_no_alias(shop, whole):
    job_id = shop.new(next(names), alias="good")
    stale = shop.begin(
        job_id, Trap("publishing", "publish.after_blob=stop"), lease_seconds=SHORT_LEASE_SECONDS
    )
    until(lambda: [job.id for job in shop.table.abandoned()] == [job_id], SECONDS, "the end of the lease")
    job = shop.finish(job_id)
    with shop.registry() as registry:
        other = registry.publish(job.name, io.BytesIO(lora_file()))
        registry.set_alias(job.name, "good", other.number)
    events = shop.events(job_id)
    os.kill(stale.pid, signal.SIGCONT)
    assert stale.ended() == worker.LOST
    assert shop.table.get(job_id) == job
    assert shop.events(job_id) == events
    with shop.registry() as registry:
        assert registry.resolve(f"{job.name}:good").ref == other.ref
        assert [version.ref for version in registry.versions(job.name).items] == [other.ref, job.lora]


def test_a_job_for_which_others_have_left_no_room_fails_before_it_begins(shop, monkeypatch):
    job_id = shop.new(next(names))
    claim = shop.table.claim(job_id, holder="this test", lease_seconds=60)
    settings = Settings(model="pocket", data=shop.data, threads=torch.get_num_threads())
    monkeypatch.setattr(trainer, "free_bytes", lambda device: 1 << 20)
    with pytest.raises(TrainingTooLarge, match=r"needs about 0\.\d GiB of 0\.0 GiB: .*`resolution`"):
        trainer.trained(settings, Datasets(shop.database, shop.table._files), claim, worker.Stop())
    assert shop.kept(job_id) == {}
    claim.release()
    assert shop.finish(job_id).state == "succeeded"


def test_a_job_that_is_cancelled_makes_no_further_step_and_a_retry_goes_on(shop, whole, tmp_path):
    job_id = shop.new(next(names))
    trainer = shop.begin(job_id, Trap("loss.png 3", f"wait {tmp_path / 'go'}"))
    until((tmp_path / "go.waits").exists, SECONDS, "step 3")
    assert shop.table.cancel(job_id).state == "running"
    # It cannot be seen from here that the process has heard of it; its lease is extended every 20 seconds only.
    threading.Event().wait(10 * worker.WATCH_SECONDS)
    (tmp_path / "go").touch()
    assert trainer.ended() == worker.DONE
    cancelled = shop.table.get(job_id)
    assert (cancelled.state, cancelled.problem, cancelled.lora) == ("cancelled", None, None)
    assert shop.kept(job_id)[STATE] == 3
    assert shop.versions(cancelled.name) == []
    shop.table.retry(job_id)
    assert shop.published(shop.finish(job_id)) == whole
    assert shop.logs(job_id) == ["the job's end was asked for", "goes on from step 3"]


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param("publish.after_blob", marks=pytest.mark.slow),
        pytest.param("catalog.commit", marks=pytest.mark.slow),
        "job.after_success",
    ],
)
def test_a_death_while_publishing_makes_one_version_and_one_success(shop, whole, moment):
    job_id = shop.new(next(names))
    trainer = shop.begin(job_id, Trap("publishing", f"{moment}=kill"))
    assert trainer.ended() == -signal.SIGKILL
    assert shop.table.get(job_id).state == "running"
    shop.mourn()
    job = shop.finish(job_id)
    assert shop.published(job) == whole
    assert shop.logs(job_id) == ["the process was lost", f"goes on from step {STEPS}"]


@pytest.mark.parametrize(
    "moment", [f"checkpoints/{2 * EVERY:06d}.safetensors {2 * EVERY}", f"{STATE} {2 * EVERY}"]
)
def test_a_disk_that_is_full_at_a_checkpoint_fails_the_job_and_spoils_nothing(shop, whole, moment):
    job_id = shop.new(next(names))
    assert shop.begin(job_id, Trap(moment, "blob.rename=full")).ended() == worker.FAILED
    failed = shop.table.get(job_id)
    assert (failed.state, failed.problem.code) == ("failed", "storage_full")
    assert "disk" in failed.problem.detail or "full" in failed.problem.detail
    kept = shop.kept(job_id)
    assert (kept[STATE], kept[f"checkpoints/{EVERY:06d}.safetensors"]) == (EVERY, EVERY)
    shop.table.retry(job_id)
    assert shop.published(shop.finish(job_id)) == whole
    assert f"goes on from step {EVERY}" in shop.logs(job_id)


def test_a_loss_that_is_no_number_ends_the_job_with_advice_and_keeps_sound_checkpoints(shop):
    far_too_fast = {"learning_rate": 10.0, "lr_scheduler": "constant", "targets": "all-linear"}
    job_id = shop.new(next(names), checkpoint_every=1, **far_too_fast)
    assert shop.begin(job_id).ended() == worker.FAILED
    failed = shop.table.get(job_id)
    assert (failed.state, failed.problem.code, failed.lora) == ("failed", "training_diverged", None)
    assert "learning rate" in failed.problem.detail
    assert shop.versions(failed.name) == []
    kept = [name for name in shop.kept(job_id) if name.endswith(".safetensors")]
    assert len(kept) >= 2
    for name in kept:
        with shop.table.open(job_id, name)[1] as file:
            assert all(tensor.isfinite().all() for tensor in load(file.read()).values()), name
