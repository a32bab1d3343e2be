"""A job's files as rows, in the transaction of whoever may write them."""

from sqlalchemy import Connection, delete, insert, select

from lora_registry.blobs import Blobs
from lora_registry.faults import point
from service.jobs.changes import JobChange
from service.store.files import hold_off_collection, put_bytes, read_bytes
from service.store.schema import artifacts


def keep(
    change: JobChange, files: Blobs, name: str, data: bytes, digest: str, media_type: str, *, step: int
) -> None:
    """Record a file whose bytes were stored under `digest`, in the place of one that has its name."""
    hold_off_collection(change.connection)
    let_go(change, name)
    row = {
        "job_id": change.row.id,
        "name": name,
        "media_type": media_type,
        "digest": digest.removeprefix("sha256:"),
        "size_bytes": len(data),
        "step": step,
        "created_ms": change.now_ms,
    }
    change.connection.execute(insert(artifacts), row)
    change.event("artifact", artifact=name, step=step)
    change.set(step=max(step, change.row.step))
    if not files.has(digest, len(data)):  # a collection was at work in between
        put_bytes(files, data)
    point("job.after_artifact")


def let_go(change: JobChange, name: str) -> None:
    """Remove a file; nothing where there is none of that name."""
    change.connection.execute(
        delete(artifacts).where(artifacts.c.job_id == change.row.id, artifacts.c.name == name)
    )


def kept(connection: Connection, files: Blobs, job_id: str, name: str) -> bytes | None:
    """The bytes of one of the job's files; None where it has none of that name. Raises BlobMissing."""
    named = select(artifacts.c.digest).where(artifacts.c.job_id == job_id, artifacts.c.name == name)
    digest = connection.execute(named).scalar()
    return None if digest is None else read_bytes(files, f"sha256:{digest}")
