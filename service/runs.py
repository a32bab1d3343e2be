"""Accepted work: how much may wait, how long it may take, and the bridge from the engine's thread to asyncio."""

import asyncio
import math
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TypeVar

from service.engine.engine import Engine
from service.engine.loras.arranged import Arranged
from service.engine.orders import Done, Event, Failed, Order, Progress
from service.errors import DeadlineExceeded, Draining, Overloaded, TooExpensive
from service.metrics import Metrics

T = TypeVar("T")


@dataclass(frozen=True)
class Accepted:
    """The order has been taken in."""

    estimated_seconds: float
    """Of the device, were the order alone on it."""


@dataclass(eq=False)
class Run:
    """One accepted order: what is left of it, and its events."""

    estimated_seconds: float
    remaining_seconds: float
    events: asyncio.Queue[Event]
    timeout_seconds: float
    give_up_at: float
    """By the event loop's clock."""


class Runs:
    """Accepts orders while the estimated work that waits stays under a bound, and sees them through. `serving` is
    around each, from its acceptance to its end, and may raise. Event loops of several threads may use it.
    """

    def __init__(
        self,
        *,
        max_queue_seconds: float,
        metrics: Metrics,
        serving: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self._max_queue_seconds = max_queue_seconds
        self._metrics = metrics
        self._serving = serving
        self._runs: set[Run] = set()
        self._lock = threading.Lock()
        self._draining = False

    @property
    def backlog_seconds(self) -> float:
        """Estimated seconds of the device that accepted work still needs."""
        with self._lock:
            return sum(run.remaining_seconds for run in self._runs)

    @property
    def draining(self) -> bool:
        return self._draining

    def drain(self) -> None:
        """Take no new work from now on."""
        self._draining = True

    async def events(
        self,
        engine: Engine,
        order: Order,
        *,
        timeout_seconds: float,
        fetch: Callable[[], Awaitable[Mapping[str, Arranged]]] | None = None,
    ) -> AsyncGenerator[Accepted | Progress | Done]:
        """Run an order to its end: first `Accepted`, then all that the engine says of it, `Done` at last.

        `fetch` brings the adapters of the order's LoRAs, once there is room for the order.

        Closing the generator early, or cancelling who waits for it, frees the order's trajectories before their
        next step.

        Raises:
            Draining, TooExpensive, Overloaded, DeviceLent, EngineStopped: it was not accepted.
            DeadlineExceeded: it took longer than `timeout_seconds`, waiting included.
            DarkroomError: what the engine failed with.
        """
        async with self._accepted(engine, order, timeout_seconds) as run:
            loop = asyncio.get_running_loop()

            def hand_over(event: Event) -> None:
                with suppress(RuntimeError):  # the loop has closed: nobody listens any more
                    loop.call_soon_threadsafe(run.events.put_nowait, event)

            adapters = await self._in_time(run, fetch()) if fetch else {}
            work = engine.submit(order, hand_over, adapters)
            try:
                yield Accepted(run.estimated_seconds)
                total, done = len(order.seeds), dict.fromkeys(range(len(order.seeds)), 0.0)
                first = 0 if order.start is None else order.start.step
                while True:
                    event = await self._in_time(run, run.events.get())
                    if isinstance(event, Failed):
                        raise event.error
                    yield event
                    if isinstance(event, Done):
                        return
                    done[event.index] = (event.step - first) / (event.steps - first)
                    run.remaining_seconds = run.estimated_seconds * (1 - sum(done.values()) / total)
                    self._report()
            finally:
                work.cancel()

    async def _in_time(self, run: Run, wait: Awaitable[T]) -> T:
        # Around the wait alone: a timeout that is open across a `yield` would strike whoever holds the generator.
        try:
            async with asyncio.timeout_at(run.give_up_at):
                return await wait
        except TimeoutError as exc:
            self._metrics.cancelled_total.labels("deadline").inc()
            raise DeadlineExceeded(
                f"the images were not done within {run.timeout_seconds:g} s; allow more time or ask for less"
            ) from exc

    @asynccontextmanager
    async def _accepted(self, engine: Engine, order: Order, timeout_seconds: float) -> AsyncIterator[Run]:
        seconds = engine.costs.estimate(order)
        self._check_room(seconds, timeout_seconds)
        give_up_at = asyncio.get_running_loop().time() + timeout_seconds
        run = Run(seconds, seconds, asyncio.Queue(), timeout_seconds, give_up_at)
        with self._serving():
            with self._lock:
                self._runs.add(run)
            self._report()
            try:
                yield run
            finally:
                with self._lock:
                    self._runs.discard(run)
                self._report()

    def _check_room(self, seconds: float, timeout_seconds: float) -> None:
        """An idle service takes anything that can be done in time; a busy one what fits into the queue."""
        if self._draining:
            raise Draining
        if seconds > timeout_seconds:
            raise TooExpensive(
                f"the request would take about {seconds:.0f} s, and it has {timeout_seconds:g} s; "
                "allow more time, or ask for fewer images, fewer steps or a smaller size"
            )
        backlog, limit = self.backlog_seconds, self._max_queue_seconds
        if backlog > 0 and backlog + seconds > limit:
            raise Overloaded(
                backlog_seconds=backlog,
                limit_seconds=limit,
                retry_after_seconds=max(1, math.ceil(backlog + seconds - limit)),
            )

    def _report(self) -> None:
        self._metrics.queue_depth.set(len(self._runs))
        self._metrics.queue_estimated_seconds.set(self.backlog_seconds)
