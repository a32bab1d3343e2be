"""How a server and a trainer share one device, as two processes of one machine.

Both ways rest on locks of open files, which the kernel drops with the process that held them: whoever is killed, the
other goes on. They are Linux's open-file-description locks (fcntl(2)) and not flock(2), as these can be asked about
without being taken: a trainer that is stopped between two instructions never stands in a server's way.

`share`: the server raises a flag while it has interactive work, and the trainer waits at its next step.
`pause`: the trainer asks for the device; the server finishes what it has begun, hands it over, and takes it back
once nobody wants it any more.
"""

import fcntl
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from lora_registry.incoming import storage_errors
from service.errors import InvalidSettings

POLL_SECONDS: Final = 0.01
DEVICE_POLL_SECONDS: Final = 0.1
_FLOCK: Final = "hhqqi4x"
"""struct flock of 64-bit Linux: type, whence, start, length (0: to the end), process."""


class _Lock:
    """A lock on one file: shared by many, or held by one. It is gone when the process is."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def share(self) -> None:
        """Hold it together with others. Never waits, as long as nobody takes this lock alone."""
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLKW, _flock(fcntl.F_RDLCK))

    def take(self) -> bool:
        """Hold it alone; False where somebody has it."""
        try:
            fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_WRLCK))
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        fcntl.fcntl(self._file, fcntl.F_OFD_SETLK, _flock(fcntl.F_UNLCK))

    def is_held(self) -> bool:
        """Whether anybody else holds it, together or alone; asked without taking it."""
        answer = fcntl.fcntl(self._file, fcntl.F_OFD_GETLK, _flock(fcntl.F_WRLCK))
        return bool(struct.unpack(_FLOCK, answer)[0] != fcntl.F_UNLCK)

    def close(self) -> None:
        os.close(self._file)


class Turnstile:
    """Both sides' hands on the locks in `folder`, which is made where it is not there. One for each process.

    Raises:
        InvalidSettings: the system has no such locks.
        StorageUnavailable: the folder cannot be used.
    """

    def __init__(self, folder: Path) -> None:
        if not hasattr(fcntl, "F_OFD_GETLK"):
            raise InvalidSettings(
                "a server and a trainer can share a device on Linux only; let the trainer have another device"
            )
        with storage_errors():
            folder.mkdir(parents=True, exist_ok=True)
            self._busy = _Lock(folder / "busy.lock")
            self._wanted = _Lock(folder / "wanted.lock")
            self._device = _Lock(folder / "device.lock")
        self._mutex = threading.Lock()
        self._in_service = 0
        self._is_flagged = False

    def close(self) -> None:
        """Let go of everything."""
        for lock in (self._busy, self._wanted, self._device):
            lock.close()

    # The server's side

    def set_busy(self, count: int) -> None:
        """Publish how much interactive work is queued or running; 0: the trainer may go on."""
        with self._mutex:
            self._in_service = count
            self._flag()

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Interactive work, from its acceptance to its end."""
        with self._mutex:
            self._in_service += 1
            self._flag()
        try:
            yield
        finally:
            with self._mutex:
                self._in_service -= 1
                self._flag()

    def asked(self) -> bool:
        """Whether a trainer wants the device, or has it."""
        return self._wanted.is_held()

    def hand_over(self) -> None:
        """Let a trainer have the device. The server must not touch it until `take_back` says True."""
        self._device.release()

    def take_back(self) -> bool:
        """Have the device for the server; False as long as a trainer wants it or has it. Call it at the start, too."""
        return not self.asked() and self._device.take()

    # The trainer's side

    def wait(self, stop: Callable[[], object], poll_seconds: float = POLL_SECONDS) -> float:
        """Seconds waited until no server was busy, or until `stop` gave something true. Microseconds if none is."""
        if not self._busy.is_held():
            return 0.0
        started = time.monotonic()
        while self._busy.is_held() and not stop():
            time.sleep(poll_seconds)
        return time.monotonic() - started

    @contextmanager
    def device(self, stop: Callable[[], object], poll_seconds: float = DEVICE_POLL_SECONDS) -> Iterator[bool]:
        """Ask for the device, have it, and give it back. False: `stop` gave something true before it was there."""
        self._wanted.share()
        try:
            while not (has_device := self._device.take()) and not stop():
                time.sleep(poll_seconds)
            yield has_device
        finally:
            self._device.release()
            self._wanted.release()

    def _flag(self) -> None:
        wants_flag = self._in_service > 0
        if wants_flag and not self._is_flagged:
            self._busy.share()
        elif self._is_flagged and not wants_flag:
            self._busy.release()
        self._is_flagged = wants_flag


def _flock(kind: int) -> bytes:
    return struct.pack(_FLOCK, kind, os.SEEK_SET, 0, 0, 0)
