"""Files that could be had again, kept on a local disk up to a number of bytes; and a remote blob store behind them."""

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Final

from lora_registry.blobs import Blobs, StoredBlob, blob_name
from lora_registry.errors import BlobMissing, StorageFull
from lora_registry.faults import point
from lora_registry.incoming import SUFFIX, Incoming, abandoned, storage_errors

COPY_BYTES: Final = 4 * 2**20
ABANDONED_SECONDS: Final = 3600.0
"""A file that has not grown for so long has lost its writer to a crash."""


class DiskCache:
    """Files by key in one folder; the longest unread go first.

    Several processes may share the folder: files appear whole, by a rename, and one that is deleted while it is open
    stays readable. A key is a plain file name. All methods raise StorageFull or StorageUnavailable.
    """

    def __init__(self, folder: Path, budget_bytes: int) -> None:
        self._folder, self._budget_bytes = folder, budget_bytes

    def __contains__(self, key: str) -> bool:
        return (self._folder / key).is_file()

    def open(self, key: str) -> BinaryIO | None:
        """The file, now the most recently read; None where there is none."""
        path = self._folder / key
        with storage_errors():
            try:
                file = path.open("rb")
                os.utime(path)
            except FileNotFoundError:
                return None
        return file

    def put(self, key: str, write: Callable[[BinaryIO], None]) -> None:
        """Keep what `write` writes; if it raises, nothing. Others go until all fit; one that is too large goes, too."""
        with storage_errors():
            self._folder.mkdir(parents=True, exist_ok=True)
            fresh = self._folder / f"{secrets.token_hex(16)}{SUFFIX}"
            try:
                with fresh.open("xb") as file:
                    write(file)
                point("cache.rename")
                fresh.replace(self._folder / key)
            finally:
                fresh.unlink(missing_ok=True)
            self._make_room()

    def delete(self, key: str) -> None:
        with storage_errors():
            (self._folder / key).unlink(missing_ok=True)

    def size_bytes(self) -> int:
        """Bytes that are held now."""
        return sum(size for _, size, _ in self._held())

    def _make_room(self) -> None:
        for path in abandoned(self._folder, ABANDONED_SECONDS):
            path.unlink(missing_ok=True)
        held = sorted(self._held())
        total = sum(size for _, size, _ in held)
        for _, size, path in held:
            if total <= self._budget_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size

    def _held(self) -> Iterator[tuple[float, int, Path]]:
        """When each file was last read, its size, and where it is."""
        with storage_errors():
            for path in self._folder.glob("*"):
                try:
                    status = path.stat()
                except FileNotFoundError:
                    continue  # another process was faster
                if path.suffix != SUFFIX:
                    yield status.st_mtime, status.st_size, path


class CachedBlobs:
    """The blobs of `remote`, kept on the disk once they were opened. Only bytes that are what their digest says are."""

    def __init__(self, remote: Blobs, cache: DiskCache) -> None:
        self.remote, self._cache = remote, cache

    @property
    def staging(self) -> Path:
        return self.remote.staging

    def put(self, incoming: Incoming) -> None:
        self.remote.put(incoming)

    def open(self, digest: str) -> BinaryIO:
        if (held := self._cache.open(blob_name(digest))) is not None:
            return held
        with self.remote.open(digest) as source:

            def bring(copy: BinaryIO) -> None:
                if _copied(source, copy) != digest:
                    raise BlobMissing(digest)

            try:
                self._cache.put(blob_name(digest), bring)
            except StorageFull:
                return self.remote.open(digest)  # it costs time, and nothing else
        return self._cache.open(blob_name(digest)) or self.remote.open(digest)

    def is_local(self, digest: str) -> bool:
        return blob_name(digest) in self._cache

    def has(self, digest: str, size_bytes: int) -> bool:
        return self.remote.has(digest, size_bytes)

    def delete(self, digest: str) -> None:
        self.remote.delete(digest)
        self._cache.delete(blob_name(digest))

    def stored(self) -> Iterator[StoredBlob]:
        return self.remote.stored()


def _copied(source: BinaryIO, copy: BinaryIO) -> str:
    """Copy all of it; `sha256:…` of the bytes."""
    sha256 = hashlib.sha256()
    while piece := source.read(COPY_BYTES):
        sha256.update(piece)
        copy.write(piece)
    return f"sha256:{sha256.hexdigest()}"
