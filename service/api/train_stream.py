"""The events of a train job as server-sent events, for as long as its reader stays or until it has ended."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from starlette.responses import Response

from darkroom.types import JobEvent, TrainJob
from service.api import negotiation, problems
from service.api.answer import Receive, Send
from service.api.exchange import Scope
from service.api.in_flight import InFlight
from service.api.refusals import Disconnected
from service.api.stream import HEADERS

HEARTBEAT_SECONDS: Final = 15.0
"""A reader that hears nothing for four of these takes the connection for broken."""

_HEARTBEAT: Final = ": still at work\n\n"


class JobEventStream(Response):
    """Begins to answer at once: the next event may be hours away.

    Each event is sent under its type and with its id, by which another stream goes on. At the end comes `done` with
    the job, or `error` with a problem, where this replica cannot go on.
    """

    def __init__(
        self,
        told: AsyncGenerator[JobEvent | TrainJob, None],
        in_flight: InFlight,
        *,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
    ) -> None:
        self._told, self._in_flight, self._heartbeat_seconds = told, in_flight, heartbeat_seconds
        self.status_code, self.media_type, self.background = 200, negotiation.EVENT_STREAM, None
        self.init_headers(HEADERS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        await _write(send, _HEARTBEAT)
        try:
            await self._in_flight.run(self._deliver(send), receive)
        except Disconnected:  # which ends nothing but the reading
            return
        except Exception as error:  # the edge of the process: every error becomes an answer
            problem = problems.problem_of(error, scope)
            await _write(send, f"event: error\ndata: {problem.model_dump_json(exclude_none=True)}\n\n")
            await _write(send, "", more=False)
        else:
            await _write(send, "", more=False)

    async def _deliver(self, send: Send) -> None:
        step: asyncio.Task[JobEvent | TrainJob] | None = None
        try:
            while True:
                step = step or asyncio.ensure_future(anext(self._told))
                await asyncio.wait({step}, timeout=self._heartbeat_seconds)
                if not step.done():
                    await _write(send, _HEARTBEAT)
                    continue
                told, step = step.result(), None
                await _write(send, _frame(told))
                if isinstance(told, TrainJob):
                    return
        finally:
            if step is not None:
                step.cancel()
                await asyncio.wait({step})
            await self._told.aclose()


def _frame(told: JobEvent | TrainJob) -> str:
    data = told.model_dump_json(exclude_none=True)
    if isinstance(told, TrainJob):
        return f"event: done\ndata: {data}\n\n"
    return f"id: {told.id}\nevent: {told.type}\ndata: {data}\n\n"


async def _write(send: Send, text: str, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
