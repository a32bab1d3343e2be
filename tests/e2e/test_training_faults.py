"""Train jobs whose processes are killed before the first step, whose database is PostgreSQL, whose disk is full."""

import hashlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import servers
import trainings
from darkroom.types import SynthesizeRequest
from examples.training import hearts
from in_process import GOOD, pixels, settle
from lora_registry.errors import CatalogFull
from processes import environment, until
from service import wiring
from service.datasets.datasets import Datasets
from service.jobs.errors import ArtifactNotFound
from service.jobs.launcher import LocalLauncher
from service.jobs.process_logs import note
from service.jobs.processes import Holder
from service.jobs.table import JobTable
from service.settings import Settings
from service.store import database, files
from service.training.recipes import filled_in
from training_jobs import RECIPE, SECONDS, Trap, Workshop, a_workshop, workshop

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MIB = 2**20
BAD_PICTURES: dict[str, Any] = {
    "synthesis": SynthesizeRequest(
        recipe="wrong",
        prompts=("(blurry)++ circle", "noisy star", "a cropped square", "a (smeared)++ ring"),
        guidance_scales=(4.0, 7.0),
        images_per_prompt=4,
    )
}
CLASS_PICTURES: dict[str, Any] = {
    "class_prompt": "a circle|a square|a star",
    "recipe": {"num_class_images": 32, "repeats": 1},
}


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="train-", dir=where) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def shop(data) -> Iterator[Workshop]:
    with workshop(data) as shop:
        yield shop


def new(table: JobTable, kind: str, name: str, *, recipe: dict[str, Any] | None = None, **fields: Any) -> str:
    """The id of a new job of a few steps."""
    request = trainings.a_request(kind, name=name, evaluate=False, recipe=RECIPE | (recipe or {}), **fields)
    full = filled_in(request, trainings.POCKET)
    return table.create(full, max_train_steps=full.recipe.max_train_steps or 0)[0].id


def killed_while_drawing(shop: Workshop, job_id: str, message: str) -> None:
    """SIGKILL a moment after it has said that it makes pictures, and before it has kept any."""
    trainer = shop.begin(job_id)
    until(lambda: any(message in log for log in shop.logs(job_id)), SECONDS, message)
    threading.Event().wait(0.3)
    trainer.process.kill()
    assert trainer.ended() == -signal.SIGKILL
    job = shop.table.get(job_id)
    assert (job.state, job.stage, job.step, job.artifacts) == ("running", "preparing", 0, [])


def killed_while_keeping(shop: Workshop, job_id: str, moment: str) -> None:
    """SIGKILL as the pictures are written down."""
    assert shop.begin(job_id, Trap("preparing", f"{moment}=kill")).ended() == -signal.SIGKILL
    job = shop.table.get(job_id)
    assert (job.state, job.stage, job.step, job.artifacts) == ("running", "preparing", 0, [])
    shop.mourn()


def test_a_negative_job_that_is_killed_over_its_bad_pictures_learns_from_the_same_ones(shop):
    job_id = new(shop.table, "negative", "wrong", **BAD_PICTURES)
    killed_while_drawing(shop, job_id, "making 32 pictures to learn from")
    shop.mourn()
    assert shop.table.get(job_id).dataset is None
    killed_while_keeping(shop, job_id, "blob.fsync_folder")  # one picture is in its place, the others are not
    library = Datasets(shop.database, files.files("", shop.data))
    assert [made.id for made in library.list().items] == [shop.dataset.id]
    job = shop.finish(job_id)
    assert job.dataset is not None
    assert (job.attempts, len(library.get(job.dataset).pictures)) == (3, 32)
    library.delete(job.dataset)  # or it would be found again, and nothing would be made
    undisturbed = shop.finish(new(shop.table, "negative", "wrong-again", **BAD_PICTURES))
    assert undisturbed.dataset == job.dataset
    assert shop.published(job) == shop.published(undisturbed)


def test_a_subject_that_is_killed_over_its_class_pictures_learns_from_the_same_ones(shop):
    def a_subject(name: str) -> str:
        return new(shop.table, "subject", name, dataset=shop.dataset.id, **CLASS_PICTURES)

    job_id = a_subject("hearts")
    killed_while_drawing(shop, job_id, "making 32 pictures of the class")
    shop.mourn()
    killed_while_keeping(shop, job_id, "job.after_artifact")  # the file is there, its row not quite
    job = shop.finish(job_id)
    assert job.attempts == 3
    assert shop.published(job) == shop.published(shop.finish(a_subject("hearts-again")))


@contextmanager
def looking_after(table: JobTable, folder: Path, **settings: str) -> Iterator[None]:
    """A launcher of real processes, `python -m service.training`, with these settings."""
    launcher = LocalLauncher(
        table,
        folder / "jobs",
        lambda job_id: [sys.executable, "-m", "service.training", job_id],
        environment=environment(data=str(folder), model="pocket", threads="1", **settings),
        poll_seconds=0.1,
    )
    launcher.start()
    try:
        yield
    finally:
        launcher.stop(patience_seconds=SECONDS)


def killed_after(table: JobTable, job_id: str, step: int) -> None:
    until(lambda: table.get(job_id).step >= step, SECONDS, f"step {step}")
    (held,) = table.held()
    Holder.parse(held.holder).send(signal.SIGKILL)


