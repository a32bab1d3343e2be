"""Lists that the service gives page by page, as one."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Protocol, TypeVar

Item_co = TypeVar("Item_co", covariant=True)


class Page(Protocol[Item_co]):
    """Some of a list."""

    @property
    def items(self) -> Sequence[Item_co]: ...

    @property
    def next_cursor(self) -> str:
        """What leads to the page after; empty on the last one."""
        ...


def every(page: Callable[[str], Page[Item_co]]) -> Iterator[Item_co]:
    """All items, each page asked for when its first item is. `page` takes a cursor, at first an empty one."""
    cursor = ""
    while True:
        found = page(cursor)
        yield from found.items
        cursor = found.next_cursor
        if not cursor:
            return


async def async_every(page: Callable[[str], Awaitable[Page[Item_co]]]) -> AsyncIterator[Item_co]:
    """The same where a page is awaited."""
    cursor = ""
    while True:
        found = await page(cursor)
        for item in found.items:
            yield item
        cursor = found.next_cursor
        if not cursor:
            return
