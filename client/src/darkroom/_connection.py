"""Where the service is, how to be let in, and how patient to be: arguments first, then the environment."""

import os
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from pydantic import SecretStr

DEFAULT_URL = "http://127.0.0.1:3000"
DEFAULT_MAX_RETRIES = 3


@dataclass(frozen=True)
class Timeouts:
    """How long to wait, in seconds.

    `connect_seconds` bounds each attempt to reach the service, `total_seconds` the whole call with all its
    retries and the waits between them.
    """

    connect_seconds: float = 5.0
    total_seconds: float = 600.0

    def __post_init__(self) -> None:
        for name in ("connect_seconds", "total_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be more than 0")


@dataclass(frozen=True)
class Connection:
    """Everything that one client knows about its service."""

    base_url: str
    """Without a slash at the end."""
    api_key: SecretStr | None = field(default=None, repr=False)
    timeouts: Timeouts = Timeouts()
    max_retries: int = DEFAULT_MAX_RETRIES


def resolve(
    base_url: str | None,
    api_key: str | None,
    timeout: float | Timeouts | None,
    max_retries: int,
    *,
    http_client_url: str = "",
) -> Connection:
    """A checked `Connection`.

    What an argument leaves open comes from the caller's own HTTP client, then from `DARKROOM_URL` and
    `DARKROOM_API_KEY`, then from the defaults. An empty variable counts as absent.
    """
    if max_retries < 0:
        raise ValueError(f"max_retries is {max_retries}; 0 means that nothing is tried again")
    if timeout is None:
        timeout = Timeouts()
    return Connection(
        base_url=_checked_url(base_url or http_client_url or os.environ.get("DARKROOM_URL") or DEFAULT_URL),
        api_key=_checked_key(api_key or os.environ.get("DARKROOM_API_KEY") or ""),
        timeouts=timeout if isinstance(timeout, Timeouts) else Timeouts(total_seconds=timeout),
        max_retries=max_retries,
    )


def _checked_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.username is not None:
        # httpx would send them in place of the API key, and they would show in every message. Not repeated
        # here.
        raise ValueError("base_url holds a user name or a password; give a key as api_key instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"base_url {url!r} is not an address; write it like {DEFAULT_URL!r}")
    if parts.query or parts.fragment:
        raise ValueError(
            f"base_url {url!r} has a query or a fragment; leave out everything from '?' or '#' on"
        )
    return url.rstrip("/")


def _checked_key(key: str) -> SecretStr | None:
    # A key that is read from a file ends in a newline, and httpx would quote it in the error that follows.
    key = key.strip()
    if not all("!" <= character <= "~" for character in key):
        raise ValueError("the API key holds a character that no HTTP header may carry (keys are plain ASCII)")
    return SecretStr(key) if key else None
