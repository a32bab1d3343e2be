"""A file on its way in: a temporary file beside the blobs, hashed while it is written."""

import errno
import fcntl
import hashlib
import os
import secrets
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final

from lora_registry.errors import InvalidLora, LoraTooLarge, StorageFull, StorageUnavailable
from lora_registry.faults import point
from lora_registry.header import PREFIX_BYTES, UnreadableHeader, check_prefix

SUFFIX: Final = ".part"
COPY_BYTES: Final = 2**20
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turn the operating system's failures into the registry's."""
    try:
        yield
    except OSError as exc:
        if exc.errno in _FULL:
            raise StorageFull from exc
        # The number says enough; the text of an OSError may hold a path.
        fact = os.strerror(exc.errno).lower() if exc.errno else "unknown failure"
        raise StorageUnavailable(f"the registry's storage cannot be used: {fact}") from exc


class Incoming:
    """Write the pieces, then hand it to `Registry.publish`; a context manager that leaves no file behind.

    Raises InvalidLora as soon as the first bytes show that this is no safetensors file, and LoraTooLarge with the
    piece that goes over the limit. The lock on the file tells a collection that its writer lives.

    `any_bytes` is for stores of other things than LoRAs: nothing is refused for what it is, and there is no
    `data_sha256`.
    """

    def __init__(self, folder: Path, limit_bytes: int, *, any_bytes: bool = False) -> None:
        with storage_errors():
            point("incoming.create")
            folder.mkdir(parents=True, exist_ok=True)
            self.path = folder / f"{secrets.token_hex(16)}{SUFFIX}"
            self._file = self._create(self.path)
        self._limit_bytes, self._any_bytes = limit_bytes, any_bytes
        self._beginning = b""
        self._sha256, self._data_sha256 = hashlib.sha256(), hashlib.sha256()
        self._data_start: int | None = None
        self.size_bytes = 0

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def digest(self) -> str:
        """`sha256:…` of the bytes so far."""
        return f"sha256:{self._sha256.hexdigest()}"

    @property
    def data_sha256(self) -> str:
        """64 hex digits: the hash of everything after the safetensors header (AutoV3 is the first 12)."""
        return self._data_sha256.hexdigest()

    def write(self, piece: bytes) -> None:
        """Append these bytes."""
        if self.size_bytes + len(piece) > self._limit_bytes:
            raise LoraTooLarge(self._limit_bytes)
        start, self.size_bytes = self.size_bytes, self.size_bytes + len(piece)
        if start < PREFIX_BYTES and not self._any_bytes:
            self._look_at_beginning(piece)
        with storage_errors():
            point("incoming.write")
            self._file.write(piece)
        self._sha256.update(piece)
        if self._data_start is not None and self.size_bytes > self._data_start:
            self._data_sha256.update(piece[max(0, self._data_start - start) :])

    def finish(self) -> BinaryIO:
        """The whole file, on the disk for good, from its beginning. It stays this object's to close."""
        if self.size_bytes < PREFIX_BYTES and not self._any_bytes:
            self._check(self._beginning)
        with storage_errors():
            point("incoming.fsync")
            self._file.flush()
            os.fchmod(self._file.fileno(), 0o444)
            os.fsync(self._file.fileno())
            self._file.seek(0)
        return self._file

    def restore(self) -> Path:
        """Where the bytes are now: the file itself, or a copy where it was moved away and then deleted."""
        if not self.path.exists():
            copy = self._create(self.path)
            with copy:
                self._file.seek(0)
                while piece := self._file.read(COPY_BYTES):
                    copy.write(piece)
                copy.flush()
                os.fchmod(copy.fileno(), 0o444)
                os.fsync(copy.fileno())
        return self.path

    def close(self) -> None:
        """Let go of the file, and delete it where no blob store took it."""
        self.path.unlink(missing_ok=True)
        self._file.close()

    @staticmethod
    def _create(path: Path) -> BinaryIO:
        file = open(path, "x+b", opener=lambda name, flags: os.open(name, flags, 0o600))  # noqa: SIM115
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        return file

    def _look_at_beginning(self, piece: bytes) -> None:
        self._beginning = (self._beginning + piece)[:PREFIX_BYTES]
        if len(self._beginning) == PREFIX_BYTES:
            self._check(self._beginning)
            self._data_start = 8 + int(struct.unpack("<Q", self._beginning[:8])[0])

    @staticmethod
    def _check(beginning: bytes) -> None:
        try:
            check_prefix(beginning)
        except UnreadableHeader as exc:
            raise InvalidLora((exc.reason,)) from exc


def abandoned(folder: Path, grace_seconds: float) -> Iterator[Path]:
    """Temporary files that nobody is writing any more and that are older than the grace period."""
    if not folder.is_dir():
        return
    for path in folder.glob(f"*{SUFFIX}"):
        try:
            with path.open("rb") as file:
                if time.time() - os.fstat(file.fileno()).st_mtime < grace_seconds:
                    continue
                fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileNotFoundError, BlockingIOError):
            continue  # it was finished meanwhile, or its writer lives
        yield path
