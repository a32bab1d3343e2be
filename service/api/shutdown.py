"""How a server that is told to stop does so: no new work, what is in flight finishes, then it goes."""

import asyncio
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import structlog

from service.api.in_flight import InFlight

SIGNALS = (signal.SIGTERM, signal.SIGINT)

log = structlog.get_logger()


class Shutdown:
    """Holds the server's own signal handlers back until the work in flight is done.

    A server that stops listening at once leaves new callers hanging at a socket that its parent still holds.
    Until the work is done they get `draining`, and probes are answered. The same signal a second time goes
    straight through.
    """

    def __init__(self, drain: Callable[[], None], in_flight: InFlight, *, patience_seconds: float) -> None:
        self._drain, self._in_flight, self._patience_seconds = drain, in_flight, patience_seconds
        self._previous: dict[int, Any] = {}
        self._seen: set[int] = set()
        self._task: asyncio.Task[None] | None = None

    def install(self) -> None:
        """Take the signals over from the server, which has set its own. Call it in the running loop."""
        if threading.current_thread() is not threading.main_thread():
            return  # as the server itself: only the main thread hears signals
        self._loop = asyncio.get_running_loop()
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number in self._seen:
            self._previous[number](number, frame)
        elif not self._seen:
            self._loop.call_soon_threadsafe(self._begin, number)
        self._seen.add(number)

    def _begin(self, number: int) -> None:
        self._task = self._loop.create_task(self._stop(number))

    async def _stop(self, number: int) -> None:
        log.info(
            "shutdown_began", signal=signal.Signals(number).name, patience_seconds=self._patience_seconds
        )
        self._drain()
        unfinished = await self._in_flight.finish(within_seconds=self._patience_seconds)
        log.info("shutdown_drained", cut_short=unfinished)
        self._previous[number](number, None)
