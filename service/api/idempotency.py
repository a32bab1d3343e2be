"""`Idempotency-Key`: a request that is sent again is what it has made already."""

from typing import Annotated, Final

from fastapi import Header

from service.api import exchange

REPLAYED: Final = "Idempotent-Replayed"

Key = Annotated[
    str,
    Header(
        max_length=128,
        pattern=r"^[!-~]*$",
        description="Your own name for this request. Sent again under it, it begins nothing: it is what it was.",
    ),
]
HEADERS: Final = {
    "Location": {"description": "Its path.", "schema": {"type": "string"}},
    REPLAYED: {
        "description": "`true` where the key is known and nothing was begun.",
        "schema": {"type": "string"},
    },
}
"""Of an answer to one that may have a key, for OpenAPI."""


def owned(key: str, scope: exchange.Scope) -> str:
    """The key as it is kept: everybody has keys of their own. Empty where there is none."""
    return f"{exchange.of(scope).key_name or ''}/{key}" if key else ""


def headers(location: str, *, replayed: bool) -> dict[str, str]:
    """Where the made thing is, and whether it was there before."""
    return {"Location": location} | ({REPLAYED: "true"} if replayed else {})
