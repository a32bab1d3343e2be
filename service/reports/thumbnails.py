"""Small pictures as files, for sheets and reports."""

from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.images import encode_png

AS_IT_IS_PX: Final = 128
"""Up to this edge a picture is kept to the bit: it is looked at pixel by pixel."""
EDGE_PX: Final = 384
WEBP_QUALITY: Final = 85
WEBP_METHOD: Final = 2
"""libwebp's effort, 0 to 6: above 2 a file gets a few per cent smaller in twice the time."""


def thumbnail(pixels_HWC: NDArray[np.uint8]) -> bytes:
    """PNG of the very pixels where the longest edge has at most 128, else WebP of at most 384 px."""
    longest = max(pixels_HWC.shape[:2])
    if longest <= AS_IT_IS_PX:
        return encode_png(pixels_HWC)
    image = Image.fromarray(np.ascontiguousarray(pixels_HWC))
    if longest > EDGE_PX:
        image.thumbnail((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS)
    file = BytesIO()
    image.save(file, "webp", quality=WEBP_QUALITY, method=WEBP_METHOD)
    return file.getvalue()


def decoded(data: bytes, edge_px: int = EDGE_PX) -> NDArray[np.uint8]:
    """The pixels of a thumbnail, uint8 RGB of shape (height, width, 3), reduced where an edge is above `edge_px`."""
    with Image.open(BytesIO(data), formats=["PNG", "WEBP"]) as file:
        image = file.convert("RGB")
    if max(image.size) > edge_px:
        image.thumbnail((edge_px, edge_px), Image.Resampling.LANCZOS)
    return np.asarray(image)


def size_of(data: bytes) -> tuple[int, int]:
    """(width, height) of a thumbnail, read from its header."""
    with Image.open(BytesIO(data), formats=["PNG", "WEBP"]) as image:
        return image.size
