"""A picture in the making: the events of a stream as typed values, and the two iterators over them."""

import math
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Generic, Self, TypeAlias, TypeVar

from pydantic import BaseModel, ValidationError

from darkroom._calls import Call
from darkroom._connection import Connection
from darkroom._errors import APIError, BadResponse, ConnectionFailed, DarkroomError, api_error
from darkroom._exchange import Failure, Outside, error_of
from darkroom._files import PictureFile, decoded
from darkroom._images import Generation
from darkroom._sse import Parser, ServerSentEvent
from darkroom.types import Accepted, GenerateResponse, Problem
from darkroom.types import Progress as WireProgress

SILENCE_SECONDS = 60.0
"""The service says something every quarter of a minute: a connection that is silent for longer is broken."""

E = TypeVar("E")
Model = TypeVar("Model", bound=BaseModel)


@dataclass(frozen=True)
class Progress:
    """One image has made one step."""

    index: int
    """Of the image, as in the generation."""
    step: int
    """Steps done, of `steps`."""
    steps: int
    preview: PictureFile | None = None
    """With `previews=True`: a small PNG of the present estimate, one pixel a latent; the last step has none."""


StreamEvent: TypeAlias = Accepted | Progress | Generation
"""What a stream gives: `Accepted`, then `Progress` for the steps, at last the `Generation`."""


class Reading(Generic[E]):
    """What the bytes of one stream say. Without I/O: a client opens the stream and passes on what comes.

    `understand` makes values of what was sent, and None of what this client has not heard of; `is_last` knows the
    value that ends a stream.
    """

    def __init__(
        self,
        call: Call[bytes],
        connection: Connection,
        outside: Outside,
        understand: Callable[[ServerSentEvent, Call[bytes]], E | None],
        is_last: Callable[[E], bool],
    ) -> None:
        self.call = call
        self._connection, self._outside = connection, outside
        self._understand, self._is_last = understand, is_last
        self._parser = Parser()
        self._response: Any = None
        self._give_up_at = math.inf
        self.ended = False
        """Whether the last value has come."""

    def begin(self, response: Any, give_up_at: float) -> None:
        """Note what is to be read; all of it has to come by then."""
        self._response, self._give_up_at = response, give_up_at

    def opened(self, body: bytes) -> Any:
        """The library's response to read from.

        Raises: `BadResponse` where the answer was none, but had this body.
        """
        if self._response is None:
            reason = f"{self.call} was not answered with a stream of events; is a proxy in between?"
            raise BadResponse(200, reason, body[:800].decode(errors="replace")[:200])
        return self._response

    def feed(self, chunk: bytes) -> Iterator[E]:
        """The values that this chunk completes.

        Raises: the `APIError` that the stream ends in; `BadResponse`; `Timeout` when the time is up.
        """
        for sent in self._parser.feed(chunk):
            value = None if self.ended else self._understand(sent, self.call)
            if value is not None:
                self.ended = self._is_last(value)
                yield value
        if not self.ended and self._outside.now() > self._give_up_at:
            raise self.broken(Failure("timeout"))

    def broken(self, failure: Failure) -> DarkroomError:
        """The error of a stream that cannot be read on."""
        total_seconds = self._connection.timeouts.total_seconds
        return error_of(failure, self.call, self._connection, total_seconds)

    def cut_short(self) -> ConnectionFailed:
        """The error of a stream that stopped before its end."""
        return ConnectionFailed(f"the stream from {self._connection.base_url} stopped before its result")


class LongReading(Reading[E]):
    """The reading of a stream of events whose time is not that of its opening: all of it has to come by `ends_at`."""

    def __init__(
        self,
        call: Call[bytes],
        connection: Connection,
        outside: Outside,
        ends_at: float,
        understand: Callable[[ServerSentEvent, Call[bytes]], E | None],
        is_last: Callable[[E], bool],
    ) -> None:
        super().__init__(call, connection, outside, understand, is_last)
        self._ends_at = ends_at

    def begin(self, response: Any, give_up_at: float) -> None:  # noqa: ARG002
        super().begin(response, self._ends_at)


def of_pictures(call: Call[bytes], connection: Connection, outside: Outside) -> Reading[StreamEvent]:
    """The reading of a stream of `generate`, which its generation ends."""
    return Reading(call, connection, outside, _picture_event, lambda event: isinstance(event, Generation))


def read_as(model: type[Model], sent: ServerSentEvent, call: Call[bytes]) -> Model:
    """The data of an event.

    Raises: `BadResponse`
    """
    try:
        return model.model_validate_json(sent.data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        reason = f"the event {sent.event!r} of {call} cannot be read: {first['msg']}"
        raise BadResponse(200, reason, sent.data[:200]) from error


def told_error(sent: ServerSentEvent, call: Call[bytes]) -> APIError:
    """The error that a stream ends in."""
    problem = read_as(Problem, sent, call)
    return api_error(problem, problem.status, None)


def _picture_event(sent: ServerSentEvent, call: Call[bytes]) -> StreamEvent | None:
    match sent.event:
        case "accepted":
            return read_as(Accepted, sent, call)
        case "progress":
            return _progress(read_as(WireProgress, sent, call))
        case "result":
            return Generation.from_response(read_as(GenerateResponse, sent, call))
        case "error":
            raise told_error(sent, call)
    return None  # of a service that is newer than this client


def _progress(told: WireProgress) -> Progress:
    preview = None
    if told.preview_b64 is not None:
        preview = PictureFile(decoded(told.preview_b64, what=f"a preview of image {told.index}"), "image/png")
    return Progress(told.index, told.step, told.steps, preview)


class Stream(Iterator[StreamEvent]):
    """The events of one request, as they come. `with`, or `close`, ends it early and stops the service's work."""

    def __init__(self, events: Generator[StreamEvent, None, None]) -> None:
        self._events = events

    def __next__(self) -> StreamEvent:
        return next(self._events)

    def close(self) -> None:
        """Hang up. Idempotent; after the last event there is nothing left to do."""
        self._events.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class AsyncStream:
    """`Stream` for asyncio: `async with`, `async for`."""

    def __init__(self, events: AsyncGenerator[StreamEvent, None]) -> None:
        self._events = events

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        return await anext(self._events)

    async def close(self) -> None:
        """Hang up. Idempotent; after the last event there is nothing left to do."""
        await self._events.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
