"""Train jobs as everyone sees them: made, listed, cancelled and claimed.

States: queued → running → succeeded, failed or cancelled; a retry leads from the last two back to queued, and so does
the end of a process that left or died. Any number of processes on any number of machines may use one table.
"""

import builtins
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any, BinaryIO, Final

from sqlalchemy import select

from darkroom.types import (
    JobEvent,
    JobState,
    Problem,
    TrainArtifact,
    TrainJob,
    TrainJobPage,
    TrainRequest,
)
from lora_registry.blobs import Blobs
from lora_registry.database import Database
from lora_registry.errors import BlobMissing
from lora_registry.faults import point
from lora_registry.incoming import abandoned as abandoned_files
from lora_registry.incoming import storage_errors
from lora_registry.records import GcReport
from service.jobs import process_logs
from service.jobs.changes import ENDED, JobChange
from service.jobs.claims import Claim
from service.jobs.errors import ArtifactNotFound, JobNotFound, JobNotRetryable, NotClaimable
from service.jobs.keeping import keep, kept
from service.jobs.rows import artifact_from, event_from, get_job, jobs_from
from service.store.changes import events_after
from service.store.cursors import page
from service.store.files import begin_collection, put_bytes
from service.store.keys import insert_once, row_made_with
from service.store.schema import artifacts, jobs

FRUITLESS_ATTEMPTS: Final = 3
"""So many deaths in a row without a new step are not bad luck."""
GRACE_SECONDS: Final = 86400.0
"""Longer than any upload or synthesis takes: its pictures are nobody's until the last one is there."""
COLLECTED_AT_ONCE: Final = 64


@dataclass(frozen=True)
class HeldJob:
    """A running job and who holds it."""

    id: str
    holder: str
    fence: int
    has_expired: bool
    cancel_requested: bool


