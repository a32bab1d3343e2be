"""Content-addressed bytes: a blob's only name is its sha256. Here the protocol and the driver for a local folder."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from lora_registry.errors import BlobMissing
from lora_registry.faults import point
from lora_registry.incoming import Incoming, storage_errors

HEX_DIGITS: Final = 64


def blob_name(digest: str) -> str:
    """The 64 hex digits of `sha256:…`, of which alone paths and keys are made.

    Raises:
        ValueError: it is something else.
    """
    name = digest.removeprefix("sha256:")
    if len(name) != HEX_DIGITS or not set(name) <= set("0123456789abcdef"):
        raise ValueError(f"{digest[:80]!r} is not a digest")
    return name


@dataclass(frozen=True)
class StoredBlob:
    """One blob as the store lists it; `modified_seconds` is since the epoch, by the store's clock."""

    digest: str
    size_bytes: int
    modified_seconds: float


class Blobs(Protocol):
    """A store of bytes by digest. All methods raise StorageFull or StorageUnavailable when the store fails."""

    @property
    def staging(self) -> Path:
        """A local folder for files on their way in."""

    def put(self, incoming: Incoming) -> None:
        """Store a finished file under its digest; when this returns it survives a power cut."""

    def open(self, digest: str) -> BinaryIO:
        """The bytes, seekable. Raises BlobMissing."""

    def is_local(self, digest: str) -> bool:
        """Whether `open` would read a file of this machine."""

    def has(self, digest: str, size_bytes: int) -> bool:
        """Whether the blob is there with that size."""

    def delete(self, digest: str) -> None:
        """Remove the blob if it is there."""

    def stored(self) -> Iterator[StoredBlob]:
        """Every blob, in any order."""


class LocalBlobs:
    """Blobs as read-only files of one folder: `sha256/ab/ab34…`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "sha256"
        self.staging = folder / "incoming"

    def put(self, incoming: Incoming) -> None:
        """Rename the file into place. A damaged blob of that name is healed by it: the new bytes are the right ones."""
        final = self.path(incoming.digest)
        with storage_errors():
            point("blob.make_folder")
            self._make_folder(final.parent)
            point("blob.rename")
            os.replace(incoming.restore(), final)
            point("blob.fsync_folder")
            _fsync_folder(final.parent)

    def open(self, digest: str) -> BinaryIO:
        """The blob as a file of the operating system, so that it can be mapped into memory."""
        with storage_errors():
            try:
                return self.path(digest).open("rb")
            except FileNotFoundError as exc:
                raise BlobMissing(digest) from exc

    def is_local(self, digest: str) -> bool:
        return self.path(digest).is_file()

    def has(self, digest: str, size_bytes: int) -> bool:
        with storage_errors():
            path = self.path(digest)
            return path.is_file() and path.stat().st_size == size_bytes

    def delete(self, digest: str) -> None:
        with storage_errors():
            point("blob.delete")
            self.path(digest).unlink(missing_ok=True)

    def stored(self) -> Iterator[StoredBlob]:
        with storage_errors():
            for path in self._folder.glob("??/*"):
                if len(path.name) == HEX_DIGITS:
                    status = path.stat()
                    yield StoredBlob(f"sha256:{path.name}", status.st_size, status.st_mtime)

    def path(self, digest: str) -> Path:
        """Where the blob is or would be: made of nothing but the digest."""
        name = blob_name(digest)
        return self._folder / name[:2] / name

    def _make_folder(self, folder: Path) -> None:
        if folder.is_dir():
            return
        folder.mkdir(parents=True, exist_ok=True)
        # A folder that was just made is only there for good once its own parents are on the disk.
        for parent in (folder.parent, self._folder.parent):
            _fsync_folder(parent)


def _fsync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
