"""Pixels as a PNG file in about 10 ms of CPU per megapixel, where Pillow's default takes about 300.

Pillow tries five filters on every row and deflates with zlib at level 6. Here every row gets the same
filter in one NumPy subtraction, and ISA-L deflates it; the file is a tenth larger and just as lossless.
Source: PNG specification, third edition (https://www.w3.org/TR/png-3/).
"""

import struct
from collections.abc import Sequence

import numpy as np
from isal import isal_zlib
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
UP_FILTER = 2
DEFLATE_LEVEL = 1
"""Of ISA-L's 0 to 3. Level 0 saves 1 ms and costs 60 % of size; 2 and 3 give photos no smaller than 1."""


def encode_png(pixels_HWC: NDArray[np.uint8], text_chunks: Sequence[bytes] = ()) -> bytes:
    """A PNG of 8-bit RGB pixels, with finished text chunks before the pixels.

    Before, so that a reader that stops at the pixels (Pillow's `open` does) has them. There is no colour
    chunk: an untagged PNG is read as sRGB, like the untagged JPEG and WebP beside it.
    """
    height, width, _ = pixels_HWC.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        (
            SIGNATURE,
            chunk(b"IHDR", header),
            *text_chunks,
            chunk(b"IDAT", isal_zlib.compress(up_filtered(pixels_HWC), DEFLATE_LEVEL)),
            chunk(b"IEND", b""),
        )
    )


def up_filtered(pixels_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Each row minus the row above it modulo 256, after a byte that names the filter: (H, 1 + 3W)."""
    height, width, channels = pixels_HWC.shape
    rows = pixels_HWC.reshape(height, width * channels)
    filtered = np.empty((height, 1 + width * channels), np.uint8)
    filtered[:, 0] = UP_FILTER
    filtered[0, 1:] = rows[0]
    np.subtract(rows[1:], rows[:-1], out=filtered[1:, 1:])
    return filtered


def text_chunk(keyword: str, text: str) -> bytes:
    """A `tEXt` chunk for ASCII, and an `iTXt` for anything else. The text must not hold a NUL.

    `tEXt` is Latin-1 by the book, but many readers take it for UTF-8: only ASCII means the same to both.
    """
    if not text.isascii():
        return utf8_text_chunk(keyword, text)
    return chunk(b"tEXt", keyword.encode("ascii") + b"\0" + text.encode("ascii"))


def utf8_text_chunk(keyword: str, text: str) -> bytes:
    """An uncompressed `iTXt` chunk without language or translated keyword. The text must not hold a NUL."""
    end_of_keyword, compression, language, translation = b"\0", b"\0\0", b"\0", b"\0"
    return chunk(
        b"iTXt",
        keyword.encode("ascii") + end_of_keyword + compression + language + translation + text.encode(),
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    """Length, type, data and the CRC of the last two."""
    checksum = isal_zlib.crc32(data, isal_zlib.crc32(kind))
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)
