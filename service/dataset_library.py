"""The use case of datasets: their blocking calls in threads, uploads in bounded memory."""

from collections.abc import AsyncIterable, Callable, Iterable
from typing import Final

from darkroom.types.datasets import Dataset, DatasetFault, DatasetPage, SynthesizeRequest
from service.blocking import Receiving
from service.datasets.datasets import Datasets, check_name
from service.datasets.intake import Invalid

MAX_UPLOADS: Final = 4
"""At once. Each may hold some gigabytes on the disk, and a core while its pictures are looked at."""


class DatasetLibrary(Receiving[Datasets]):
    """The datasets for an event loop. The database is its owner's to close.

    Every method may raise CatalogUnavailable and StorageUnavailable, beside what it names.
    """

    def __init__(self, connect: Callable[[], Datasets]) -> None:
        super().__init__(connect, name="datasets", max_uploads=MAX_UPLOADS)

    def datasets(self) -> Datasets:
        """The connected datasets, for those who are in a thread of their own. Blocks."""
        return self._connected()

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
        receiving = self._received(pieces, lambda datasets: datasets.receive(boundary))
        async with receiving as (datasets, incoming):
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
