"""Small pictures as files, for sheets and reports."""

from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

AS_IT_IS_PX: Final = 128
"""Up to this edge a picture is kept to the bit: it is looked at pixel by pixel."""
EDGE_PX: Final = 384
WEBP_QUALITY: Final = 85
WEBP_METHOD: Final = 2
"""libwebp's effort, 0 to 6: above 2 a file gets a few per cent smaller in twice the time."""


def thumbnail(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """WebP of the very pixels where the longest edge has at most 128, else of at most 384 px, with some loss."""
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    file = BytesIO()
    if max(image.size) <= AS_IT_IS_PX:
        image.save(file, "webp", lossless=True, method=WEBP_METHOD)  # two thirds of a PNG
    else:
        image.thumbnail((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS)
        image.save(file, "webp", quality=WEBP_QUALITY, method=WEBP_METHOD)
    return file.getvalue()


def decoded(data: bytes, edge_px: int | None = None) -> NDArray[np.uint8]:
    """The pixels of a thumbnail: uint8 RGB of shape (height, width, 3), with `edge_px` reduced to that edge."""
    with Image.open(BytesIO(data), formats=["PNG", "WEBP"]) as file:
        image = file.convert("RGB")
    if edge_px is not None:
        image.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    return np.asarray(image)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) of a thumbnail, read from its header."""
    with Image.open(BytesIO(data), formats=["PNG", "WEBP"]) as image:
        return image.size
