"""The use case of datasets: their blocking calls in threads, uploads in bounded memory."""

import asyncio
import threading
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from typing import Final, TypeVar

from darkroom.types.datasets import Dataset, DatasetFault, DatasetPage, SynthesizeRequest
from service.datasets.datasets import Datasets, check_name
from service.datasets.incoming import Incoming
from service.datasets.intake import Invalid
from service.errors import Draining, TooManyUploads

T = TypeVar("T")

THREADS: Final = 4
PIECE_BYTES: Final = 2**20
"""What of an upload is in memory before it is written."""
MAX_UPLOADS: Final = 4
"""At once. Each may hold some gigabytes on the disk, and a core while its pictures are looked at."""


class DatasetLibrary:
    """The datasets for an event loop. They are connected with the first call that needs them, so that a database
    that is down stops nothing else; each later call tries again.

    Every method may raise CatalogUnavailable and StorageUnavailable, beside what it names.
    """

    def __init__(self, connect: Callable[[], Datasets]) -> None:
        self._connect = connect
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="datasets")
        self._lock = threading.Lock()
        self._datasets: Datasets | None = None
        self._uploads = 0
        self._draining = False

    def datasets(self) -> Datasets:
        """The connected datasets, for those who are in a thread of their own. Blocks."""
        with self._lock:
            if self._datasets is None:
                self._datasets = self._connect()
            return self._datasets

    def drain(self) -> None:
        """Take no new upload from now on."""
        self._draining = True

    def close(self) -> None:
        """Take no call any more. What threads have begun, they finish; the database is its owner's to close."""
        self._threads.shutdown(wait=False)

    async def upload(
        self,
        pieces: AsyncIterable[bytes],
        *,
        boundary: bytes | None = None,
        prompt: str = "",
        invalid: Invalid = "refuse",
        name: str = "",
    ) -> Dataset:
        """The dataset that these bytes are, as `Datasets.add`: an archive, or a form of that boundary. Whatever ends
        it early, an error of `pieces` or a cancellation, adds nothing and leaves no file.

        Raises:
            InvalidArchive, InvalidDataset, EmptyDataset, DatasetTooLarge, InvalidOption
            StorageFull, TooManyUploads, Draining
        """
        check_name(name)  # before gigabytes are on their way
        async with self._received(pieces, boundary) as (datasets, incoming):
            return await self._in_thread(
                lambda: datasets.add(incoming, prompt=prompt, invalid=invalid, name=name),
                give_up=incoming.give_up,
            )

    async def add_pictures(
        self,
        pictures: Iterable[tuple[str, bytes, str]],
        *,
        name: str = "",
        synthesis: SynthesizeRequest | None = None,
        model: str = "",
        faults: Iterable[DatasetFault] = (),
    ) -> Dataset:
        """The dataset of pictures that we made, as `Datasets.add_pictures`. Raises EmptyDataset, StorageFull."""
        return await self._asked(
            lambda datasets: datasets.add_pictures(
                pictures, name=name, synthesis=synthesis, model=model, faults=faults
            )
        )

    async def made_by(self, synthesis: SynthesizeRequest, model: str) -> Dataset | None:
        """What this synthesis has given before, as `Datasets.made_by`."""
        return await self._asked(lambda datasets: datasets.made_by(synthesis, model))

    async def get(self, id: str) -> Dataset:
        """A dataset with all its pictures. Raises DatasetNotFound."""
        return await self._asked(lambda datasets: datasets.get(id))

    async def list(self, *, limit: int = 50, cursor: str = "") -> DatasetPage:
        """Some datasets, the newest first. Raises InvalidCursor."""
        return await self._asked(lambda datasets: datasets.list(limit=limit, cursor=cursor))

    async def picture(self, id: str, place: int) -> bytes:
        """The PNG of one picture. Raises DatasetNotFound, PictureNotFound."""
        return await self._asked(lambda datasets: datasets.open_picture(id, place))

    async def delete(self, id: str) -> None:
        """Hide a dataset. Raises DatasetNotFound."""
        await self._asked(lambda datasets: datasets.delete(id))

    @asynccontextmanager
    async def _received(
        self, pieces: AsyncIterable[bytes], boundary: bytes | None
    ) -> AsyncIterator[tuple[Datasets, Incoming]]:
        """All that an upload brings, in a temporary file that is gone afterwards."""
        if self._draining:
            raise Draining
        if self._uploads >= MAX_UPLOADS:
            raise TooManyUploads(MAX_UPLOADS)
        files = ExitStack()
        self._uploads += 1
        try:
            datasets = await self._in_thread(self.datasets)
            incoming = await self._in_thread(lambda: files.enter_context(datasets.receive(boundary)))
            held = bytearray()
            async for piece in pieces:
                held += piece
                if len(held) >= PIECE_BYTES:
                    await self._in_thread(partial(incoming.write, bytes(held)))
                    held.clear()
            await self._in_thread(partial(incoming.write, bytes(held)))
            yield datasets, incoming
        finally:
            self._uploads -= 1
            await self._in_thread(files.close)

    async def _asked(self, question: Callable[[Datasets], T]) -> T:
        return await self._in_thread(lambda: question(self.datasets()))

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
