"""The only place that knows httpx.

A caller's own client may be of another library with the same API (httpx2, or a test client made of either):
only plain values are handed to it, and errors are told apart by the classes of the library that it comes
from.
"""

import importlib.metadata
import sys
from collections.abc import AsyncIterable, Iterable
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlencode

import httpx as httpx  # re-exported: testing takes it from here

from darkroom._calls import EVENT_STREAM
from darkroom._connection import Connection
from darkroom._exchange import Failure, Send
from darkroom._replies import Reply
from darkroom._transfers import Download

try:
    VERSION = importlib.metadata.version("darkroom-client")
except importlib.metadata.PackageNotFoundError:  # run from a checkout
    VERSION = "0+checkout"

_Timeouts = tuple[float, float, float, float]
_Content = bytes | Iterable[bytes] | AsyncIterable[bytes] | None


class HttpClient(Protocol):
    """What is asked of an HTTP client; `httpx.Client` has it."""

    def build_request(
        self, method: str, url: str, *, content: _Content, headers: dict[str, str], timeout: _Timeouts
    ) -> Any: ...

    def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any: ...

    def close(self) -> None: ...


class AsyncHttpClient(Protocol):
    """What is asked of an asynchronous HTTP client; `httpx.AsyncClient` has it."""

    def build_request(
        self, method: str, url: str, *, content: _Content, headers: dict[str, str], timeout: _Timeouts
    ) -> Any: ...

    async def send(self, request: Any, *, stream: bool, follow_redirects: bool) -> Any: ...

    async def aclose(self) -> None: ...


def new_client() -> httpx.Client:
    return httpx.Client()


def new_async_client() -> httpx.AsyncClient:
    return httpx.AsyncClient()


def url_of(http_client: HttpClient | AsyncHttpClient | None) -> str:
    """The `base_url` that a caller gave to their own client, or `""`."""
    return str(getattr(http_client, "base_url", ""))


def library_of(http_client: HttpClient | AsyncHttpClient) -> ModuleType:
    """The package that defines the client's class: httpx, or one that has the same exceptions."""
    for ancestor in type(http_client).__mro__:
        package = sys.modules.get(ancestor.__module__.partition(".")[0])
        if package is not None and hasattr(package, "RequestError") and hasattr(package, "ConnectError"):
            return package
    return httpx


def build_request(http_client: HttpClient | AsyncHttpClient, step: Send, connection: Connection) -> Any:
    """The library's own request object, ready to be sent."""
    headers = {
        "Accept": "application/json",
        "User-Agent": f"darkroom-python/{VERSION}",
        **dict(step.call.headers),
    }
    if connection.api_key is not None:
        headers["Authorization"] = f"Bearer {connection.api_key.get_secret_value()}"
    query = f"?{urlencode(step.call.query)}" if step.call.query else ""
    return http_client.build_request(
        step.call.method,
        connection.base_url + step.call.path + query,
        content=_content(step, is_async=hasattr(http_client, "aclose")),
        headers=headers,
        # connect, read, write, pool
        timeout=(step.connect_seconds, step.read_seconds, step.read_seconds, step.read_seconds),
    )


def _content(step: Send, *, is_async: bool) -> _Content:
    upload = step.call.upload
    if upload is None:
        return step.call.body
    return upload.async_chunks() if is_async else upload.chunks()


def download_of(step: Send, response: Any) -> Download | None:
    """Where the body of this response goes, made ready for it; None where it is an answer to be read."""
    download = step.call.download
    if download is None or response.status_code != 200:
        return None
    size_bytes = str(response.headers.get("content-length", ""))
    download.begin(int(size_bytes) if size_bytes.isdecimal() else 0)
    return download


def reply_of(response: Any, chunks: list[bytes]) -> Reply:
    """The library's response in our own terms."""
    headers = {str(name).lower(): str(value) for name, value in response.headers.items()}
    return Reply(response.status_code, headers, b"".join(chunks))


def is_event_stream(response: Any) -> bool:
    """Whether this is an answer to be read event by event."""
    kind = str(response.headers.get("content-type", "")).partition(";")[0].strip().lower()
    return response.status_code == 200 and kind == EVENT_STREAM


def failure_of(error: Exception, library: ModuleType) -> Failure:
    """What an exception of the library means for the policy."""
    if isinstance(error, (library.ConnectError, library.ConnectTimeout, library.ProxyError)):
        return Failure("unreached", error)
    if isinstance(error, library.TimeoutException):
        return Failure("timeout", error)
    return Failure("broken", error)
