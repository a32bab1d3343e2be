"""What train processes write to their output: a file of the machine while they run, a file of the job afterwards.

A process inherits the lock on its log together with its output, and the lock goes with it, however it ends. So a log
that nobody has locked is one whose processes are gone, whoever started them.
"""

import errno
import fcntl
import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

NAME: Final = "train.log"
"""On the machine, in a folder of the job's id."""
ARTIFACT: Final = "log.txt"
"""Among the job's files."""
MEDIA_TYPE: Final = "text/plain; charset=utf-8"
KEPT_BYTES: Final = 2**20

_FOLDERS: Final = re.compile(r"(?<![\w.:/\\])/(?:[^\s/\"'`,;:()<>]+/)+")
"""What leads to a file: an absolute path but for its last part. No part of a URL."""


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The log, to be appended to; locked for as long as any process has it for its output.

    Raises:
        OSError: a full disk; or the log is being kept at this moment, and can be opened in the next one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if not path.exists() or not os.path.samestat(path.stat(), os.fstat(file.fileno())):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        yield file


@contextmanager
def left_behind(path: Path) -> Iterator[bytes]:
    """What the processes of this log have written, the end of it where it is long; then it is removed.

    It stays where the block raises.

    Raises:
        BlockingIOError: one of them is still there.
        OSError
    """
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        size_bytes = os.fstat(file.fileno()).st_size
        # One byte too many shows that there was more, and `joined` begins with the next whole line.
        file.seek(max(0, size_bytes - KEPT_BYTES - 1))
        yield file.read()
        path.unlink(missing_ok=True)
    with suppress(OSError):  # another log was begun meanwhile
        path.parent.rmdir()


@contextmanager
def forgiving() -> Iterator[None]:
    """Meanwhile this process's output is lost where it cannot be written: a full disk must not end the work."""
    with redirect_stdout(_Forgiving.over(1)), redirect_stderr(_Forgiving.over(2)):
        yield


class _Forgiving(io.FileIO):
    @classmethod
    def over(cls, descriptor: int) -> TextIO:
        raw = cls(descriptor, "w", closefd=False)
        return io.TextIOWrapper(io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True)

    def write(self, data: "ReadableBuffer") -> int:
        try:
            return super().write(data) or 0
        except OSError:
            return memoryview(data).nbytes


def note(path: Path, message: str) -> None:
    """Add a line with the time to a log; nothing where that cannot be written."""
    with suppress(OSError), path.open("ab") as file:
        file.write(stamped(message))


def stamped(message: str) -> bytes:
    """A line of ours among a process's own."""
    return f"--- {message}, {datetime.now(UTC).isoformat(timespec='seconds')}\n".encode()


def readable(written: bytes) -> bytes:
    """A log for people elsewhere, who have no use for the folders of this machine: text in UTF-8, `…/trainer.py`."""
    return _FOLDERS.sub("…/", written.decode("utf-8", "replace")).encode()


def joined(before: bytes, written: bytes, limit_bytes: int = KEPT_BYTES) -> bytes:
    """A log and what was written since, in whole lines from the end, as many as the limit allows.

    What is at the end already is not added again.
    """
    text = before if before.endswith(written) else before + written
    if len(text) <= limit_bytes:
        return text
    end = text[-limit_bytes:]
    return end.partition(b"\n")[2] or end


def trim(path: Path, limit_bytes: int) -> None:
    """Keep the last half of a log that has grown beyond the limit. Its writer appends, and need not know."""
    if path.stat().st_size <= limit_bytes:
        return
    with path.open("r+b") as file:
        file.seek(-limit_bytes // 2, os.SEEK_END)
        kept = file.read()
        file.seek(0)
        file.write(b"[...]\n" + kept.partition(b"\n")[2])
        file.truncate()
