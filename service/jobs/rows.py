"""Table rows to the records of the wire contract, and back."""

import json
import math
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Row, select

from darkroom.types import JobEvent, Problem, TrainArtifact, TrainJob, TrainRequest
from lora_registry.database import Database
from lora_registry.rows import moment
from service.jobs.errors import JobNotFound
from service.store.schema import artifacts, jobs


def jobs_from(connection: Connection, rows: Iterable[Row[Any]]) -> list[TrainJob]:
    """Jobs with their artifacts, which are read for all of them at once."""
    found = list(rows)
    of_job: dict[str, list[TrainArtifact]] = {row.id: [] for row in found}
    statement = (
        select(artifacts).where(artifacts.c.job_id.in_(of_job)).order_by(artifacts.c.step, artifacts.c.name)
    )
    for row in connection.execute(statement) if found else ():
        of_job[row.job_id].append(artifact_from(row))
    return [_job_from(row, of_job[row.id]) for row in found]


def get_job(database: Database, job_id: str) -> TrainJob:
    """The job as it stands. Raises JobNotFound."""
    with database.read() as connection:
        found = jobs_from(connection, connection.execute(select(jobs).where(jobs.c.id == job_id)))
    if not found:
        raise JobNotFound(job_id)
    return found[0]


def artifact_from(row: Row[Any]) -> TrainArtifact:
    return TrainArtifact(
        name=row.name,
        media_type=row.media_type,
        size_bytes=row.size_bytes,
        digest=f"sha256:{row.digest}",
        step=row.step,
        created_at=moment(row.created_ms),
    )


def event_from(row: Row[Any]) -> JobEvent:
    return JobEvent(id=row.id, type=row.type, at=moment(row.at_ms), **json.loads(row.data))


def finite(number: float | None) -> float | None:
    """JSON has no word for anything else."""
    return number if number is not None and math.isfinite(number) else None


def _job_from(row: Row[Any], files: list[TrainArtifact]) -> TrainJob:
    return TrainJob(
        id=row.id,
        kind=row.kind,
        name=row.name,
        state=row.state,
        stage=row.stage,
        step=row.step,
        max_train_steps=row.max_train_steps,
        loss=row.loss,
        learning_rate=row.learning_rate,
        steps_per_second=row.steps_per_second,
        eta_seconds=row.eta_seconds,
        dataset=row.dataset,
        request=TrainRequest.model_validate_json(row.request),
        lora=row.lora,
        digest=row.digest,
        problem=None if row.problem is None else Problem.model_validate_json(row.problem),
        attempts=row.attempts,
        cancel_requested=row.cancel_requested,
        artifacts=files,
        created_at=moment(row.created_ms),
        started_at=None if row.started_ms is None else moment(row.started_ms),
        finished_at=None if row.finished_ms is None else moment(row.finished_ms),
    )
