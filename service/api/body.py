"""The body of a request: JSON, of a bounded size, there in bounded time; read before the app sees it."""

import asyncio

from service.api import exchange
from service.api.answer import Message, Receive
from service.api.refusals import BodyTooLarge, BodyTooSlow, Disconnected, UnsupportedMediaType

MAX_SECONDS = 30.0


async def read(scope: exchange.Scope, receive: Receive, *, max_bytes: int) -> Receive:
    """A `receive` that gives the whole body in its first message, and then what follows it.

    Bodies here are small JSON, so reading them first costs nothing and lets every limit hold in one place;
    whatever the app then receives is the caller going away.

    Raises:
        UnsupportedMediaType: it is not plain JSON.
        BodyTooLarge: by its own account, or once that many bytes have come.
        BodyTooSlow, Disconnected: it never came.
    """
    if not _has_body(scope["headers"]):
        return receive
    _check_media_type(scope["headers"])
    announced = exchange.header(scope["headers"], b"content-length")
    if announced is not None and announced.isdecimal() and int(announced[:20]) > max_bytes:
        raise BodyTooLarge(max_bytes)
    try:
        async with asyncio.timeout(MAX_SECONDS):
            body = await _read_whole(receive, max_bytes)
    except TimeoutError as exc:
        raise BodyTooSlow(MAX_SECONDS) from exc
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return first.pop() if first else await receive()

    return replay


async def _read_whole(receive: Receive, max_bytes: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        body += message.get("body", b"")
        if len(body) > max_bytes:
            raise BodyTooLarge(max_bytes)
        if not message.get("more_body", False):
            return bytes(body)


def _has_body(headers: exchange.Headers) -> bool:
    if exchange.header(headers, b"transfer-encoding") is not None:
        return True
    return (exchange.header(headers, b"content-length") or "0").strip("0") != ""


def _check_media_type(headers: exchange.Headers) -> None:
    media_type = (exchange.header(headers, b"content-type") or "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise UnsupportedMediaType("send the body as JSON, with `Content-Type: application/json`")
    if (exchange.header(headers, b"content-encoding") or "identity").strip().lower() != "identity":
        raise UnsupportedMediaType("send the body as it is, without a Content-Encoding")
