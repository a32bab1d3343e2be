"""Blobs in an S3-compatible store (or GCS, or Azure), through obstore.

A blob appears whole or not at all: small ones by one create-only put, large ones by a multipart upload that only
its last call makes visible. Parts of an upload that was killed are the bucket's life-cycle rule to remove.
"""

import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError, NotFoundError
from obstore.store import from_url

from lora_registry.blobs import StoredBlob, blob_name
from lora_registry.errors import BlobMissing, StorageUnavailable
from lora_registry.faults import InjectedFault, point
from lora_registry.incoming import Incoming

if TYPE_CHECKING:
    from obstore.store import ObjectStore

ONE_PUT_BYTES: Final = 8 * 2**20
READ_BYTES: Final = 4 * 2**20
_FOLDER: Final = "sha256"


class ObjectBlobs:
    """Blobs as objects `sha256/ab/ab34…` below the URL's prefix."""

    def __init__(self, store: "ObjectStore", staging: Path) -> None:
        self._store, self.staging = store, staging

    @classmethod
    def at(cls, url: str, staging: Path | None = None) -> "ObjectBlobs":
        """The store at `s3://bucket/prefix`; credentials, region and endpoint come from the AWS_* environment."""
        with store_errors():
            store = from_url(url)
        return cls(store, staging or Path(tempfile.gettempdir()) / "lora-registry-incoming")

    def put(self, incoming: Incoming) -> None:
        """Upload the file unless it is there already."""
        if self.has(incoming.digest, incoming.size_bytes):
            return
        with store_errors(), incoming.restore().open("rb") as file:
            point("blob.upload")
            path = _path(incoming.digest)
            if incoming.size_bytes > ONE_PUT_BYTES:
                obstore.put(
                    self._store, path, file, use_multipart=True, chunk_size=ONE_PUT_BYTES, max_concurrency=4
                )
            else:
                self._create(path, file.read(), incoming)
            point("blob.uploaded")

    def open(self, digest: str) -> BinaryIO:
        with store_errors():
            try:
                size = obstore.head(self._store, _path(digest))["size"]
            except (NotFoundError, FileNotFoundError) as exc:
                raise BlobMissing(digest) from exc
        return io.BufferedReader(_Ranges(self._store, digest, size), READ_BYTES)

    def is_local(self, digest: str) -> bool:  # noqa: ARG002
        return False

    def has(self, digest: str, size_bytes: int) -> bool:
        with store_errors():
            try:
                return bool(obstore.head(self._store, _path(digest))["size"] == size_bytes)
            except (NotFoundError, FileNotFoundError):
                return False

    def delete(self, digest: str) -> None:
        with store_errors():
            point("blob.delete")
            try:
                obstore.delete(self._store, _path(digest))
            except (NotFoundError, FileNotFoundError):
                return

    def stored(self) -> Iterator[StoredBlob]:
        with store_errors():
            for batch in obstore.list(self._store, prefix=_FOLDER):
                for entry in batch:
                    name = entry["path"].rpartition("/")[2]
                    yield StoredBlob(f"sha256:{name}", entry["size"], entry["last_modified"].timestamp())

    def _create(self, path: str, data: bytes, incoming: Incoming) -> None:
        try:
            obstore.put(self._store, path, data, mode="create", use_multipart=False)
        except AlreadyExistsError:
            # Another publisher was faster with the same bytes; an object of another size is damaged, and is replaced.
            if not self.has(incoming.digest, incoming.size_bytes):
                obstore.put(self._store, path, data, use_multipart=False)


class _Ranges(io.RawIOBase):
    """One object as a file, read by ranges."""

    def __init__(self, store: "ObjectStore", digest: str, size_bytes: int) -> None:
        super().__init__()
        self._store, self._digest, self._size_bytes, self._at = store, digest, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        return self._at

    def readall(self) -> bytes:
        # Python's own would ask for 8 KiB at a time.
        data = bytearray(max(0, self._size_bytes - self._at))
        at = 0
        while at < len(data):
            at += self.readinto(memoryview(data)[at:])
        return bytes(data)

    def readinto(self, buffer: "memoryview | bytearray") -> int:  # type: ignore[override]
        length = min(len(buffer), self._size_bytes - self._at)
        if length <= 0:
            return 0
        with store_errors():
            try:
                data = obstore.get_range(self._store, _path(self._digest), start=self._at, length=length)
            except (NotFoundError, FileNotFoundError) as exc:
                raise BlobMissing(self._digest) from exc
        buffer[: len(data)] = memoryview(data)
        self._at += len(data)
        return len(data)


@contextmanager
def store_errors() -> Iterator[None]:
    """Turn the store's failures into the registry's."""
    try:
        yield
    except (BaseError, InjectedFault, OSError) as exc:
        # Their texts hold URLs and request ids, which are not for callers.
        raise StorageUnavailable(
            "the registry's object store does not answer as it should; try again later"
        ) from exc


def _path(digest: str) -> str:
    name = blob_name(digest)
    return f"{_FOLDER}/{name[:2]}/{name}"
