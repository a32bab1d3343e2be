"""Train jobs worked on by real processes, which a test may kill, stop and trip up.

A process is forked off one that has imported everything (multiprocessing's fork server), and runs the main of
`python -m service.training JOB`: the same, but there in a moment instead of in ten seconds.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any, Final

# What a training imports late is imported here, where the fork server does it once for all.
import accelerate  # noqa: F401
import peft  # noqa: F401
import psutil
import pytest
from diffusers import StableDiffusionXLPipeline  # noqa: F401

import service.training.trainer  # noqa: F401
import trainings
from darkroom.types import Dataset, JobEvent, TrainJob
from examples.training import hearts
from lora_registry import LoraVersion, Registry, faults
from processes import ROOT, environment, until
from service.datasets.datasets import Datasets
from service.jobs import worker
from service.jobs.claims import Claim
from service.jobs.launcher import LocalLauncher
from service.jobs.table import JobTable
from service.settings import Settings
from service.store import database, files
from service.training import __main__ as main
from service.training.recipes import filled_in
from service.wiring import connect_registry

SECONDS: Final = 120.0
LEASE_SECONDS: Final = 60.0
STEPS: Final = 12
EVERY: Final = 4
RECIPE: Final[dict[str, Any]] = {
    "max_train_steps": STEPS,
    "checkpoint_every": EVERY,
    "sample_prompts": (),
    "lr_scheduler": "cosine",
    # All that a step draws at random or remembers, so that a training which goes on wrongly is seen in its weights.
    "random_flip": True,
    "caption_dropout": 0.3,
    "noise_offset": 0.05,
    "ema_decay": 0.9,
    "seed": 3,
}


@dataclass(frozen=True)
class Trap:
    """What befalls a process where it is about to write `moment`: `training` (a stage), `state.safetensors 8`.

    `deed` is a fault that is in force from then on (`blob.rename=full`), or `wait FILE`: until that file is
    there (and `FILE.waits` says that it waits).
    """

    moment: str
    deed: str

    def set(self) -> None:
        """From now on, in this process."""
        tell_stage, put = Claim.stage, Claim.put

        def stage(claim: Claim, name: Any) -> None:
            tell_stage(claim, name)
            self._spring(name)

        def put_file(claim: Claim, name: str, data: bytes, media_type: str, *, step: int = 0) -> None:
            self._spring(f"{name} {step}")
            put(claim, name, data, media_type, step=step)

        Claim.stage, Claim.put = stage, put_file

    def _spring(self, moment: str) -> None:
        if moment != self.moment:
            return
        what, _, file = self.deed.partition(" ")
        if what != "wait":
            faults.load(self.deed)
            return
        Path(f"{file}.waits").touch()
        while not Path(file).exists():
            time.sleep(0.01)


def process(
    job_id: str, variables: dict[str, str], log: Path, lease_seconds: float, trap: Trap | None
) -> None:
    """A train process, after its fork."""
    with log.open("ab") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    os.environ.clear()
    os.environ.update(variables)
    sys.argv = ["service.training", job_id]
    if trap is not None:
        trap.set()
    main.run = partial(worker.run, lease_seconds=lease_seconds)
    sys.exit(main.main())


@dataclass
class Trainer:
    """The test's end of a train process."""

    process: ForkServerProcess
    log: Path

    @property
    def pid(self) -> int:
        assert self.process.pid is not None
        return self.process.pid

    def ended(self) -> int:
        """The exit code, waited for; that of a signal is negative."""
        self.process.join(SECONDS)
        assert self.process.exitcode is not None, self.log.read_text()
        return self.process.exitcode


