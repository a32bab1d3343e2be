"""What use cases of work that goes on by itself have in common: its events are rows, and readers follow them."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Final, Generic, Protocol, TypeVar

from service.blocking import Blocking
from service.errors import TooManyReaders

POLL_SECONDS: Final = 0.2
"""Between two looks at the table for a reader of events. They are rows, so that any replica can tell of them."""
EVENTS_AT_ONCE: Final = 500
MAX_READERS: Final = 200
"""Streams of events at once, of one kind of work: each of them looks at the table."""


class Numbered(Protocol):
    """An event: a reader goes on after the last `id` that it knows."""

    @property
    def id(self) -> int: ...


Store = TypeVar("Store")
Event = TypeVar("Event", bound=Numbered)
End = TypeVar("End")


class Followed(Blocking[Store], Generic[Store, Event, End]):
    """Work in a store, followed by event loops. A class of it says what the store answers, in threads:"""

    def __init__(
        self, connect: Callable[[], Store], *, name: str, poll_seconds: float = POLL_SECONDS
    ) -> None:
        super().__init__(connect, name=name)
        self._poll_seconds = poll_seconds
        self._readers = 0

    def _has_ended(self, store: Store, id: str) -> bool:
        """Whether it goes on no more. Raises where there is no such work."""
        raise NotImplementedError

    def _events_after(self, store: Store, id: str, after: int) -> Sequence[Event]:
        """What has happened to it after that event, `EVENTS_AT_ONCE` of it at most."""
        raise NotImplementedError

    def _whole(self, store: Store, id: str) -> End:
        """It, as it stands."""
        raise NotImplementedError

    async def check(self, id: str) -> None:
        """Return if there is such work. Raises where there is none."""
        await self._asked(lambda store: self._has_ended(store, id))

    async def past_events(self, id: str, *, after: int = 0) -> Sequence[Event]:
        """What has happened to it after that event, `EVENTS_AT_ONCE` of it at most. Raises where there is none."""
        await self.check(id)
        return await self._batch(id, after)

    async def events(self, id: str, *, after: int = 0) -> AsyncGenerator[Event | End, None]:
        """What happens to it after that event, as it happens; at last the whole, once it has ended.

        Raises:
            Draining, TooManyReaders; and where there is no such work.
        """
        if self._readers >= MAX_READERS:
            raise TooManyReaders(MAX_READERS)
        self._readers += 1
        try:
            async with aclosing(self._followed(id, after)) as followed:
                async for told in followed:
                    yield told
        finally:
            self._readers -= 1

    async def _followed(self, id: str, after: int) -> AsyncGenerator[Event | End, None]:
        ended = await self._asked(lambda store: self._has_ended(store, id))
        while True:
            batch = await self._batch(id, after)
            for event in batch:
                yield event
                after = event.id
            if batch:
                # Asked before the events that are looked for next: where it has ended, those are the last.
                ended = await self._asked(lambda store: self._has_ended(store, id))
            elif ended:
                yield await self._asked(lambda store: self._whole(store, id))
                return
            else:
                self._refuse_while_draining()
                await asyncio.sleep(self._poll_seconds)

    async def _batch(self, id: str, after: int) -> Sequence[Event]:
        return await self._asked(lambda store: self._events_after(store, id, after))
