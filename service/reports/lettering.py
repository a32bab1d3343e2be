"""Text in pictures: broken into lines that fit, with nothing lost in silence."""

import unicodedata
from functools import lru_cache
from typing import Final

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
HAS: Final = frozenset("©«°±´·»‘’“”…‹›™")
"""What Pillow's own font draws beside ASCII. It is there on every machine, and so a sheet is the same on all."""
SPELLED: Final = {
    "×": "x",
    "−": "-",
    "–": "-",
    "—": "-",
    "→": "->",
    "≤": "<=",
    "≥": ">=",
    "Δ": "Delta ",
    "ß": "ss",
    "æ": "ae",
    "Æ": "AE",
    "œ": "oe",
    "Œ": "OE",
    "ø": "o",
    "Ø": "O",
    "ł": "l",
    "Ł": "L",
}
UNKNOWN: Final = "\N{REPLACEMENT CHARACTER}"
"""Drawn as an empty box."""


def wrapped(text: str, width_px: float, font: Font, max_lines: int | None = None) -> list[str]:
    """The lines of `text`, each at most `width_px` wide; a word that is wider is broken.

    With `max_lines`, what does not fit is left out and counted: the last line then says `… 120 more characters`.
    Letters that the font lacks lose their accents, and where that does not help, they become empty boxes.
    """
    words = ["".join(map(_drawable, word)) for word in text.split()]
    lines: list[str] = []
    for word in words:
        if lines and font.getlength(f"{lines[-1]} {word}") <= width_px:
            lines[-1] += f" {word}"
            continue
        while font.getlength(word) > width_px and len(word) > 1:
            fits = _fitting(word, width_px, font)
            lines.append(word[:fits])
            word = word[fits:]
        lines.append(word)
    if max_lines is not None and len(lines) > max_lines:
        left_out = sum(len(line) + 1 for line in lines[max_lines - 1 :]) - 1
        more = f"… {left_out} more characters"
        # In a narrow place the bare dots must do; they still say that something is missing.
        lines[max_lines - 1 :] = [more if font.getlength(more) <= width_px else "…"]
    return lines


def _fitting(word: str, width_px: float, font: Font) -> int:
    """How many of the first characters fit into `width_px`, by bisection; at least one."""
    fits, too_many = 1, len(word)
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if font.getlength(word[:middle]) <= width_px:
            fits = middle
        else:
            too_many = middle
    return fits


def line_height_px(size: int) -> int:
    """From one line to the next, of Pillow's own font in `size` pixels."""
    return round(1.35 * size)


@lru_cache(maxsize=4096)
def _drawable(character: str) -> str:
    if character in HAS or (character.isascii() and character.isprintable()):
        return character
    plain = unicodedata.normalize("NFKD", character)
    # Combining marks stand alone where a text comes decomposed.
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    return SPELLED.get(plain, plain if plain.isascii() and plain.isprintable() else UNKNOWN)
