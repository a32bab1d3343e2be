"""The body of an upload: passed on piece by piece, counted, and given up where it does not get on."""

import asyncio
import time
from dataclasses import dataclass
from typing import Final, Literal

from service.api import exchange
from service.api.answer import Message, Receive
from service.api.refusals import BodyTooLarge, Disconnected, UnsupportedMediaType, UploadTooSlow
from service.api.templates import ByRoute

MEDIA_TYPES: Final = ("application/octet-stream", "application/x-safetensors")
"""And none at all. What a file is, its bytes say; this keeps those away who mean something else."""
ARCHIVE_TYPES: Final = (
    "application/zip",
    "application/x-tar",
    "application/gzip",
    "application/octet-stream",
    "multipart/form-data",
)
"""Of datasets; what the bytes are, they say themselves, but for a form, which needs its boundary."""
_OTHER_ARCHIVE_TYPES: Final = ("application/x-zip-compressed", "application/x-gzip", "application/x-gtar")
PATIENCE_SECONDS: Final = 30.0
PACE_BYTES: Final = 256 * 1024
"""What must arrive, or all that is left, in each `PATIENCE_SECONDS` of waiting for the caller."""


@dataclass(frozen=True)
class Kind:
    """What a route takes as its body."""

    name: Literal["lora", "dataset"]
    media_types: tuple[str, ...]
    advice: str
    """To who sends something else."""


LORA: Final = Kind(
    "lora", MEDIA_TYPES, f"send the file itself as the body, with `Content-Type: {MEDIA_TYPES[0]}`"
)
DATASET: Final = Kind(
    "dataset",
    (*ARCHIVE_TYPES, *_OTHER_ARCHIVE_TYPES),
    "send a zip, tar or tar.gz file as the body, with `Content-Type: application/zip`, or the files as the parts of "
    "multipart/form-data",
)
_ROUTES: Final = ByRoute({("POST", "/v1/loras/{name}/versions"): LORA, ("POST", "/v1/datasets"): DATASET})


def kind_of(scope: exchange.Scope) -> Kind | None:
    """What kind of file the body is, for the route to read as it comes; None where it is no file."""
    return _ROUTES.find(scope)


def passed_on(scope: exchange.Scope, receive: Receive, *, max_bytes: int, kind: Kind = LORA) -> Receive:
    """A `receive` that gives the pieces of the body, and then what follows it. Taking a piece raises BodyTooLarge,
    UploadTooSlow or Disconnected where the upload cannot go on.

    Raises:
        UnsupportedMediaType: it is sent as something that no such file is.
        BodyTooLarge: by its own account.
    """
    _check_media_type(scope["headers"], kind)
    announced = exchange.header(scope["headers"], b"content-length")
    if announced is not None and announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise BodyTooLarge(max_bytes)
    return _Pieces(receive, max_bytes).next


async def silence() -> Message:
    """In the place of a `receive`: whoever reads a body sees for himself that its sender is gone."""
    await asyncio.Event().wait()
    raise AssertionError("unreachable")


class _Pieces:
    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive, self._left_bytes, self._max_bytes = receive, max_bytes, max_bytes
        self._patience_seconds, self._behind_bytes = PATIENCE_SECONDS, PACE_BYTES
        self._whole = False

    async def next(self) -> Message:
        if self._whole:
            return await self._receive()
        message = await self._waited_for()
        if message["type"] == "http.disconnect":
            raise Disconnected
        self._left_bytes -= len(message.get("body", b""))
        if self._left_bytes < 0:
            raise BodyTooLarge(self._max_bytes)
        self._whole = not message.get("more_body", False)
        return message

    async def _waited_for(self) -> Message:
        """The next message. Only the time that the caller takes is counted, not that of our own disk."""
        started = time.monotonic()
        try:
            async with asyncio.timeout(self._patience_seconds):
                message = await self._receive()
        except TimeoutError as exc:
            raise UploadTooSlow(PACE_BYTES, PATIENCE_SECONDS) from exc
        self._patience_seconds -= time.monotonic() - started
        self._behind_bytes -= len(message.get("body", b""))
        if self._behind_bytes <= 0:
            self._patience_seconds, self._behind_bytes = PATIENCE_SECONDS, PACE_BYTES
        return message


def _check_media_type(headers: exchange.Headers, kind: Kind) -> None:
    media_type = (exchange.header(headers, b"content-type") or "").partition(";")[0].strip().lower()
    if media_type and media_type not in kind.media_types:
        raise UnsupportedMediaType(kind.advice)
    if (exchange.header(headers, b"content-encoding") or "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, without a Content-Encoding")
