"""`client.comparisons` of `AsyncDarkroom`. `_comparisons` is its twin: change both."""

import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing
from os import PathLike
from pathlib import Path

from darkroom import _compare_calls
from darkroom._async_comparison_result import AsyncComparisonResult
from darkroom._callers import AsyncCaller, AsyncListener
from darkroom._errors import CompareFailed
from darkroom._files import PictureFile
from darkroom._paging import async_every
from darkroom._progress_bar import CompareLine, OnEvent, shown
from darkroom._transfers import Download, target
from darkroom._transfers import Told as Moved
from darkroom.types import CompareCell, CompareEvent, ComparePlan, CompareRequest, Comparison, RunState


class AsyncComparisons:
    """`Comparisons` for asyncio: the same methods and arguments, awaited; `list` and `events` with `async for`."""

    def __init__(self, call: AsyncCaller, listen: AsyncListener) -> None:
        self._call, self._listen = call, listen

    async def create(self, request: CompareRequest) -> Comparison:
        """Begin a comparison, as `Comparisons.create`."""
        return await self._call(_compare_calls.create(request, uuid.uuid4().hex))

    async def plan(self, request: CompareRequest) -> ComparePlan:
        """What a comparison would come to; nothing is begun."""
        return await self._call(_compare_calls.plan(request))

    async def get(self, run: Comparison | str) -> Comparison:
        """A comparison as it stands. Raises: `NotFound`."""
        return await self._call(_compare_calls.get(run))

    async def list(self, *, state: RunState | None = None) -> AsyncIterator[Comparison]:
        """All comparisons, or those in one state, as `Comparisons.list`."""
        async for run in async_every(
            lambda cursor: self._call(_compare_calls.page(state=state, cursor=cursor))
        ):
            yield run

    async def cancel(self, run: Comparison | str) -> Comparison:
        """Have a comparison end, as `Comparisons.cancel`."""
        return await self._call(_compare_calls.cancel(run))

    async def events(self, run: Comparison | str, *, after: int = 0) -> AsyncIterator[CompareEvent]:
        """What happens to a comparison, as `Comparisons.events`."""
        async with aclosing(self._listen(_compare_calls.followed(run), after, None)) as listening:
            async for told in listening:
                if isinstance(told, CompareEvent):
                    yield told

    async def wait(
        self,
        run: Comparison | str,
        *,
        on_event: bool | OnEvent[CompareEvent] = True,
        timeout_seconds: float | None = None,
    ) -> AsyncComparisonResult:
        """What a comparison found, as `Comparisons.wait`; a function that hears of it is not awaited."""
        found = await self.get(run)
        events = self._listen(_compare_calls.followed(run), 0, timeout_seconds)
        with shown(on_event, CompareLine(found)) as hear:
            async with aclosing(events) as listening:
                async for told in listening:
                    if isinstance(told, CompareEvent):
                        hear(told)
                    else:
                        found = told
        if found.state != "succeeded":
            raise CompareFailed(found)
        return AsyncComparisonResult(found, self._call)

    async def result(self, run: Comparison | str) -> AsyncComparisonResult:
        """What there is of a comparison by now, as `Comparisons.result`."""
        return AsyncComparisonResult(await self.get(run), self._call)

    async def image(self, run: Comparison | str, cell: CompareCell | int) -> PictureFile:
        """The picture of a cell, by its index. Raises: `NotFound`."""
        return PictureFile(await self._call(_compare_calls.image(run, cell)), "image/png")

    async def file(self, run: Comparison | str, name: str) -> bytes:
        """The bytes of one of its files, `comparison.json`. Raises: `NotFound`."""
        return await self._call(_compare_calls.file(run, name))

    async def download(
        self, run: Comparison | str, name: str, path: str | PathLike[str], *, progress: Moved | None = None
    ) -> Path:
        """One of its files, and where it is now, as `Comparisons.download`."""
        digest = _compare_calls.named(await self.get(run), name).digest
        with Download(target(Path(path), name), digest=digest, progress=progress) as download:
            await self._call(_compare_calls.download(run, name, download))
            return download.finish()
