"""An upload on its way in: a temporary file without a name, which is gone with whoever holds it open."""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Final, cast

from lora_registry.incoming import storage_errors
from service.datasets import archives, forms
from service.datasets.archives import Member
from service.datasets.errors import DatasetTooLarge
from service.errors import Cancelled

MAX_UPLOAD_BYTES: Final = 2 * 2**30


class Incoming:
    """Write the pieces, then hand it to `Datasets.add`; a context manager that leaves no file behind.

    `boundary` is that of a multipart form; without one the bytes are an archive.
    """

    def __init__(
        self, folder: Path, *, boundary: bytes | None = None, limit_bytes: int = MAX_UPLOAD_BYTES
    ) -> None:
        self._folder, self._boundary, self._limit_bytes = folder, boundary, limit_bytes
        self._file = unnamed(folder)
        self._given_up = False
        self.size_bytes = 0

    def __enter__(self) -> "Incoming":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, piece: bytes) -> None:
        """Append these bytes. Raises DatasetTooLarge, StorageFull, StorageUnavailable."""
        self.size_bytes += len(piece)
        if self.size_bytes > self._limit_bytes:
            raise DatasetTooLarge("the upload", self._limit_bytes)
        with storage_errors():
            self._file.write(piece)

    def members(self) -> Iterator[Member]:
        """What was sent, file by file.

        Raises:
            InvalidArchive, StorageFull, StorageUnavailable
            Cancelled: after `give_up`.
        """
        found = (
            archives.members(self._file, self._folder)
            if self._boundary is None
            else forms.parts(self._file, self._boundary)
        )
        for member in found:
            if self._given_up:
                raise Cancelled("the upload was given up")
            yield member

    def give_up(self) -> None:
        """Have whoever reads the members, in another thread, stop at the next one."""
        self._given_up = True

    def close(self) -> None:
        """Let go of the bytes."""
        self._file.close()


def unnamed(folder: Path) -> BinaryIO:
    """A file that no name leads to: closing it, or the end of the process, frees its space."""
    with storage_errors():
        folder.mkdir(parents=True, exist_ok=True)
        file: IO[bytes] = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
    return cast("BinaryIO", file)
