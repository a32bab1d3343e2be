"""What happens to long work, kept as rows: told as a list, or as server-sent events until the work has ended."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from typing import Annotated, Final, TypeAlias

from fastapi import Header, Query, Request
from starlette.responses import Response

from darkroom.types import CompareEvent, Comparison, JobEvent, TrainJob
from service.api import negotiation, problems
from service.api.answer import Receive, Send
from service.api.exchange import Scope
from service.api.in_flight import InFlight
from service.api.refusals import Disconnected
from service.api.stream import HEADERS

HEARTBEAT_SECONDS: Final = 15.0
"""A reader that hears nothing for four of these takes the connection for broken."""

Row: TypeAlias = JobEvent | CompareEvent
Work: TypeAlias = TrainJob | Comparison

After = Annotated[int, Query(ge=0, le=2**31 - 1, description="Id of the last event that is known.")]
LastEventId = Annotated[
    int | None, Header(ge=0, le=2**31 - 1, description="As `after`; sent by readers that come back.")
]

_HEARTBEAT: Final = ": still at work\n\n"


def content(row: type[Row], work: type[Work]) -> dict[str, object]:
    """OpenAPI 3.1 has no schema for the single events of a stream; their classes are among the components."""
    text = (
        f"Server-sent events with JSON in `data`: each `{row.__name__}` under its `type` and with its `id`, at last "
        f"`done` (`{work.__name__}`), or `error` (`Problem`) where another replica has to go on. Comments are "
        "heartbeats."
    )
    return {negotiation.EVENT_STREAM: {"schema": {"type": "string", "description": text}}}


def wants_list(request: Request) -> bool:
    """Whether the caller would rather have a list of what has happened so far than a stream.

    Raises:
        NotAcceptable: the caller accepts neither.
    """
    offers = (negotiation.EVENT_STREAM, negotiation.JSON)
    return negotiation.chosen(offers, ",".join(request.headers.getlist("accept"))) == negotiation.JSON


def listed(rows: Iterable[Row]) -> Response:
    """The answer with these events in a list."""
    body = ",".join(row.model_dump_json(exclude_none=True) for row in rows)
    return Response(f"[{body}]", headers={"Vary": "Accept"}, media_type=negotiation.JSON)


class RowStream(Response):
    """Begins to answer at once: the next event may be hours away.

    Each event is sent under its type and with its id, by which another stream goes on. At the end comes `done` with
    the work as it is then, or `error` with a problem, where this replica cannot go on.
    """

    def __init__(
        self,
        told: AsyncGenerator[Row | Work, None],
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
        step: asyncio.Task[Row | Work] | None = None
        try:
            while True:
                step = step or asyncio.ensure_future(anext(self._told))
                await asyncio.wait({step}, timeout=self._heartbeat_seconds)
                if not step.done():
                    await _write(send, _HEARTBEAT)
                    continue
                told, step = step.result(), None
                await _write(send, _frame(told))
                if isinstance(told, Work):
                    return
        finally:
            if step is not None:
                step.cancel()
                await asyncio.wait({step})
            await self._told.aclose()


def _frame(told: Row | Work) -> str:
    if isinstance(told, Work):
        # With every null, as where it is got by itself: in the settings of an arm a null is a value.
        return f"event: done\ndata: {told.model_dump_json()}\n\n"
    return f"id: {told.id}\nevent: {told.type}\ndata: {told.model_dump_json(exclude_none=True)}\n\n"


async def _write(send: Send, text: str, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": text.encode(), "more_body": more})
