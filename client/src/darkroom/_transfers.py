"""Files between the disk and the service: sent from it as often as it takes, written to it only whole."""

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import BinaryIO, Self, TypeAlias

from darkroom._errors import BadResponse

PIECE_BYTES = 256 * 1024

File: TypeAlias = str | PathLike[str] | BinaryIO
"""A path, or a file that is open for reading in binary and can be rewound."""
Told: TypeAlias = Callable[[int, int], object]
"""Is called with the bytes that were moved so far, and with how many there are."""


@contextmanager
def opened(file: File) -> Iterator[BinaryIO]:
    """The file, open. One that the caller opened stays open."""
    if isinstance(file, (str, PathLike)):
        with open(file, "rb") as mine:
            yield mine
        return
    if not file.seekable():
        raise ValueError("this file cannot be rewound, so it could not be sent again; give a path")
    yield file


def target(path: Path, name: str) -> Path:
    """Where a file goes: the path, or the end of its own name in that folder."""
    return path / PurePosixPath(name).name if path.is_dir() else path


class Upload:
    """A file to send, from where it stands to its end. To make one reads it all, for its digest."""

    def __init__(self, file: BinaryIO, progress: Told | None = None) -> None:
        self._file, self._start, self._progress = file, file.tell(), progress
        digest = hashlib.sha256()
        while piece := file.read(PIECE_BYTES):
            digest.update(piece)
        self.digest = f"sha256:{digest.hexdigest()}"
        self.size_bytes = file.tell() - self._start

    def chunks(self) -> Iterator[bytes]:
        """All of it, from the beginning."""
        self._file.seek(self._start)
        sent_bytes = 0
        while piece := self._file.read(PIECE_BYTES):
            yield piece
            sent_bytes = self._tell(sent_bytes + len(piece))

    async def async_chunks(self) -> AsyncIterator[bytes]:
        """The same, read in threads."""
        self._file.seek(self._start)
        sent_bytes = 0
        while piece := await asyncio.to_thread(self._file.read, PIECE_BYTES):
            yield piece
            sent_bytes = self._tell(sent_bytes + len(piece))

    def _tell(self, sent_bytes: int) -> int:
        if self._progress is not None:
            self._progress(sent_bytes, self.size_bytes)
        return sent_bytes


class Download:
    """A file on its way to `path`: written beside it, and put in its place once it is whole.

    A context manager that leaves either the whole file or what was there before. `digest` is what the bytes must
    have, where that is known.
    """

    def __init__(self, path: Path, *, digest: str | None = None, progress: Told | None = None) -> None:
        self._path, self._digest, self._progress = path, digest, progress
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
        self._file: BinaryIO = open(self._part, "xb")  # noqa: SIM115
        self.begin(0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def begin(self, size_bytes: int) -> None:
        """Forget what an earlier attempt brought. `size_bytes` are announced, 0 where nothing is."""
        self._file.seek(0)
        self._file.truncate()
        self._sha256, self._got_bytes, self._size_bytes = hashlib.sha256(), 0, size_bytes

    def write(self, chunk: bytes) -> None:
        """The next bytes of the file."""
        self._file.write(chunk)
        self._sha256.update(chunk)
        self._got_bytes += len(chunk)
        if self._progress is not None:
            self._progress(self._got_bytes, max(self._size_bytes, self._got_bytes))

    def finish(self) -> Path:
        """Put the file in its place.

        Raises: `BadResponse` where it is not the one that was asked for.
        """
        found = f"sha256:{self._sha256.hexdigest()}"
        if self._digest not in (None, found):
            raise BadResponse(200, f"the file that came is {found}, not {self._digest}; nothing was written")
        self._file.close()
        os.replace(self._part, self._path)
        return self._path
