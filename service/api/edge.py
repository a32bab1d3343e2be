"""The outermost layer of the service. It holds on every route, BentoML's own included."""

import time
from collections.abc import Awaitable, Callable

import structlog
from structlog.contextvars import bound_contextvars

from lora_registry.registry import MAX_LORA_BYTES
from service.api import body, exchange, uploads
from service.api.answer import Answer, Receive, Send
from service.api.auth import OPEN_PATHS, KeyRing
from service.api.refusals import Answered
from service.datasets.incoming import MAX_UPLOAD_BYTES
from service.metrics import Metrics

App = Callable[[exchange.Scope, Receive, Send], Awaitable[None]]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
CANCELLED = frozenset({"disconnected", "shutdown"})

log = structlog.get_logger()


class Edge:
    """An ASGI app around another one: ids, keys, limits, problems, metrics, one log line per request."""

    def __init__(
        self,
        app: App,
        *,
        keys: KeyRing,
        metrics: Metrics,
        max_body_bytes: int,
        max_upload_bytes: int = MAX_LORA_BYTES,
        max_dataset_bytes: int = MAX_UPLOAD_BYTES,
    ) -> None:
        self._app, self._keys, self._metrics = app, keys, metrics
        self._max_body_bytes = max_body_bytes
        self._max_bytes_of = {"lora": max_upload_bytes, "dataset": max_dataset_bytes}

    async def __call__(self, scope: exchange.Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # there are no websockets here
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: exchange.Scope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        the_exchange = exchange.begin(scope)
        answer = Answer(scope, send)
        with bound_contextvars(request_id=the_exchange.request_id):
            try:
                try:
                    await self._pass_on(scope, receive, answer.send)
                except Exception as error:
                    await answer.finish(error)
                else:
                    await answer.finish(None)
            finally:
                status = the_exchange.problem_status or answer.status
                self._record(scope, the_exchange, status, time.perf_counter() - started)

    async def _pass_on(self, scope: exchange.Scope, receive: Receive, send: Send) -> None:
        if not scope["path"].isprintable():
            # A route's pattern may match before a trailing newline where the table of scopes does not.
            raise Answered(404)
        exchange.of(scope).key_name = self._keys.authorize(scope)
        if (kind := uploads.kind_of(scope)) is not None:
            receive = uploads.passed_on(scope, receive, max_bytes=self._max_bytes_of[kind.name], kind=kind)
        else:
            receive = await body.read(scope, receive, max_bytes=self._max_body_bytes)
        await self._app(scope, receive, send)

    def _record(
        self, scope: exchange.Scope, the_exchange: exchange.Exchange, status: int, seconds: float
    ) -> None:
        route = getattr(scope.get("route"), "path", "unmatched") or "unmatched"
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._metrics.request_duration_seconds.labels(route, method, str(status)).observe(seconds)
        code = the_exchange.code
        if code in CANCELLED:
            self._metrics.cancelled_total.labels(code).inc()
        elif code is not None and (status < 500 or status == 503) and route not in OPEN_PATHS:
            self._metrics.rejected_total.labels(code).inc()
        facts = {"method": method, "route": route, "status": status, "seconds": round(seconds, 4)}
        facts |= {"code": code} if code else {}
        facts |= {"key": the_exchange.key_name} if the_exchange.key_name else {}
        (log.debug if route in OPEN_PATHS else log.info)("request_answered", **facts)