@dataclass
class Workshop:
    """A data folder with a dataset of hearts, and all that is done with its jobs."""

    data: Path
    table: JobTable
    database: database.Database
    dataset: Dataset
    begun: list[Trainer] = field(default_factory=list)

    def new(self, name: str, *, alias: str | None = None, **recipe: Any) -> str:
        """The id of a new job, which is as any other but for its name and these options."""
        request = trainings.a_request(
            name=name, dataset=self.dataset.id, evaluate=False, alias=alias, recipe=RECIPE | recipe
        )
        full = filled_in(request, trainings.POCKET)
        return self.table.create(full, max_train_steps=full.recipe.max_train_steps or 0)[0].id

    def begin(
        self, job_id: str, trap: Trap | None = None, *, lease_seconds: float = LEASE_SECONDS
    ) -> Trainer:
        """A process that works on the job; it may not have claimed it yet."""
        log = self.data / f"{job_id}.log"
        log.touch()
        variables = environment(data=str(self.data), model="pocket", threads="1")
        begun = multiprocessing.get_context("forkserver").Process(
            target=process, args=(job_id, variables, log, lease_seconds, trap), daemon=True
        )
        begun.start()
        self.begun.append(Trainer(begun, log))
        return self.begun[-1]

    def finish(self, job_id: str) -> TrainJob:
        """The job after a process has worked on it undisturbed, which has succeeded."""
        trainer = self.begin(job_id)
        assert trainer.ended() == worker.DONE, trainer.log.read_text()
        job = self.table.get(job_id)
        assert (job.state, job.problem, job.step) == ("succeeded", None, job.max_train_steps)
        return job

    def mourn(self) -> None:
        """Have a launcher find the dead, and start nothing."""
        LocalLauncher(self.table, self.data / "jobs", lambda _: (), max_running=0).look()

    def hold_still(self, trainer: Trainer) -> None:
        """SIGSTOP, while it is in no transaction: on SQLite nobody else could write until it goes on."""
        with self.database.write():
            os.kill(trainer.pid, signal.SIGSTOP)
            stopped = psutil.Process(trainer.pid)
            until(lambda: stopped.status() == psutil.STATUS_STOPPED, SECONDS, "the standstill")

    def events(self, job_id: str) -> list[JobEvent]:
        """All of them. They are counted through, and the job succeeded once at most."""
        events = self.table.events(job_id)
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert [event.state for event in events].count("succeeded") <= 1
        return events

    def logs(self, job_id: str) -> list[str]:
        """What it has told people."""
        return [event.message or "" for event in self.events(job_id) if event.type == "log"]

    def kept(self, job_id: str) -> dict[str, int]:
        """The job's files by name, each with the step that it is of."""
        return {artifact.name: artifact.step for artifact in self.table.get(job_id).artifacts}

    def versions(self, name: str) -> list[LoraVersion]:
        """All that were published under the name, none where it is not there."""
        with self.registry() as registry:
            names = {found.name for found in registry.list().items}
            return list(registry.versions(name).items) if name in names else []

    def published(self, job: TrainJob) -> bytes:
        """The bytes of the only version that the job has published."""
        (version,) = self.versions(job.name)
        assert (version.ref, version.digest) == (job.lora, job.digest)
        with self.registry() as registry, registry.open(version.digest) as file:
            return file.read()

    def registry(self) -> Registry:
        """The registry, for someone who closes it."""
        return connect_registry(Settings(model="pocket", data=self.data))


@contextmanager
def workshop(data: Path) -> Iterator[Workshop]:
    """A workshop in this folder, and the fork server; none of its processes is left at the end."""
    with pytest.MonkeyPatch.context() as patch:
        # The fork server has our environment, and would not find this module by `sys.path`.
        patch.setenv("PYTHONPATH", os.pathsep.join((environment()["PYTHONPATH"], str(ROOT / "tests"))))
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        forkserver.ensure_running()
    try:
        with a_workshop(data) as made:
            yield made
    finally:
        forkserver._forkserver._stop()


@contextmanager
def a_workshop(folder: Path) -> Iterator[Workshop]:
    """One in this folder, whose processes come from the fork server that is there already."""
    connected, store = database.connect(database.location("", folder)), files.files("", folder)
    dataset = Datasets(connected, store).add_pictures(hearts(6))
    made = Workshop(folder, JobTable(connected, store), connected, dataset)
    try:
        yield made
    finally:
        for trainer in made.begun:
            trainer.process.kill()
            trainer.process.join()
        connected.close()
