"""The bytes of one picture that somebody sent -> a checked one: upright RGB pixels as PNG, and nothing else."""

import io
import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
from PIL import Image, ImageCms

from service.images import encode_png

MIN_EDGE: Final = 16
MAX_EDGE: Final = 8192
MAX_PIXELS: Final = 4096 * 4096
_ORIENTATION: Final = 0x0112
_UPRIGHT: Final = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow's decoders raise on damaged or hostile bytes; its own tests know of all of these.
_DAMAGE: Final = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    ArithmeticError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    RuntimeError,
    struct.error,
)


class UnusablePicture(Exception):
    """Bytes that are no picture to learn from: `code` for programs, the message continues a file's name."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Picture:
    """A picture as it is kept."""

    png: bytes
    width: int
    height: int


def kind_of(data: bytes) -> str | None:
    """`PNG`, `JPEG` or `WEBP`, by the first bytes; None for anything else."""
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if data.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    return None


def checked(data: bytes) -> Picture:
    """The picture in these bytes, upright, alpha laid on white, in sRGB, without metadata.

    The same pixels give the same bytes. The size is read from the header and bounded before anything is decoded.

    Raises:
        UnusablePicture
    """
    kind = kind_of(data)
    if kind is None:
        raise UnusablePicture("picture.unknown", "is no PNG, JPEG or WebP picture")
    try:
        with Image.open(io.BytesIO(data), formats=[kind]) as picture:
            _check_size(*picture.size)
            # A phone's JPEG may carry a second picture (a depth or gain map) behind its own.
            frames = 1 if kind == "JPEG" else getattr(picture, "n_frames", 1)
            if frames > 1:
                raise UnusablePicture(
                    "picture.animated", f"is an animation of {frames} frames; send the frame that you mean"
                )
            picture.load()
            pixels = np.asarray(_upright(_on_white(_in_srgb(picture)), _orientation(picture)))
    except Image.DecompressionBombError as exc:
        raise _too_large() from exc
    except _DAMAGE as exc:
        raise UnusablePicture("picture.corrupt", f"is a {kind} file that is damaged or cut off") from exc
    height, width, _ = pixels.shape
    return Picture(encode_png(np.ascontiguousarray(pixels)), width, height)


def _check_size(width: int, height: int) -> None:
    if max(width, height) > MAX_EDGE or width * height > MAX_PIXELS:
        raise _too_large()
    if min(width, height) < MIN_EDGE:
        raise UnusablePicture(
            "picture.too_small", f"has {width} × {height} pixels; each edge needs {MIN_EDGE} at least"
        )


def _too_large() -> UnusablePicture:
    return UnusablePicture(
        "picture.too_large",
        f"has more than {MAX_PIXELS} pixels, or an edge of more than {MAX_EDGE}; make it smaller",
    )


def _in_srgb(picture: Image.Image) -> Image.Image:
    """The picture with the colours that its profile says. A profile that cannot be used is left aside."""
    profile = picture.info.get("icc_profile")
    if not isinstance(profile, bytes) or picture.mode not in ("RGB", "CMYK"):
        return picture
    try:
        theirs = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if "sRGB" in ImageCms.getProfileDescription(theirs):
            return picture
        converted = ImageCms.profileToProfile(
            picture, theirs, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, *_DAMAGE):
        return picture
    return picture if converted is None else converted


def _on_white(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # 16-bit grey, whose conversion would cut levels off and not scale them
        levels = np.asarray(picture).astype(np.int64)
        return Image.fromarray(np.clip(levels >> 8, 0, 255).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")
    return picture.convert("RGB")


def _orientation(picture: Image.Image) -> int:
    try:
        return int(picture.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:  # of the metadata alone, which goes anyway
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    turn = _UPRIGHT.get(orientation)
    return picture if turn is None else picture.transpose(turn)
