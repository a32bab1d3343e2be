"""Pictures, manifests, checkpoints and whatever else jobs and datasets keep: blobs, apart from the registry's."""

from pathlib import Path
from typing import Final

from sqlalchemy import Connection, text

from lora_registry.blobs import Blobs, LocalBlobs
from lora_registry.incoming import Incoming

FOLDER: Final = "training"
PIECE_BYTES: Final = 2**20
_COLLECTION_LOCK: Final = 0x64617267
"""Of PostgreSQL's advisory locks: shared by those who name a blob, exclusive to a collection."""


def files(blobs: str, data: Path) -> Blobs:
    """The store at `settings.blobs` (`s3://bucket/prefix`, a folder, or empty for one in `data`).

    It is below a prefix of its own, so that the registry's collection and check never see its keys.
    """
    if "://" in blobs:
        from lora_registry.object_store import ObjectBlobs

        return ObjectBlobs.at(f"{blobs.rstrip('/')}/{FOLDER}", data / FOLDER / "incoming")
    return LocalBlobs((Path(blobs) if blobs else data) / FOLDER)


def put_bytes(files: Blobs, data: bytes) -> str:
    """Store these bytes; `sha256:…` of them. When it returns they survive a power cut.

    Raises:
        StorageFull, StorageUnavailable
    """
    with Incoming(files.staging, len(data), any_bytes=True) as incoming:
        for start in range(0, len(data), PIECE_BYTES):
            incoming.write(data[start : start + PIECE_BYTES])
        incoming.finish()
        files.put(incoming)
        return incoming.digest


def read_bytes(files: Blobs, digest: str) -> bytes:
    """All bytes of a blob. Raises BlobMissing, StorageUnavailable."""
    with files.open(digest) as file:
        return file.read()


def hold_off_collection(connection: Connection) -> None:
    """Until this writing transaction ends, no collection deletes a blob.

    Call it first, then see that the blobs which the rows will name are (still) there: `put` leaves an old blob of
    the same bytes as it is, and a collection may have taken it since. On SQLite a writer is alone anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock_shared(:lock)"), {"lock": _COLLECTION_LOCK})


def begin_collection(connection: Connection) -> None:
    """Until this writing transaction ends, nobody records the name of a blob."""
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _COLLECTION_LOCK})
