"""Names and references: `ink-wash`, `ink-wash@3`, `ink-wash:prod`, `sha256:…`. Pure text."""

import re
from dataclasses import dataclass
from typing import Final

from lora_registry.errors import InvalidName, InvalidRef

LATEST: Final = "latest"
"""The alias that a bare name means. The registry keeps it on the highest live version; nobody moves it by hand."""

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"[1-9][0-9]{0,8}")
MAX_NUMBER: Final = 999_999_999


@dataclass(frozen=True)
class ByNumber:
    """`name@3`."""

    name: str
    number: int


@dataclass(frozen=True)
class ByAlias:
    """`name:alias`, or a bare name, which means `name:latest`."""

    name: str
    alias: str


@dataclass(frozen=True)
class ByDigest:
    """`sha256:…`."""

    digest: str


Ref = ByNumber | ByAlias | ByDigest


def parse_ref(text: str) -> Ref:
    """What a reference names.

    Raises:
        InvalidRef: it is none of the four forms.
    """
    if text.startswith("sha256:"):
        if _DIGEST.fullmatch(text):
            return ByDigest(text)
    elif "@" in text:
        name, _, number = text.partition("@")
        if _NAME.fullmatch(name) and _NUMBER.fullmatch(number):
            return ByNumber(name, int(number))
    else:
        name, colon, alias = text.partition(":")
        if _NAME.fullmatch(name) and (not colon or _NAME.fullmatch(alias)):
            return ByAlias(name, alias or LATEST)
    raise InvalidRef(
        f"{text[:100]!r} is not a LoRA reference; write name, name@3, name:alias or sha256: and 64 hex digits"
    )


def is_name(text: str) -> bool:
    """Whether a LoRA or an alias may have that name; what may not is in no database, and is not asked for."""
    return bool(_NAME.fullmatch(text))


def check_name(name: str) -> str:
    """The name, if it is one.

    Raises:
        InvalidName: it is not, or it would be read as a digest.
    """
    if not _NAME.fullmatch(name):
        raise InvalidName(
            f"{name[:100]!r} is not a name; use 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
        )
    if name == "sha256":
        raise InvalidName("'sha256' cannot be a LoRA's name: 'sha256:…' already means a digest")
    return name


def check_alias(alias: str) -> str:
    """The alias, if one may be made or moved by that name.

    Raises:
        InvalidName: it is no name, or it is `latest`.
    """
    if not _NAME.fullmatch(alias):
        raise InvalidName(
            f"{alias[:100]!r} is not an alias; use 1 to 64 of a-z, 0-9, '.', '_' and '-', a letter or digit first"
        )
    if alias == LATEST:
        raise InvalidName("the alias 'latest' follows the highest version by itself; choose another name")
    return alias


def check_number(number: int) -> int:
    """The version number, if it is one.

    Raises:
        InvalidRef: it is not between 1 and 999 999 999.
    """
    if isinstance(number, bool) or not 1 <= number <= MAX_NUMBER:
        raise InvalidRef(f"{number} is not a version number; they go from 1 to {MAX_NUMBER}")
    return number
