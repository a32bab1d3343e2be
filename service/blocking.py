"""What use cases over something that blocks have in common: one connection, its calls in threads, uploads in pieces."""

import asyncio
import threading
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import BinaryIO, Final, Generic, Protocol, TypeVar

from lora_registry.export import original
from service.errors import Draining, TooManyUploads

Store = TypeVar("Store")
T = TypeVar("T")

THREADS: Final = 4
PIECE_BYTES: Final = 2**20
"""What of an upload is in memory before it is written. A server hands on less at a time than a disk likes."""


class Writable(Protocol):
    """A file on its way in."""

    def write(self, piece: bytes) -> None: ...


Incoming = TypeVar("Incoming", bound=Writable)


class Described(Protocol):
    """What is known of a kept file."""

    @property
    def size_bytes(self) -> int: ...

    @property
    def digest(self) -> str: ...

    @property
    def media_type(self) -> str: ...


File = TypeVar("File", bound=Described)


@dataclass(frozen=True)
class ToSend(Generic[File]):
    """A file to be sent. `pieces` is to be taken once; to close it lets go of the file."""

    file: File
    pieces: AsyncGenerator[bytes, None] = field(repr=False)


class Blocking(Generic[Store]):
    """A store for an event loop. It is connected with the first call that needs it, so that a database that is down
    stops nothing else; each later call tries again.
    """

    def __init__(self, connect: Callable[[], Store], *, name: str) -> None:
        self._connect = connect
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._failures = 0
        self._failure: Exception | None = None
        self._draining = False

    def drain(self) -> None:
        """Begin nothing new from now on."""
        self._draining = True

    def close(self) -> None:
        """Take no call any more. What threads have begun, they finish."""
        self._threads.shutdown(wait=False)

    def _connected(self) -> Store:
        """The store, for those who are in a thread of their own. Blocks."""
        if self._store is not None:
            return self._store
        failures = self._failures
        with self._lock:
            if self._store is None:
                # Those who waited for an attempt that failed do not each wait for one of their own.
                if self._failure is not None and self._failures != failures:
                    raise self._failure
                try:
                    self._store = self._connect()
                except Exception as exc:  # handed on to those who wait, and raised
                    self._failures, self._failure = self._failures + 1, exc
                    raise
            return self._store

    def _refuse_while_draining(self) -> None:
        if self._draining:
            raise Draining

    async def _asked(self, question: Callable[[Store], T]) -> T:
        return await self._in_thread(lambda: question(self._connected()))

    async def _in_thread(self, work: Callable[[], T], give_up: Callable[[], None] = lambda: None) -> T:
        """What `work` gives. Whoever is cancelled meanwhile leaves no thread behind that still uses their files;
        `give_up` tells a long one to make an end."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, work)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            give_up()
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()  # seen, so that it is not reported as lost
            raise

    async def _opened(self, opened: Callable[[Store], tuple[File, BinaryIO]]) -> ToSend[File]:
        """A file of the store, to send."""
        found, file = await self._asked(opened)
        return ToSend(found, self._pieces(original(file, found.size_bytes).pieces))

    async def _pieces(self, pieces: Iterator[bytes]) -> AsyncGenerator[bytes, None]:
        """A file to be sent, read in threads."""
        try:
            while (piece := await self._in_thread(partial(next, pieces, None))) is not None:
                yield piece
        finally:
            if isinstance(pieces, Generator):  # which holds the file open
                pieces.close()


class Receiving(Blocking[Store]):
    """One that takes uploads, `max_uploads` at once."""

    def __init__(self, connect: Callable[[], Store], *, name: str, max_uploads: int) -> None:
        super().__init__(connect, name=name)
        self._uploads, self._max_uploads = 0, max_uploads

    @asynccontextmanager
    async def _received(
        self, pieces: AsyncIterable[bytes], receive: Callable[[Store], AbstractContextManager[Incoming]]
    ) -> AsyncIterator[tuple[Store, Incoming]]:
        """All that an upload brings, in a temporary file that is gone afterwards, unless the store took it.

        Raises:
            TooManyUploads, Draining
        """
        self._refuse_while_draining()
        if self._uploads >= self._max_uploads:
            raise TooManyUploads(self._max_uploads)
        files = ExitStack()
        self._uploads += 1
        try:
            store = await self._in_thread(self._connected)
            incoming = await self._in_thread(lambda: files.enter_context(receive(store)))
            async for piece in _gathered(pieces):
                await self._in_thread(partial(incoming.write, piece))
            yield store, incoming
        finally:
            self._uploads -= 1
            await self._in_thread(files.close)


async def _gathered(pieces: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    """The same bytes in fewer pieces."""
    held = bytearray()
    async for piece in pieces:
        held += piece
        if len(held) >= PIECE_BYTES:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)