class JobTable:
    """The only way to train jobs. `clock` is seconds since the epoch."""

    def __init__(self, database: Database, files: Blobs, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._files, self._clock = database, files, clock

    # For callers

    def create(
        self, request: TrainRequest, *, max_train_steps: int, key: str = "", fingerprint: str = ""
    ) -> tuple[TrainJob, bool]:
        """A new job, or the one that was made with this idempotency key (True) out of the same body.

        Raises:
            KeyReused: the key came with another body before.
        """
        now = self._now_ms()
        values = _fresh_row(request, max_train_steps, now)
        with self._database.write() as connection:
            row, replayed = insert_once(connection, jobs, values, key=key, fingerprint=fingerprint)
            if not replayed:
                change = JobChange(connection, row, now)
                change.event("state", state="queued")
                change.write()
            return jobs_from(connection, [row])[0], replayed

    def made_with(self, key: str, fingerprint: str) -> TrainJob | None:
        """The job that this idempotency key made out of the same body, if there is one. Raises KeyReused."""
        with self._database.read() as connection:
            row = row_made_with(connection, jobs, key, fingerprint)
            return None if row is None else jobs_from(connection, [row])[0]

    def get(self, job_id: str) -> TrainJob:
        """The job as it stands, with its files.

        Raises:
            JobNotFound
        """
        return get_job(self._database, job_id)

    def list(self, *, state: JobState | None = None, limit: int = 50, cursor: str = "") -> TrainJobPage:
        """Jobs in that state, or all; the newest first.

        Raises:
            InvalidCursor
        """
        statement = select(jobs)
        if state is not None:
            statement = statement.where(jobs.c.state == state)
        with self._database.read() as connection:
            rows, next_cursor = page(
                connection, statement, jobs.c.created_ms, jobs.c.id, limit=limit, cursor=cursor
            )
            return TrainJobPage(items=jobs_from(connection, rows), next_cursor=next_cursor)

    def cancel(self, job_id: str) -> TrainJob:
        """End it: at once where it waits, at its next step where it runs. One that has ended stays as it is.

        Raises:
            JobNotFound
        """
        with self._changing(job_id) as change:
            if change.row.state == "queued":
                change.state("cancelled")
            elif change.row.state == "running" and not change.row.cancel_requested:
                change.set(cancel_requested=True)
                change.event("log", step=change.row.step, message="the job's end was asked for")
        return self.get(job_id)

    def retry(self, job_id: str) -> TrainJob:
        """Let a job that failed or was cancelled wait again; it goes on at its newest checkpoint.

        Raises:
            JobNotFound
            JobNotRetryable: it is in another state.
        """
        with self._changing(job_id) as change:
            if change.row.state not in ("failed", "cancelled"):
                raise JobNotRetryable(job_id, change.row.state)
            change.set(problem=None, cancel_requested=False, fruitless=0)
            change.state("queued")
        return self.get(job_id)

    def events(self, job_id: str, *, after: int = 0, limit: int = 500) -> builtins.list[JobEvent]:
        """Events with a higher number than `after`, in order. Empty also for a job that is not there."""
        with self._database.read() as connection:
            rows = events_after(connection, JobChange.teller, job_id, after=after, limit=limit)
        return [event_from(row) for row in rows]

    def open(self, job_id: str, name: str) -> tuple[TrainArtifact, BinaryIO]:
        """One of the job's files; closing it is the caller's.

        Raises:
            JobNotFound, ArtifactNotFound
            BlobMissing, StorageUnavailable
        """
        statement = select(artifacts).where(artifacts.c.job_id == job_id, artifacts.c.name == name)
        with self._database.read() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            self.get(job_id)
            raise ArtifactNotFound(job_id, name)
        found = artifact_from(row)
        return found, self._files.open(found.digest)

    # For those who do the work

    def claim(
        self, job_id: str, *, holder: str, lease_seconds: float, patience_seconds: float = 0.0
    ) -> Claim:
        """Take a job that waits, or whose holder's lease has run out; nobody else's writes count from then on.

        Raises:
            JobNotFound
            NotClaimable
        """
        with self._changing(job_id) as change:
            row = change.row
            if row.state in ENDED:
                raise NotClaimable(
                    job_id, f"it has {row.state}" if row.state != "cancelled" else "it is cancelled"
                )
            if row.state == "running" and row.lease_until_ms > change.now_ms:
                raise NotClaimable(job_id, "another process works on it")
            change.set(
                fence=row.fence + 1,
                attempts=row.attempts + 1,
                holder=holder,
                lease_until_ms=change.now_ms + int(lease_seconds * 1000),
                started_ms=row.started_ms if row.started_ms is not None else change.now_ms,
                furthest=max(row.furthest, row.step),
            )
            change.state("running")
        return Claim(
            self._database,
            self._files,
            self.get(job_id),
            row.fence + 1,
            lease_seconds=lease_seconds,
            patience_seconds=patience_seconds,
            clock=self._clock,
        )

    def waiting(self) -> builtins.list[TrainJob]:
        """Queued jobs, the oldest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(jobs).where(jobs.c.state == "queued").order_by(jobs.c.created_ms, jobs.c.id)
            )
            return jobs_from(connection, rows)

    def held(self) -> builtins.list[HeldJob]:
        """Running jobs, the oldest first."""
        now = self._now_ms()
        statement = select(jobs).where(jobs.c.state == "running").order_by(jobs.c.created_ms, jobs.c.id)
        with self._database.read() as connection:
            return [
                HeldJob(row.id, row.holder, row.fence, row.lease_until_ms <= now, row.cancel_requested)
                for row in connection.execute(statement)
            ]

    def abandoned(self) -> builtins.list[HeldJob]:
        """Running jobs whose holder has not been heard of for a lease."""
        return [job for job in self.held() if job.has_expired]

    def fence(self, job_id: str) -> int:
        """How often the job was claimed. Raises JobNotFound."""
        with self._database.read() as connection:
            found = connection.execute(select(jobs.c.fence).where(jobs.c.id == job_id)).scalar()
        if found is None:
            raise JobNotFound(job_id)
        return int(found)

    def died(self, job_id: str, fence: int, message: str) -> None:
        """The process that had this claim is gone: the job waits again, or has failed where that leads nowhere.

        Nothing happens to a job that is out of its hands already.
        """
        with self._changing(job_id) as change:
            row = change.row
            if row.fence == fence and row.state == "running":
                self._count_death(change, has_got_on=row.step > row.furthest, message=message)

    def never_began(self, job_id: str, fence: int, message: str) -> None:
        """A process was started to make the next claim after this one, and ended without it; as with `died`."""
        with self._changing(job_id) as change:
            if change.row.fence == fence and change.row.state == "queued":
                self._count_death(change, has_got_on=False, message=message)

    def keep_log(self, job_id: str, written: bytes) -> None:
        """Add to the job's `log.txt` what its processes have written on a machine, now that they are gone.

        No claim is asked for: a log says nothing of how the job stands, and those who could have written it themselves
        have ended. What was added already is not added again.

        Raises:
            JobNotFound
            StorageFull, StorageUnavailable: it is as it was before.
        """
        if not written:
            return
        with self._changing(job_id) as change:
            try:
                before = kept(change.connection, self._files, job_id, process_logs.ARTIFACT) or b""
            except BlobMissing:
                before = b""
            text = process_logs.joined(before, process_logs.readable(written))
            if text == before:
                return
            digest, media_type = put_bytes(self._files, text), process_logs.MEDIA_TYPE
            keep(change, self._files, process_logs.ARTIFACT, text, digest, media_type, step=change.row.step)

    def _count_death(self, change: JobChange, *, has_got_on: bool, message: str) -> None:
        fruitless = 0 if has_got_on else change.row.fruitless + 1
        change.set(fruitless=fruitless)
        change.event("log", step=change.row.step, message=message)
        if fruitless >= FRUITLESS_ATTEMPTS:
            change.fail(_PROCESS_DIED)
        elif change.row.state == "running":
            change.end("queued")

    # Housekeeping

    def gc(
        self, *, grace_seconds: float = GRACE_SECONDS, also: Callable[[], Iterable[str]] = lambda: ()
    ) -> GcReport:
        """Remove blobs older than the grace period that no job names, and files whose writers died.

        `also` gives the digests that others need; it is called while nobody can record a new one.
        """
        before = self._clock() - grace_seconds
        removed = size_bytes = temp_files = 0
        old = iter([blob for blob in self._files.stored() if blob.modified_seconds <= before])
        while some := tuple(islice(old, COLLECTED_AT_ONCE)):
            with self._database.write() as connection:
                begin_collection(connection)
                needed = {
                    f"sha256:{name}" for name in connection.execute(select(artifacts.c.digest)).scalars()
                }
                needed.update(also())
                for blob in some:
                    if blob.digest not in needed:
                        self._files.delete(blob.digest)
                        removed, size_bytes = removed + 1, size_bytes + blob.size_bytes
        with storage_errors():
            for path in abandoned_files(self._files.staging, grace_seconds):
                point("gc.temp_file")
                path.unlink(missing_ok=True)
                temp_files += 1
        return GcReport(removed, size_bytes, temp_files)

    def _changing(self, job_id: str) -> AbstractContextManager[JobChange]:
        return JobChange.of(self._database, job_id, self._now_ms())

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


_PROCESS_DIED: Final = Problem(
    title="The training process died",
    status=500,
    detail=f"the job's process died {FRUITLESS_ATTEMPTS} times in a row without a new step, most likely for want of "
    "memory; ask for less (`train_batch_size`, `resolution`, `gradient_checkpointing`), or look into the job's file "
    "`log.txt`, and retry the job",
    code="process_died",
)


def _fresh_row(request: TrainRequest, max_train_steps: int, now_ms: int) -> dict[str, Any]:
    return {
        "id": f"job-{secrets.token_hex(10)}",
        "kind": request.kind,
        "name": request.name,
        "state": "queued",
        "stage": "waiting",
        "request": request.model_dump_json(),
        "dataset": request.dataset,
        "step": 0,
        "max_train_steps": max_train_steps,
        "attempts": 0,
        "fruitless": 0,
        "furthest": 0,
        "cancel_requested": False,
        "fence": 0,
        "lease_until_ms": 0,
        "holder": "",
        "next_event": 1,
        "created_ms": now_ms,
    }
