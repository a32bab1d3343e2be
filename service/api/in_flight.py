"""Work that a caller is waiting for, and what ends it early: the caller leaves, or the service does."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from service.api.answer import Receive
from service.api.refusals import Disconnected, ShutDown

T = TypeVar("T")


class InFlight:
    """The work of all requests that are being answered. All methods belong to one event loop."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    async def run(self, work: Coroutine[Any, Any, T], receive: Receive) -> T:
        """The result of `work`. Call it once the body has been received.

        Raises:
            Disconnected: the caller went away first; the work was cancelled.
            ShutDown: `finish` ran out of patience; the work was cancelled.
        """
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        watch = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({task, watch}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise Disconnected
            if task.cancelled():
                raise ShutDown
            return task.result()
        finally:
            watch.cancel()
            task.cancel()

    async def finish(self, *, within_seconds: float) -> int:
        """Wait for all work to end, and cancel what has not by then; how many that were."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=within_seconds)
        unfinished = set(self._tasks)
        for task in unfinished:
            task.cancel()
        return len(unfinished)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, so that work whose caller has left is not reported as lost


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
