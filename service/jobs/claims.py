"""A job in the hands of one process: every write is refused once another one has it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, TypeVar

from sqlalchemy import select

from darkroom.types import JobStage, Problem, TrainJob
from lora_registry.blobs import Blobs
from lora_registry.database import Database
from lora_registry.errors import CatalogUnavailable
from lora_registry.faults import point
from lora_registry.incoming import storage_errors
from service.jobs.changes import JobChange
from service.jobs.keeping import keep, kept, let_go
from service.jobs.rows import finite, get_job
from service.store.errors import LeaseLost
from service.store.files import put_bytes
from service.store.schema import jobs

T = TypeVar("T")

MAX_LOG_CHARACTERS: Final = 4000
FIRST_PAUSE_SECONDS: Final = 0.1
LONGEST_PAUSE_SECONDS: Final = 5.0


class Claim:
    """Made by `JobTable.claim`. `job` is as it was then, `fence` the number that no other claim of it has.

    Every write is one transaction. It raises LeaseLost, and changes nothing, where the job was claimed by another
    process since or has ended. A database that is away is tried again for `patience_seconds`. Safe to use from
    several threads.
    """

    def __init__(
        self,
        database: Database,
        files: Blobs,
        job: TrainJob,
        fence: int,
        *,
        lease_seconds: float,
        patience_seconds: float = 0.0,
        clock: Callable[[], float],
    ) -> None:
        self._database, self._files, self._clock = database, files, clock
        self.job, self.fence = job, fence
        self.lease_seconds, self._patience_seconds = lease_seconds, patience_seconds

    def heartbeat(self) -> bool:
        """Extend the lease; True where an end of the job was asked for. Does not wait for a database that is away."""
        with self._changing() as change:
            change.set(lease_until_ms=change.now_ms + int(self.lease_seconds * 1000))
        return bool(change.row.cancel_requested)

    def end_requested(self) -> bool:
        """Whether an end of the job was asked for. It reads and does not wait, and takes no notice of other claims."""
        with self._database.read() as connection:
            wanted = select(jobs.c.cancel_requested).where(jobs.c.id == self.job.id)
            return bool(connection.execute(wanted).scalar())

    def check(self) -> None:
        """Raise LeaseLost where another process has the job by now. It does not wait for a database that is away."""
        with self._database.read() as connection:
            fence = connection.execute(select(jobs.c.fence).where(jobs.c.id == self.job.id)).scalar()
        if fence != self.fence:
            raise LeaseLost(self.job.id)

    def stage(self, stage: JobStage) -> None:
        self._write(lambda change: change.stage(stage))

    def progress(
        self,
        *,
        step: int,
        loss: float | None = None,
        learning_rate: float | None = None,
        steps_per_second: float | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Tell how far it is: optimiser steps done, and means since the last report."""
        numbers = {
            "loss": finite(loss),
            "learning_rate": finite(learning_rate),
            "steps_per_second": finite(steps_per_second),
            "eta_seconds": finite(eta_seconds),
        }

        def write(change: JobChange) -> None:
            change.set(step=step, **numbers)
            change.event("progress", step=step, **numbers)

        self._write(write)

    def log(self, message: str) -> None:
        """Tell people something; `message` has no paths and no stack."""
        text = message[:MAX_LOG_CHARACTERS]
        self._write(lambda change: change.event("log", step=change.row.step, message=text))

    def put(self, name: str, data: bytes, media_type: str, *, step: int = 0) -> None:
        """Keep a file with the job, in the place of one that has its name. A file of a step shows that it was made.

        Raises:
            StorageFull, StorageUnavailable: it is as it was before.
        """
        digest = put_bytes(self._files, data)
        with storage_errors():
            point("job.after_blob")

        def write(change: JobChange) -> None:
            keep(change, self._files, name, data, digest, media_type, step=step)

        self._write(write)

    def drop(self, name: str) -> None:
        """Let a file go; nothing where there is none of that name."""
        self._write(lambda change: let_go(change, name))

    def read(self, name: str) -> bytes | None:
        """The bytes of one of the job's files; None where it has none of that name."""
        with self._database.read() as connection:
            return kept(connection, self._files, self.job.id, name)

    def dataset_made(self, dataset_id: str) -> None:
        """Record what it learns from, once that is known."""
        self._write(lambda change: change.set(dataset=dataset_id))
        self.job = self.job.model_copy(update={"dataset": dataset_id})

    def succeeded(self, ref: str, digest: str) -> TrainJob:
        """Record what was published. A job cancelled meanwhile stays cancelled and keeps its LoRA."""

        def write(change: JobChange) -> None:
            point("job.before_success")
            change.set(lora=ref, digest=digest, problem=None)
            if change.row.state == "running":
                change.stage("done")
                change.end("succeeded")
            point("job.after_success")

        self._write(write, or_cancelled=True)
        return self._now()

    def failed(self, problem: Problem) -> TrainJob:
        self._write(lambda change: change.fail(problem))
        return self._now()

    def cancelled(self) -> TrainJob:
        self._write(lambda change: change.state("cancelled"))
        return self._now()

    def release(self) -> None:
        """Leave: the job waits again, and keeps its files. Where its end was asked for it is cancelled instead."""
        self._write(lambda change: change.end("queued"))

    def _write(self, write: Callable[[JobChange], object], *, or_cancelled: bool = False) -> None:
        def attempt() -> None:
            with self._changing(or_cancelled=or_cancelled) as change:
                write(change)

        _insistently(attempt, self._patience_seconds)

    def _now(self) -> TrainJob:
        return _insistently(lambda: get_job(self._database, self.job.id), self._patience_seconds)

    @contextmanager
    def _changing(self, *, or_cancelled: bool = False) -> Iterator[JobChange]:
        with JobChange.of(self._database, self.job.id, int(self._clock() * 1000)) as change:
            states = ("running", "cancelled") if or_cancelled else ("running",)
            if change.row.fence != self.fence or change.row.state not in states:
                raise LeaseLost(self.job.id)
            yield change


def _insistently(attempt: Callable[[], T], patience_seconds: float) -> T:
    give_up = time.monotonic() + patience_seconds
    pause_seconds = FIRST_PAUSE_SECONDS
    while True:
        try:
            return attempt()
        except CatalogUnavailable:
            if time.monotonic() + pause_seconds > give_up:
                raise
        threading.Event().wait(pause_seconds)
        pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)
