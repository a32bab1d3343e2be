"""Which representation a caller wants: JSON, the bytes of one image, or events (RFC 9110, 12.5.1)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

from darkroom.types import GenerateRequest, ImageFormat
from service.api.refusals import NotAcceptable

JSON = "application/json"
EVENT_STREAM = "text/event-stream"
IMAGE_FORMATS: dict[str, ImageFormat] = {f"image/{name}": name for name in get_args(ImageFormat)}


@dataclass(frozen=True)
class Range:
    """One element of an Accept header."""

    type: str
    subtype: str
    quality: float

    def specificity(self, media_type: str) -> int:
        """How closely the range names that media type; 0 if it does not cover it."""
        kind, _, subtype = media_type.partition("/")
        if (self.type, self.subtype) == (kind, subtype):
            return 3
        if (self.type, self.subtype) == (kind, "*"):
            return 2
        return int((self.type, self.subtype) == ("*", "*"))


def representation(request: GenerateRequest, accept: str) -> str:
    """The media type to answer with: `application/json`, an image's, or `text/event-stream`.

    Among what the caller likes best the more closely named wins, then JSON, then the order png, jpeg, webp; a
    stream comes last.

    Raises:
        NotAcceptable: the caller accepts only images, and there are several or they are of another format.
    """
    offers = [JSON, *_image_types(request), EVENT_STREAM]
    best = preferred(offers, accept)
    if best is None:
        raise NotAcceptable(_reason(request, offers))
    return best


def preferred(offers: Sequence[str], accept: str) -> str | None:
    """The media type that the caller likes best, of equals the more closely named, then the earlier; None: none."""
    ranges = _ranges(accept or "*/*")
    graded = [(*_grade(offer, ranges), -place, offer) for place, offer in enumerate(offers)]
    quality, _, _, best = max(graded)
    return best if quality > 0 else None


def chosen(offers: Sequence[str], accept: str) -> str:
    """The media type that the caller likes best, as `preferred`.

    Raises:
        NotAcceptable: the caller accepts none of them.
    """
    best = preferred(offers, accept)
    if best is None:
        raise NotAcceptable(f"accept one of {', '.join(offers)}")
    return best


def with_format(request: GenerateRequest, media_type: str) -> GenerateRequest:
    """The request with the image format that was negotiated."""
    chosen = IMAGE_FORMATS.get(media_type)
    if chosen is None or chosen == request.output.format:
        return request
    return request.model_copy(update={"output": request.output.model_copy(update={"format": chosen})})


def _image_types(request: GenerateRequest) -> list[str]:
    if request.num_images > 1:
        return []
    if "format" in request.output.model_fields_set:
        return [f"image/{request.output.format}"]
    return list(IMAGE_FORMATS)


def _grade(offer: str, ranges: list[Range]) -> tuple[float, int]:
    """Quality and specificity of the range that names the offer most closely."""
    specificity, quality = max(((r.specificity(offer), r.quality) for r in ranges), default=(0, 0.0))
    return (quality, specificity) if specificity else (0.0, 0)


def _ranges(accept: str) -> list[Range]:
    ranges = []
    for element in accept.split(","):
        media_range, *parameters = (part.strip().lower() for part in element.split(";"))
        kind, slash, subtype = media_range.partition("/")
        if kind and slash and subtype:
            ranges.append(Range(kind, subtype, _quality(parameters)))
    return ranges


def _quality(parameters: list[str]) -> float:
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            value = value.strip()
            # Written as RFC 9110 has it or not at all: float() would take "nan", "inf" and "1e3" too.
            plain = value.replace(".", "", 1).isdecimal() and value.isascii()
            return min(1.0, float(value)) if plain else 0.0
    return 1.0


def _reason(request: GenerateRequest, offers: list[str]) -> str:
    if request.num_images > 1:
        return f"{request.num_images} images do not fit into one file; accept {JSON}, or ask for one image"
    if "format" in request.output.model_fields_set:
        wanted = request.output.format
        return f"`output.format` is {wanted!r}; accept {' or '.join(offers)}, or leave the format out"
    return f"accept one of {', '.join(offers)}"