def log_of(table: JobTable, job_id: str) -> str:
    """What its processes that have ended wrote."""
    try:
        with table.open(job_id, "log.txt")[1] as file:
            return file.read().decode()
    except ArtifactNotFound:
        return ""


def test_on_postgresql_a_killed_process_is_followed_by_one_that_publishes_what_sqlite_would(shop, tmp_path):
    with servers.postgres() as server:
        server.start()
        url = server.url("postgres")
        connected, store = database.connect(url), files.files("", tmp_path)
        table, dataset = JobTable(connected, store), Datasets(connected, store).add_pictures(hearts(6))
        recipe = {"max_train_steps": 40, "checkpoint_every": 5}
        job_id = new(table, "subject", "hearts", dataset=dataset.id, recipe=recipe)
        with looking_after(table, tmp_path, database=url):
            killed_after(table, job_id, 6)
            until(
                lambda: " ended: exit code 0, " in log_of(table, job_id), SECONDS, "its end, by its own log"
            )
        job = table.get(job_id)
        assert (job.state, job.problem, job.step, job.attempts) == ("succeeded", None, 40, 2)
        messages = [event.message or "" for event in table.events(job_id) if event.type == "log"]
        assert messages[0] == "the process was lost"
        assert messages[1].startswith("goes on from step ")
        log = log_of(table, job_id)
        assert log.count("--- a process begins, ") == 2
        assert log.index(" ended: signal 9, ") < log.index(" ended: exit code 0, ")
        with wiring.connect_registry(Settings(model="pocket", data=tmp_path, database=url)) as registry:
            (version,) = registry.versions("hearts").items
            with registry.open(version.digest) as file:
                published = file.read()
        connected.close()
    assert (version.ref, version.digest) == (job.lora, job.digest)
    assert list(tmp_path.glob("*.sqlite3")) == []
    on_sqlite = shop.finish(new(shop.table, "subject", "by-sqlite", dataset=shop.dataset.id, recipe=recipe))
    assert shop.published(on_sqlite) == published


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own, with 16 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", f"size={16 * MIB}", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mounting, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here (root may, with the capability SYS_ADMIN)")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def are_whole(shop: Workshop, job_id: str) -> bool:
    """Whether each file that the job is said to have is there, with the bytes that were announced."""
    kept = shop.table.get(job_id).artifacts
    for artifact in kept:
        with shop.table.open(job_id, artifact.name)[1] as file:
            data = file.read()
        if f"sha256:{hashlib.sha256(data).hexdigest()}" != artifact.digest:
            return False
    return len(kept) > 1


def filled(folder: Path) -> Path:
    """A file that takes all the room that there is."""
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        for size_bytes in (MIB, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size_bytes)
            except OSError:
                continue
    return path


def is_begun(shop: Workshop, job_id: str) -> bool:
    """Whether a launcher has begun the job or given it up, after two looks at what waits."""
    launcher = LocalLauncher(shop.table, shop.data / "jobs", lambda _: [sys.executable, "-V"], max_running=2)
    launcher.look()
    launcher.look()
    return bool(launcher._children) or shop.table.get(job_id).state != "queued"


def test_a_disk_that_is_full_database_and_all_stops_the_job_and_nothing_else(shop, small_disk, tmp_path):
    components = wiring.build(Settings(_env_file=None, model="pocket", data=small_disk, training="off"))
    components.start()
    try:
        served = settle(components)
        with a_workshop(small_disk) as small:
            job_id = new(small.table, "subject", "hearts", dataset=small.dataset.id)
            waiting = new(small.table, "subject", "more-hearts", dataset=small.dataset.id)
            trainer = small.begin(job_id, Trap("state.safetensors 8", f"wait {tmp_path / 'go'}"))
            until((tmp_path / "go.waits").exists, SECONDS, "step 8")
            note(
                trainer.log, "from here on there is room for no more than what this line leaves of its block"
            )
            filler = filled(small_disk)
            (tmp_path / "go").touch()
            until(lambda: "storage is full" in trainer.log.read_text(), SECONDS, "the word that it is full")
            with pytest.raises(CatalogFull):
                new(small.table, "subject", "refused", dataset=small.dataset.id)
            assert not is_begun(small, waiting)
            assert pixels(served.caller().generate(**GOOD).image.data).std() > 10
            # It cannot be written down that it has failed. What it has kept until then is whole.
            assert small.table.get(job_id).state == "running"
            assert are_whole(small, job_id)
            assert small.versions("hearts") == []
            filler.unlink()
            assert trainer.ended() == 1
            failed = small.table.get(job_id)
            assert failed.problem is not None
            assert (failed.state, failed.problem.code) == ("failed", "storage_full")
            assert "make room and retry the job" in failed.problem.detail
            assert are_whole(small, job_id)
            small.table.retry(job_id)
            job = small.finish(job_id)
            assert "goes on from step 4" in small.logs(job_id)
            published = small.published(job)
            assert small.published(small.finish(waiting)) == published
    finally:
        components.close()
    roomy = shop.finish(new(shop.table, "subject", "roomy", dataset=shop.dataset.id))
    assert shop.published(roomy) == published
