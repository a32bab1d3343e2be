"""One pure function per endpoint: arguments in, a `Call` out. Nothing here does I/O."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from darkroom._transfers import Download, Upload
from darkroom.types import GenerateRequest, GenerateResponse, ServiceInfo

T_co = TypeVar("T_co", covariant=True)

EVENT_STREAM = "text/event-stream"
QUICK_SECONDS = 30.0
"""Endpoints that answer from memory do not get the patience of a picture."""


@dataclass(frozen=True)
class Call(Generic[T_co]):
    """One HTTP exchange to make, and how to read what comes back.

    `decode` turns the body of a 2xx answer into the value; it raises pydantic's `ValidationError` where the
    body is something else. `idempotent` says that a second sending costs nothing and changes nothing, so
    that the call may be repeated after a fault that leaves open whether the first one was carried out.
    `upload` is sent in the place of a `body`; the body of a 200 goes into `download` in the place of `decode`.
    """

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    decode: Callable[[bytes], T_co]
    # Prompts are private: a logged Call must not show one.
    body: bytes | None = field(default=None, repr=False)
    headers: tuple[tuple[str, str], ...] = ()
    idempotent: bool = False
    longest_seconds: float | None = None
    query: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    upload: Upload | None = field(default=None, repr=False)
    download: Download | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def generate(request: GenerateRequest) -> Call[GenerateResponse]:
    """Images from a prompt.

    Fields at their defaults are left out of the body, so that this client can talk to a service that is older
    than itself and has not heard of them.
    """
    return Call(
        "POST",
        "/v1/generate",
        GenerateResponse.model_validate_json,
        body=request.model_dump_json(exclude_defaults=True).encode(),
        headers=(("Content-Type", "application/json"),),
    )


def stream(request: GenerateRequest) -> Call[bytes]:
    """The same as a stream of events, which whoever sends the call keeps open. The value is the body of a 2xx
    answer that is no such stream."""
    call = generate(request)
    headers = (*call.headers, ("Accept", EVENT_STREAM))
    return Call(call.method, call.path, bytes, body=call.body, headers=headers)


def info() -> Call[ServiceInfo]:
    """What the service is and what it can do."""
    return Call(
        "GET", "/v1/info", ServiceInfo.model_validate_json, idempotent=True, longest_seconds=QUICK_SECONDS
    )


def ready() -> Call[None]:
    """Nothing, once pictures can be made; the status says it all, so the body is not looked at."""
    return Call("GET", "/readyz", nothing, idempotent=True, longest_seconds=QUICK_SECONDS)


def nothing(_body: bytes) -> None:
    """The value of a call whose answer says it all by its status."""
