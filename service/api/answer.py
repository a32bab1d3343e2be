"""What goes back to the caller: every answer with our headers, every error as a problem."""

from collections.abc import Awaitable, Callable
from typing import Any

import structlog

from service.api import exchange, problems
from service.api.refusals import Answered

Message = exchange.Scope
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

SECURITY_HEADERS = (
    # BentoML's page at / loads an analytics script from elsewhere; this policy keeps it from running.
    (
        b"content-security-policy",
        b"default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; frame-ancestors 'none'",
    ),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)
HEADERS_REMOVED = frozenset({b"server", b"x-bentoml-request-id"})

log = structlog.get_logger()


class Answer:
    """Stands between an app and its server's `send`, and holds an error back until the app is through.

    An error that is not a problem yet has its body dropped: frameworks write lists, plain text, or more
    than a caller should know.
    """

    def __init__(self, scope: exchange.Scope, send: Send) -> None:
        self.status = 500
        self._scope, self._send = scope, send
        self._started = False
        self._held: Answered | None = None

    async def send(self, message: Message) -> None:
        """Pass an ASGI message of the app on."""
        if message["type"] == "http.response.start":
            headers = list(message.get("headers", ()))
            if message["status"] >= 400 and not _is_problem(headers):
                self._held = Answered(message["status"], _text(headers))
                return
            self._held, self._started, self.status = None, True, message["status"]
            await self._send({**message, "headers": self._completed(headers)})
        elif self._held is None:
            await self._send(message)

    async def finish(self, error: Exception | None) -> None:
        """Answer what the app left without one: `error` if it raised, else the error that was held back."""
        if self._started:
            if error is not None:
                log.error("answer_broke_off", exc_info=error)
                raise error
            return
        failure = error or self._held or RuntimeError("the app returned without an answer")
        response = problems.respond(failure, self._scope)
        await response(self._scope, _nothing_more, self.send)

    def _completed(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        kept = [(name.lower(), value) for name, value in headers if name.lower() not in HEADERS_REMOVED]
        present = {name for name, _ in kept}
        kept += [pair for pair in SECURITY_HEADERS if pair[0] not in present]
        kept.append((b"x-request-id", exchange.of(self._scope).request_id.encode()))
        return kept


def _is_problem(headers: list[tuple[bytes, bytes]]) -> bool:
    return (exchange.header(headers, b"content-type") or "").startswith(problems.MEDIA_TYPE)


def _text(headers: list[tuple[bytes, bytes]]) -> dict[str, str]:
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in headers}


async def _nothing_more() -> dict[str, Any]:
    return {"type": "http.disconnect"}
