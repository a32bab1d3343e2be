"""Pictures in labelled rows and columns, drawn by Pillow: the layout of every sheet."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.images import encode_png
from service.reports.lettering import line_height_px, wrapped

PAPER: Final = (250, 249, 246)
INK: Final = (28, 28, 30)
FAINT: Final = (96, 96, 104)
RULE: Final = (216, 214, 208)
EMPTY: Final = (238, 236, 230)
ACCENT: Final = (30, 80, 190)
TROUBLE: Final = (160, 30, 30)
SMALL_CELL_PX: Final = 128
"""What a small picture is enlarged to, by a whole factor and without smoothing."""
LARGE_CELL_PX: Final = 384
NARROWEST_PX: Final = 480
"""Of a sheet, so that its title has room."""
LABEL_PX: Final = (56, 220)
"""The least and the most width of the labels of rows."""


@dataclass(frozen=True)
class Words:
    """What stands in a cell in the place of a picture."""

    text: str
    is_trouble: bool = False


@dataclass(frozen=True)
class Column:
    """Its name, and remarks below that."""

    name: str
    note: str = ""
    is_marked: bool = False


@dataclass(frozen=True)
class Row:
    label: str
    cells: Sequence[NDArray[np.uint8] | Words]
    """One for each column."""


@dataclass(frozen=True)
class Group:
    """Rows under a heading, with the names of the columns again where there is one."""

    rows: Sequence[Row]
    heading: str = ""


@dataclass(frozen=True)
class Grid:
    columns: Sequence[Column]
    groups: Sequence[Group]
    title: str = ""
    text: Sequence[str] = ()
    """Paragraphs under the title."""
    remarks: Sequence[str] = ()
    """Smaller ones under those."""


def cell_edge(edges_px: Iterable[int]) -> int:
    """The edge of a cell that suits pictures of these longest edges: 128 px where all are small, at most 384."""
    return min(LARGE_CELL_PX, max(SMALL_CELL_PX, *edges_px, 0))


@dataclass(frozen=True)
class _Strip:
    """A part of the sheet as wide as the sheet is; `paint` is told where its top is."""

    height: int
    paint: Callable[[Image.Image, int], None]


def drawn(grid: Grid, edge_px: int) -> bytes:
    """The PNG. A cell has room for pictures of `edge_px` by `edge_px`; one that is smaller lies in its middle."""
    style = _Style.of(grid, edge_px)
    # Heights first, then one image for all: a sheet has tens of megapixels, and two of them may be too many.
    strips = list(_strips(grid, style))
    height = sum(strip.height for strip in strips) + 2 * style.margin
    image = Image.new("RGB", (style.width, height), PAPER)
    top = style.margin
    for strip in strips:
        strip.paint(image, top)
        top += strip.height
    return encode_png(np.asarray(image))


def fitted_size(pixels_HWC: NDArray[np.uint8], edge_px: int) -> tuple[int, int]:
    """(width, height) as large as fits: a small picture by a whole factor, a large one reduced."""
    height, width, _ = pixels_HWC.shape
    longest = max(height, width)
    if longest <= edge_px:
        return width * (edge_px // longest), height * (edge_px // longest)
    return max(1, round(width * edge_px / longest)), max(1, round(height * edge_px / longest))


@dataclass(frozen=True)
class _Style:
    """All lengths in pixels."""

    edge: int
    gap: int
    margin: int
    letters: int
    label: int
    """Width of the labels of rows."""
    width: int
    """Of the sheet."""

    @staticmethod
    def of(grid: Grid, edge: int) -> "_Style":
        letters = 13 if edge <= 160 else 15 if edge <= 256 else 18
        gap, margin = max(6, edge // 24), max(18, edge // 12)
        font = ImageFont.load_default(letters)
        widest = max((font.getlength(row.label) for group in grid.groups for row in group.rows), default=0)
        label = round(min(LABEL_PX[1], max(LABEL_PX[0], widest)))
        across = label + len(grid.columns) * (edge + gap)
        return _Style(edge, gap, margin, letters, label, max(NARROWEST_PX, across) + 2 * margin)

    @property
    def inner_width(self) -> int:
        return self.width - 2 * self.margin

    def left(self, column: int) -> int:
        return self.margin + self.label + self.gap + column * (self.edge + self.gap)


def _strips(grid: Grid, style: _Style) -> Iterator[_Strip]:
    if grid.title:
        yield _text(grid.title, style, style.letters + 10, INK, after=style.gap)
    for paragraph in grid.text:
        yield _text(paragraph, style, style.letters + 2, INK, after=style.gap)
    for remark in grid.remarks:
        yield _text(remark, style, style.letters, FAINT, after=style.gap // 2)
    names = _names(grid.columns, style)
    for group in grid.groups:
        if group.heading:
            yield _rule(style)
            yield _text(group.heading, style, style.letters + 4, INK, after=style.gap, max_lines=6)
        yield names
        for row in group.rows:
            yield _row(row, style)


def _text(
    text: str, style: _Style, size: int, colour: tuple[int, int, int], *, after: int, max_lines: int = 12
) -> _Strip:
    font = ImageFont.load_default(size)
    lines = wrapped(text, style.inner_width, font, max_lines)

    def paint(image: Image.Image, top: int) -> None:
        _write(image, (style.margin, top), lines, size, colour)

    return _Strip(line_height_px(size) * len(lines) + after, paint)


def _rule(style: _Style) -> _Strip:
    def paint(image: Image.Image, top: int) -> None:
        y = top + 2 * style.gap
        ImageDraw.Draw(image).line([(style.margin, y), (style.width - style.margin, y)], fill=RULE)

    return _Strip(3 * style.gap, paint)


def _names(columns: Sequence[Column], style: _Style) -> _Strip:
    """What the columns are called, each with a bar that is coloured where the column is marked."""
    bar, font = 3, ImageFont.load_default(style.letters)
    names = [wrapped(column.name, style.edge, font) for column in columns]
    notes = [wrapped(column.note, style.edge, font) for column in columns]
    tallest = max((len(name) + len(note) for name, note in zip(names, notes, strict=True)), default=0)

    def paint(image: Image.Image, top: int) -> None:
        draw = ImageDraw.Draw(image)
        for place, column in enumerate(columns):
            left, colour = style.left(place), ACCENT if column.is_marked else RULE
            draw.rectangle([left, top, left + style.edge - 1, top + bar - 1], fill=colour)
            _write(image, (left, top + bar + 3), names[place], style.letters, INK)
            below = top + bar + 3 + line_height_px(style.letters) * len(names[place])
            _write(image, (left, below), notes[place], style.letters, ACCENT if column.is_marked else FAINT)

    return _Strip(bar + 3 + line_height_px(style.letters) * tallest + style.gap, paint)


def _row(row: Row, style: _Style) -> _Strip:
    label = wrapped(row.label, style.label, ImageFont.load_default(style.letters))
    sizes = [fitted_size(cell, style.edge) for cell in row.cells if not isinstance(cell, Words)]
    # A row of landscapes is as high as they are: what is blank above and below them tells nothing.
    least = max(line_height_px(style.letters) * len(label), style.edge // 3)
    is_whole = len(sizes) < len(row.cells) or not sizes
    height = style.edge if is_whole else max(least, *(height for _, height in sizes))

    def paint(image: Image.Image, top: int) -> None:
        _write(image, (style.margin, top), label, style.letters, FAINT)
        for place, cell in enumerate(row.cells):
            left = style.left(place)
            if isinstance(cell, Words):
                _write_in_cell(image, left, top, cell, style)
            else:
                _paste(image, (left, top, style.edge, height), cell)

    return _Strip(height + style.gap, paint)


def _paste(image: Image.Image, box: tuple[int, int, int, int], pixels_HWC: NDArray[np.uint8]) -> None:
    """The picture in the middle of a box (left, top, width, height), the rest of which is grey."""
    left, top, width, height = box
    size = fitted_size(pixels_HWC, width)
    picture = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    if size != picture.size:
        is_larger = size[0] > picture.width
        picture = picture.resize(size, Image.Resampling.NEAREST if is_larger else Image.Resampling.LANCZOS)
    if size != (width, height):
        ImageDraw.Draw(image).rectangle([left, top, left + width - 1, top + height - 1], fill=EMPTY)
    image.paste(picture, (left + (width - size[0]) // 2, top + (height - size[1]) // 2))


def _write_in_cell(image: Image.Image, left: int, top: int, words: Words, style: _Style) -> None:
    draw = ImageDraw.Draw(image)
    box = [left, top, left + style.edge - 1, top + style.edge - 1]
    draw.rectangle(box, fill=EMPTY, outline=TROUBLE if words.is_trouble else RULE)
    inside, step = style.edge - 2 * style.gap, line_height_px(style.letters)
    lines = wrapped(words.text, inside, ImageFont.load_default(style.letters), max(1, inside // step))
    colour = TROUBLE if words.is_trouble else FAINT
    _write(image, (left + style.gap, top + style.gap), lines, style.letters, colour)


def _write(
    image: Image.Image, at: tuple[int, int], lines: Sequence[str], size: int, colour: tuple[int, int, int]
) -> None:
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(size)
    for place, line in enumerate(lines):
        draw.text((at[0], at[1] + place * line_height_px(size)), line, fill=colour, font=font)
