"""What the resources of the two clients are given to talk to the service with."""

from collections.abc import AsyncGenerator, Generator
from typing import Protocol, TypeVar

from darkroom._calls import Call
from darkroom._following import EndT, EventT, Followed

T = TypeVar("T")


class Caller(Protocol):
    """Makes a call, as the client that it belongs to does."""

    def __call__(self, call: Call[T], /) -> T: ...


class Listener(Protocol):
    """Hears of a job or a comparison until its end, which it gives last. `timeout_seconds` bounds all of it."""

    def __call__(
        self, followed: Followed[EventT, EndT], after: int, timeout_seconds: float | None, /
    ) -> Generator[EventT | EndT, None, None]: ...


class AsyncCaller(Protocol):
    """`Caller` for asyncio."""

    async def __call__(self, call: Call[T], /) -> T: ...


class AsyncListener(Protocol):
    """`Listener` for asyncio."""

    def __call__(
        self, followed: Followed[EventT, EndT], after: int, timeout_seconds: float | None, /
    ) -> AsyncGenerator[EventT | EndT, None]: ...
