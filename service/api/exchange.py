"""What the edge knows of one request while it is being answered."""

import re
import uuid
from collections.abc import Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Headers = Iterable[tuple[bytes, bytes]]

_SCOPE_KEY = "darkroom.exchange"
_SANE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")


@dataclass(slots=True)
class Exchange:
    """One request and its answer. It travels in the ASGI scope."""

    request_id: str
    key_name: str | None = None
    """Name of the API key that was used."""
    code: str | None = None
    """Code of the problem that was answered."""
    problem_status: int | None = None
    """Its status, which a stream that began well no longer shows as its own."""


def begin(scope: Scope) -> Exchange:
    """Open the exchange of a request, under the caller's X-Request-ID where that is a sane one."""
    wanted = header(scope["headers"], b"x-request-id") or ""
    exchange = Exchange(wanted if _SANE_ID.fullmatch(wanted) else uuid.uuid4().hex)
    scope[_SCOPE_KEY] = exchange
    return exchange


def of(scope: Scope) -> Exchange:
    """The exchange that the edge opened; a fresh one where an app is called without the edge."""
    found = scope.get(_SCOPE_KEY)
    return found if isinstance(found, Exchange) else begin(scope)


def header(headers: Headers, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    return next((value.decode("latin-1") for key, value in headers if key == name), None)
