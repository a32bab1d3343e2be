"""An answer as server-sent events: progress while the work is done, then the result, or what went wrong.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Literal, TypeAlias

from starlette.responses import Response

from service.api import negotiation, problems
from service.api.answer import Receive, Send
from service.api.exchange import Scope
from service.api.in_flight import InFlight
from service.api.refusals import Disconnected
from service.engine.orders import Progress

HEARTBEAT_SECONDS = 10.0
"""Proxies close a connection on which nothing is said for a while; half a minute is the shortest in common use."""
HEADERS = {"Cache-Control": "no-store", "Vary": "Accept", "X-Accel-Buffering": "no"}

Name: TypeAlias = Literal["accepted", "progress", "result", "error"]
Event: TypeAlias = Any
"""Of a use case; the caller of `EventStream` knows how to write it down."""
AsJson: TypeAlias = Callable[[Event], tuple[Name, str]]
"""Name and data of an event; called in a thread."""


class EventStream(Response):
    """Works while it answers, as long as its reader stays.

    An error before the first event is raised, and so answered like any other; one after it becomes the last
    event. A stream that its reader does not leave has exactly one `result` or `error`, at its end.
    """

    def __init__(
        self,
        events: AsyncGenerator[Event],
        in_flight: InFlight,
        as_json: AsJson,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._events, self._in_flight, self._as_json = events, in_flight, as_json
        self._heartbeat_seconds = heartbeat_seconds
        self.status_code, self.media_type, self.background = 200, negotiation.EVENT_STREAM, None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = Writer(self, send)
        try:
            await self._in_flight.run(self._deliver(writer), receive)
        except Exception as error:  # the edge of the process: every error becomes an answer
            if not writer.started:
                raise
            if writer.ended:
                return
            problem = problems.problem_of(error, scope)
            if not isinstance(error, Disconnected):
                await writer.write("error", problem.model_dump_json(exclude_none=True))

    async def _deliver(self, writer: "Writer") -> None:
        mailbox = Mailbox()
        filling = asyncio.create_task(mailbox.fill(self._events))
        try:
            while not writer.ended:
                try:
                    async with asyncio.timeout(self._heartbeat_seconds):
                        event = await mailbox.take()
                except TimeoutError:
                    await writer.beat()
                    continue
                if isinstance(event, Exception):
                    raise event
                name, data = await asyncio.to_thread(self._as_json, event)
                await writer.write(name, data)
        finally:
            filling.cancel()
            await asyncio.wait({filling})


class Writer:
    """Puts events on the wire, numbered from 1. The first begins the answer; a result or an error ends it."""

    def __init__(self, response: Response, send: Send) -> None:
        self._response, self._send = response, send
        self._count = 0
        self.ended = False

    @property
    def started(self) -> bool:
        return self._count > 0

    async def write(self, name: Name, data: str) -> None:
        """Send one event; its data is JSON on one line."""
        self._count += 1
        if self._count == 1:
            start = {"status": self._response.status_code, "headers": self._response.raw_headers}
            await self._send({"type": "http.response.start", **start})
        self.ended = name in ("result", "error")
        frame = f"id: {self._count}\nevent: {name}\ndata: {data}\n\n"
        await self._pass_on(frame)

    async def beat(self) -> None:
        """Say nothing, audibly: readers skip comments."""
        if self.started:
            await self._pass_on(": still at work\n\n")

    async def _pass_on(self, text: str) -> None:
        message = {"type": "http.response.body", "body": text.encode(), "more_body": not self.ended}
        await self._send(message)


class Mailbox:
    """Events on their way to a reader who may be slower than the engine: of each image only the newest step waits."""

    def __init__(self) -> None:
        self._waiting: dict[object, Event | Exception] = {}
        self._filled = asyncio.Event()

    async def fill(self, events: AsyncGenerator[Event]) -> None:
        """Take in all events, and what they break off with."""
        try:
            async with aclosing(events):
                async for event in events:
                    self._put(event)
        except Exception as error:  # handed on to the reader, who raises it
            self._put(error)

    async def take(self) -> Event | Exception:
        """The event that has waited longest; what ends them comes last."""
        await self._filled.wait()
        event = self._waiting.pop(next(iter(self._waiting)))
        if not self._waiting:
            self._filled.clear()
        return event

    def _put(self, event: Event | Exception) -> None:
        # A newer step takes the place of the older one in the row, so that no image is passed over for ever.
        self._waiting[event.index if isinstance(event, Progress) else type(event)] = event
        self._filled.set()
