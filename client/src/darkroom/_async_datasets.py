"""`client.datasets` of `AsyncDarkroom`. `_datasets` is its twin: change both."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from typing import Unpack

from darkroom import _dataset_calls
from darkroom._callers import AsyncCaller, AsyncReader
from darkroom._dataset_calls import Invalid, SynthesisOptions
from darkroom._files import PictureFile
from darkroom._packing import Pictures, archive_of
from darkroom._paging import async_every
from darkroom._transfers import Told, Upload
from darkroom.types import Dataset, DatasetSummary
from darkroom.types.datasets import SynthesisRecipe


class AsyncDatasetLibrary:
    """`DatasetLibrary` for asyncio: the same methods and arguments, awaited; `list` with `async for`."""

    def __init__(self, call: AsyncCaller, read: AsyncReader) -> None:
        self._call, self._read = call, read

    async def upload(
        self,
        pictures: Pictures,
        *,
        prompt: str = "",
        invalid: Invalid = "refuse",
        name: str = "",
        progress: Told | None = None,
    ) -> Dataset:
        """Send pictures and get their dataset, as `DatasetLibrary.upload`."""
        with ExitStack() as files:
            archive = await asyncio.to_thread(files.enter_context, archive_of(pictures))
            upload = await asyncio.to_thread(Upload, archive, progress)
            return await self._call(_dataset_calls.upload(upload, prompt=prompt, invalid=invalid, name=name))

    async def synthesize(
        self,
        recipe: SynthesisRecipe | None = None,
        *,
        progress: Told | None = None,
        **options: Unpack[SynthesisOptions],
    ) -> Dataset:
        """Have the service make pictures, as `DatasetLibrary.synthesize`; `progress` is not awaited."""
        call = _dataset_calls.synthesize(_dataset_calls.synthesis(recipe, options))
        async with aclosing(self._read(call, _dataset_calls.of_synthesis)) as events:
            return await anext(
                made async for event in events if (made := _dataset_calls.heard(event, progress))
            )

    async def get(self, dataset: Dataset | DatasetSummary | str) -> Dataset:
        """A dataset by its id, with all its pictures. Raises: `NotFound`."""
        return await self._call(_dataset_calls.get(dataset))

    async def list(self) -> AsyncIterator[DatasetSummary]:
        """All datasets, the newest first, page by page as you go."""
        async for dataset in async_every(lambda cursor: self._call(_dataset_calls.page(cursor))):
            yield dataset

    async def picture(self, dataset: Dataset | DatasetSummary | str, place: int) -> PictureFile:
        """One picture as it is kept, by its place among `.pictures`, from 0. Raises: `NotFound`."""
        return await self._call(_dataset_calls.picture(dataset, place))

    async def delete(self, dataset: Dataset | DatasetSummary | str) -> None:
        """Delete a dataset; the same upload brings it back. Raises: `NotFound`."""
        await self._call(_dataset_calls.delete(dataset))
