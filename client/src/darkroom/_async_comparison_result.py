"""`AsyncComparisonResult`. `_comparison_result` is its twin: change both."""

from os import PathLike
from pathlib import Path
from typing import overload

from darkroom import _compare_calls
from darkroom._callers import AsyncCaller
from darkroom._compared import Compared, Matrix
from darkroom._files import PictureFile
from darkroom._images import Image
from darkroom._transfers import target
from darkroom.types import CompareCell, Comparison


class AsyncComparedCell(Compared):
    """One image of a comparison, as `ComparedCell`."""

    def __init__(self, run: Comparison, cell: CompareCell, call: AsyncCaller) -> None:
        super().__init__(run, cell)
        self._call = call
        self._fetched: Image | None = None

    async def image(self) -> Image:
        """The picture, fetched when it is first asked for, as `ComparedCell.image`."""
        if self._fetched is None:
            receipt = self._drawn()
            data = await self._call(_compare_calls.image(self._run, self.cell))
            self._fetched = self._image(data, receipt)
        return self._fetched


class AsyncComparisonResult(Matrix[AsyncComparedCell]):
    """`ComparisonResult` for asyncio: what it fetches is awaited, `await result["wrong", "a fox", 7].image()`.

    A notebook shows the conclusion and the verdicts, and the sheet once you have awaited it.
    """

    def __init__(self, comparison: Comparison, call: AsyncCaller) -> None:
        super().__init__(comparison, (AsyncComparedCell(comparison, cell, call) for cell in comparison.cells))
        self._call = call
        self._kept: dict[str, bytes] = {}

    async def sheet(self) -> PictureFile:
        """All pictures on one PNG, as `ComparisonResult.sheet`."""
        return PictureFile(await self._file("sheet.png"), "image/png")

    @overload
    async def report(self, path: None = None) -> str: ...
    @overload
    async def report(self, path: str | PathLike[str]) -> Path: ...
    async def report(self, path: str | PathLike[str] | None = None) -> str | Path:
        """The report as a web page, saved or as text, as `ComparisonResult.report`."""
        page = await self._file("report.html")
        if path is None:
            return page.decode()
        where = target(Path(path), "report.html")
        where.write_bytes(page)
        return where

    async def markdown(self) -> str:
        """The tables of the report in Markdown. Raises: `NotFound`."""
        return (await self._file("report.md")).decode()

    def _repr_html_(self) -> str:
        kept = self._kept.get("sheet.png")
        return self._html(None if kept is None else PictureFile(kept, "image/png"))

    async def _file(self, name: str) -> bytes:
        if name not in self._kept:
            _compare_calls.named(self.comparison, name)
            self._kept[name] = await self._call(_compare_calls.file(self.comparison, name))
        return self._kept[name]
