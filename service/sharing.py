"""The server's side of sharing a device with train jobs of the same machine (`service.jobs.sharing`)."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import structlog

from lora_registry.errors import StorageError
from service.engine.engine import Engine
from service.errors import DarkroomError, DeviceLent, InvalidSettings
from service.jobs.sharing import Turnstile

LOOK_SECONDS: Final = 0.5

log = structlog.get_logger()


class Sharing:
    """`serving` is around every accepted request.

    `share`: a train job waits at its next step while there are any. `pause`: once a job asks, requests are refused
    with DeviceLent, those that were accepted are finished, and the job has the device and its memory until it is done:
    what was resident waits in the host's. `separate`: nothing. A data folder that cannot be used is logged, and serving
    goes on.
    """

    def __init__(
        self,
        policy: Literal["share", "pause", "separate"],
        folder: Path,
        engine: Callable[[], Engine],
        *,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._policy, self._folder, self._engine, self._look_seconds = policy, folder, engine, look_seconds
        self._turnstile: Turnstile | None = None
        self._lock = threading.Lock()
        self._serving = 0
        self._lent_since: float | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._main, name="device-sharing", daemon=True)

    def start(self) -> None:
        """Begin to look after the device."""
        if self._policy == "separate":
            return
        try:
            self._turnstile = Turnstile(self._folder)
        except (StorageError, InvalidSettings) as exc:
            log.warning("the device is not shared with train jobs", reason=str(exc))
            return
        if self._policy == "pause":
            self._turnstile.take_back()
            self._thread.start()

    def close(self) -> None:
        """Let go of the device."""
        self._closed.set()
        if self._thread.is_alive():
            self._thread.join()
        if self._turnstile is not None:
            self._turnstile.close()
            self._turnstile = None

    @contextmanager
    def serving(self) -> Iterator[None]:
        """A request, from its acceptance to its end.

        Raises:
            DeviceLent: a train job has the device.
        """
        with self._lock:
            if self._lent_since is not None:
                raise DeviceLent(time.monotonic() - self._lent_since)
            self._serving += 1
            self._flag()
        try:
            yield
        finally:
            with self._lock:
                self._serving -= 1
                self._flag()

    def _flag(self) -> None:
        if self._turnstile is not None and self._policy == "share":
            self._turnstile.set_busy(self._serving)

    def look(self) -> None:
        """Lend the device where it is asked for and nobody is served any more; take it back where it is free again."""
        turnstile = self._turnstile
        assert turnstile is not None
        with self._lock:
            if self._lent_since is None:
                if not turnstile.asked():
                    turnstile.take_back()  # which a job of before the start may have had
                    return
                self._lent_since = time.monotonic()
                log.info("a train job asked for the device")
            if self._serving:
                return
        # From here on nobody is served until the device is back; moving memory takes seconds, and holds up nobody.
        if turnstile.asked():
            if self._moved_out():
                turnstile.hand_over()
        elif turnstile.take_back() and self._moved_in():
            log.info("the device came back", lent_seconds=round(time.monotonic() - self._lent_since, 1))
            with self._lock:
                self._lent_since = None

    def _moved_out(self) -> bool:
        """Whether a job may have the device. It may where nothing is resident, or nothing could be moved."""
        try:
            return self._engine().lend()
        except DarkroomError:
            return True  # no engine yet, or none any more
        except (RuntimeError, MemoryError) as exc:
            log.warning("what is resident stays on the device beside the train job", reason=str(exc))
            return True

    def _moved_in(self) -> bool:
        try:
            self._engine().take_back()
        except DarkroomError:
            return True
        except RuntimeError as exc:  # which torch's own error of a full device is
            log.warning("what was resident could not come back to the device; tried again", reason=str(exc))
            return False
        return True

    def _main(self) -> None:
        while not self._closed.wait(self._look_seconds):
            self.look()
