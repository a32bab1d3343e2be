"""A launcher that comes up when its database does: a database that is away stops nothing else."""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from lora_registry.errors import RegistryError
from service.jobs.launcher import LocalLauncher
from service.jobs.table import JobTable

RETRY_SECONDS: Final = 5.0

log = structlog.get_logger()


class Launching:
    """Starts the launcher that `make` makes of the table, as soon as `table` gives one. `table` may block and raise."""

    def __init__(self, table: Callable[[], JobTable], make: Callable[[JobTable], LocalLauncher]) -> None:
        self._table, self._make = table, make
        self._launcher: LocalLauncher | None = None
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._bring_up, name="launching", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have it look at the table at once."""
        if self._launcher is not None:
            self._launcher.wake()

    def stop(self, *, patience_seconds: float) -> None:
        """As `LocalLauncher.stop`; nothing where it never came up."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(RETRY_SECONDS)
        if self._launcher is not None:
            self._launcher.stop(patience_seconds=patience_seconds)

    def _bring_up(self) -> None:
        while not self._stopping.is_set():
            try:
                launcher = self._make(self._table())
            except RegistryError as exc:
                log.warning("train jobs cannot be started yet", reason=str(exc))
                self._stopping.wait(RETRY_SECONDS)
            else:
                self._launcher = launcher
                launcher.start()
                return
