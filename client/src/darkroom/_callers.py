"""What the resources of the two clients are given to talk to the service with."""

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Protocol, TypeAlias, TypeVar

from darkroom._calls import Call
from darkroom._connection import Connection
from darkroom._exchange import Outside
from darkroom._following import EndT, EventT, Followed
from darkroom._streams import Reading

T = TypeVar("T")
E = TypeVar("E")
ReadingOf: TypeAlias = Callable[[Call[bytes], Connection, Outside], Reading[E]]


class Caller(Protocol):
    """Makes a call, as the client that it belongs to does."""

    def __call__(self, call: Call[T], /) -> T: ...


class Listener(Protocol):
    """Hears of a job or a comparison until its end, which it gives last. `timeout_seconds` bounds all of it."""

    def __call__(
        self, followed: Followed[EventT, EndT], after: int, timeout_seconds: float | None, /
    ) -> Generator[EventT | EndT, None, None]: ...


class Reader(Protocol):
    """Makes a call whose answer is a stream of events, and gives them as `reading` understands them."""

    def __call__(self, call: Call[bytes], reading: ReadingOf[E], /) -> Generator[E, None, None]: ...


class AsyncReader(Protocol):
    """`Reader` for asyncio."""

    def __call__(self, call: Call[bytes], reading: ReadingOf[E], /) -> AsyncGenerator[E, None]: ...


class AsyncCaller(Protocol):
    """`Caller` for asyncio."""

    async def __call__(self, call: Call[T], /) -> T: ...


class AsyncListener(Protocol):
    """`Listener` for asyncio."""

    def __call__(
        self, followed: Followed[EventT, EndT], after: int, timeout_seconds: float | None, /
    ) -> AsyncGenerator[EventT | EndT, None]: ...
