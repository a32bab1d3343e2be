"""Files in answers and in bodies, and the words that lists have in common."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Annotated, Any, Final

from fastapi import Query, Request
from starlette.responses import StreamingResponse

from service.api import conditions
from service.api.answer import Receive, Send
from service.api.exchange import Scope
from service.blocking import ToSend

MAX_LIMIT: Final = 200

Limit = Annotated[int, Query(ge=1, le=MAX_LIMIT, description="The most to give at once.")]
Cursor = Annotated[str, Query(max_length=400, description="`next_cursor` of the page before.")]


class FileStream(StreamingResponse):
    """A file, read while it is sent, and closed whoever ends it."""

    def __init__(
        self, pieces: AsyncGenerator[bytes, None], headers: Mapping[str, str], media_type: str
    ) -> None:
        super().__init__(pieces, headers=headers, media_type=media_type)
        self._pieces = pieces

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._pieces):
            await super().__call__(scope, receive, send)


def sent(found: ToSend[Any], headers: Mapping[str, str] | None = None) -> FileStream:
    """The answer that sends a kept file, under its digest; `headers` beside those that all such answers have."""
    facts = {
        "Content-Length": str(found.file.size_bytes),
        "ETag": conditions.etag(found.file.digest),
        "X-Content-Type-Options": "nosniff",
    }
    return FileStream(found.pieces, {**facts, **(headers or {})}, found.file.media_type)


async def body_of(request: Request) -> AsyncIterator[bytes]:
    """The body piece by piece, as it comes."""
    async for piece in request.stream():
        yield piece
