"""One job's row, locked: what changes in it and the events that tell of it are written together or not at all."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import Connection, Row, insert, select, update

from darkroom.types import JobStage, JobState, Problem
from darkroom.types.train import JobEventType
from lora_registry.database import Database
from service.jobs.errors import JobNotFound
from service.store.schema import events, jobs

ENDED: Final[tuple[JobState, ...]] = ("succeeded", "failed", "cancelled")


class JobChange:
    """Collects what shall be different; `changing` writes it. `row` is as it was before."""

    def __init__(self, connection: Connection, row: Row[Any], now_ms: int) -> None:
        self.connection, self.row, self.now_ms = connection, row, now_ms
        self._values: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []

    def set(self, **values: Any) -> None:
        """Give columns new values."""
        self._values |= values

    def event(self, type: JobEventType, **data: Any) -> None:
        """Add an event with the next number; `data` are fields of a JobEvent, those that are None left out."""
        self._events.append(
            {
                "job_id": self.row.id,
                "id": self.row.next_event + len(self._events),
                "type": type,
                "at_ms": self.now_ms,
                "data": json.dumps({name: value for name, value in data.items() if value is not None}),
            }
        )

    def stage(self, stage: JobStage) -> None:
        """Move to a stage; nothing where it is there already."""
        if stage != self._values.get("stage", self.row.stage):
            self.set(stage=stage)
            self.event("stage", stage=stage, step=self.row.step)

    def state(self, state: JobState, message: str | None = None) -> None:
        """Move to a state, with what follows from it for the other columns."""
        if state in ENDED:
            self.set(finished_ms=self.now_ms, eta_seconds=None)
        if state == "queued":
            self.stage("waiting")
            self.set(finished_ms=None, eta_seconds=None, steps_per_second=None)
        self.set(state=state)
        self.event("state", state=state, step=self.row.step, message=message)

    def end(self, state: JobState, message: str | None = None) -> None:
        """End it so, or give it back to the queue; where a cancel was accepted, it ends cancelled in any case."""
        self.state("cancelled" if self.row.cancel_requested else state, message)

    def fail(self, problem: Problem) -> None:
        """End it for a reason, which is kept in any case."""
        self.set(problem=problem.model_dump_json())
        self.end("failed", problem.detail)

    def write(self) -> None:
        values = self._values | {"next_event": self.row.next_event + len(self._events)}
        self.connection.execute(update(jobs).where(jobs.c.id == self.row.id).values(values))
        if self._events:
            self.connection.execute(insert(events), self._events)


@contextmanager
def changing(database: Database, job_id: str, now_ms: int) -> Iterator[JobChange]:
    """A transaction in which nobody else changes the job.

    Raises:
        JobNotFound
    """
    with database.write() as connection:
        # PostgreSQL locks the row; on SQLite a writing transaction is alone anyway.
        found = connection.execute(select(jobs).where(jobs.c.id == job_id).with_for_update()).one_or_none()
        if found is None:
            raise JobNotFound(job_id)
        change = JobChange(connection, found, now_ms)
        yield change
        change.write()
