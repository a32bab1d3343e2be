"""Pictures side by side on one labelled sheet, as prints from a darkroom."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

EDGE = 192
"""Pixels of a picture on the sheet."""
_GAP, _MARGIN = 14, 24
_PAPER, _INK, _FAINT = (250, 249, 246), (28, 28, 30), (110, 110, 116)


@dataclass(frozen=True)
class Print:
    """One picture and what is written under it."""

    picture: Image.Image
    label: str


@dataclass(frozen=True)
class Strip:
    """A row of prints under a heading."""

    heading: str
    prints: Sequence[Print]


def contact_sheet(title: str, strips: Sequence[Strip]) -> Image.Image:
    """One RGB sheet with a strip a row; small pictures are enlarged without smoothing, so that their pixels show."""
    title_font, heading_font, label_font = (ImageFont.load_default(size) for size in (22, 16, 13))
    labels = [[textwrap.wrap(print_.label, 28) or [""] for print_ in strip.prints] for strip in strips]
    label_heights = [18 * max(len(lines) for lines in row) for row in labels]
    columns = max(len(strip.prints) for strip in strips)
    width = 2 * _MARGIN + columns * EDGE + (columns - 1) * _GAP
    height = 2 * _MARGIN + 40 + sum(28 + EDGE + 8 + lines + _GAP for lines in label_heights)
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((_MARGIN, _MARGIN), title, fill=_INK, font=title_font)
    top = _MARGIN + 40
    for strip, row, lines_height in zip(strips, labels, label_heights, strict=True):
        draw.text((_MARGIN, top), strip.heading, fill=_INK, font=heading_font)
        top += 28
        for column, (print_, lines) in enumerate(zip(strip.prints, row, strict=True)):
            left = _MARGIN + column * (EDGE + _GAP)
            sheet.paste(_fitted(print_.picture), (left, top))
            draw.multiline_text((left, top + EDGE + 6), "\n".join(lines), fill=_FAINT, font=label_font)
        top += EDGE + 8 + lines_height + _GAP
    return sheet


def _fitted(picture: Image.Image) -> Image.Image:
    scale = EDGE / max(picture.size)
    size = (round(picture.width * scale), round(picture.height * scale))
    filter_ = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    return picture.convert("RGB").resize(size, filter_)
