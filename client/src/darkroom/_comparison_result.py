"""`ComparisonResult`, what a comparison comes to. `_async_comparison_result` is its twin: change both."""

from os import PathLike
from pathlib import Path
from typing import overload

from darkroom import _compare_calls
from darkroom._callers import Caller
from darkroom._compared import Compared, Matrix
from darkroom._errors import DarkroomError
from darkroom._files import PictureFile
from darkroom._images import Image
from darkroom._transfers import target
from darkroom.types import CompareCell, Comparison


class ComparedCell(Compared):
    """One image of a comparison."""

    def __init__(self, run: Comparison, cell: CompareCell, call: Caller) -> None:
        super().__init__(run, cell)
        self._call = call
        self._fetched: Image | None = None

    @property
    def image(self) -> Image:
        """The picture, fetched when it is first asked for.

        Raises: the error that a request of its own would have met, where it failed; `NotFound` before it is drawn.
        """
        if self._fetched is None:
            receipt = self._drawn()
            data = self._call(_compare_calls.image(self._run, self.cell))
            self._fetched = self._image(data, receipt)
        return self._fetched

    def _repr_png_(self) -> bytes | None:
        return self.image.data if self.state == "done" else None


class ComparisonResult(Matrix[ComparedCell]):
    """What a comparison found. Cells are had by arm, prompt and seed; pictures and files are fetched as you ask.

    >>> arms = {"plain": {}, "blurry": {"negative_prompt": "blurry"}}
    >>> result = client.compare("a fox", seeds=[7, 8], arms=arms)
    >>> result
    <ComparisonResult cmp_1 succeeded: 2 arms × 1 prompt × 2 seeds, 4 of 4 cells>
    >>> result["blurry", "a fox", 7].image
    <Image 64×64 image/png, 0.4 kB, seed 7>
    >>> [cell.state for cell in result["plain"]]
    ['done', 'done']
    >>> list(result.differences("contrast", "blurry"))
    [('a fox', 7), ('a fox', 8)]
    >>> result.report(folder / "out.html").name
    'out.html'
    """

    def __init__(self, comparison: Comparison, call: Caller) -> None:
        super().__init__(comparison, (ComparedCell(comparison, cell, call) for cell in comparison.cells))
        self._call = call
        self._kept: dict[str, bytes] = {}

    def sheet(self) -> PictureFile:
        """All pictures on one PNG, arms side by side. Raises: `NotFound` where there is none yet."""
        return PictureFile(self._file("sheet.png"), "image/png")

    @overload
    def report(self, path: None = None) -> str: ...
    @overload
    def report(self, path: str | PathLike[str]) -> Path: ...
    def report(self, path: str | PathLike[str] | None = None) -> str | Path:
        """The report as a web page that needs nothing else: saved at `path`, or in that folder, or as text.

        Raises: `NotFound`.
        """
        page = self._file("report.html")
        if path is None:
            return page.decode()
        where = target(Path(path), "report.html")
        where.write_bytes(page)
        return where

    def markdown(self) -> str:
        """The tables of the report in Markdown. Raises: `NotFound`."""
        return self._file("report.md").decode()

    def _repr_html_(self) -> str:
        try:
            return self._html(self.sheet())
        except DarkroomError:  # a notebook shows what there is
            return self._html(None)

    def _file(self, name: str) -> bytes:
        if name not in self._kept:
            _compare_calls.named(self.comparison, name)
            self._kept[name] = self._call(_compare_calls.file(self.comparison, name))
        return self._kept[name]
