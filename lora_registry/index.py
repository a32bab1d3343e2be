"""The catalogue as readers see it: one version by its reference, pages of LoRAs, searches."""

import base64
import binascii
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from sqlalchemy import Column, ColumnElement, Connection, Select, bindparam, exists, func, or_, select

from lora_registry.database import Database
from lora_registry.errors import InvalidCursor, LoraNotFound
from lora_registry.records import Alias, Lora, LoraVersion, Page
from lora_registry.refs import LATEST, MAX_NUMBER, ByAlias, ByDigest, ByNumber, is_name, parse_ref
from lora_registry.rows import ALIAS_ROWS, VERSION_ROWS, alias_from, moment, version_from
from lora_registry.schema import aliases, blobs, labels, loras, versions

Value = TypeVar("Value", str, int)

MAX_LIMIT: Final = 1000
MIN_HASH_DIGITS: Final = 8

_OF_ALIAS: Final = VERSION_ROWS.join(aliases, aliases.c.version_id == versions.c.id).where(
    aliases.c.lora_id == loras.c.id, loras.c.name == bindparam("name"), aliases.c.alias == bindparam("alias")
)
_ALIAS: Final = ALIAS_ROWS.where(loras.c.name == bindparam("name"), aliases.c.alias == bindparam("alias"))
_OF_NUMBER: Final = VERSION_ROWS.where(
    loras.c.name == bindparam("name"), versions.c.number == bindparam("number")
)
_OF_DIGEST: Final = (
    VERSION_ROWS.where(versions.c.digest == bindparam("digest")).order_by(versions.c.id).limit(1)
)


@dataclass(frozen=True)
class Search:
    """What a LoRA must have to be listed; empty parts ask for nothing.

    `name` is a part of the name, `trigger` and `tag` are parts of a word, without regard to case; `hash` is a
    sha256, AutoV2, AutoV3 or the beginning (8 digits or more) of one.
    """

    name: str = ""
    trigger: str = ""
    tag: str = ""
    hash: str = ""


class Index:
    """Reads the catalogue and changes nothing."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def resolve(self, text: str) -> LoraVersion:
        """The live version that a reference means; for a digest the first that was published.

        Raises:
            InvalidRef, LoraNotFound
        """
        ref = parse_ref(text)
        statement: Select[Any]
        values: dict[str, str | int]
        match ref:
            case ByAlias():
                statement, values = _OF_ALIAS, {"name": ref.name, "alias": ref.alias}
            case ByNumber():
                statement, values = _OF_NUMBER, {"name": ref.name, "number": ref.number}
            case ByDigest():
                statement, values = _OF_DIGEST, {"digest": ref.digest.removeprefix("sha256:")}
        row = self._database.lookup(statement, values)
        if row is None:
            raise self._not_found(text, ref)
        return version_from(row)

    def get(self, name: str) -> Lora:
        """A LoRA with its highest version and its aliases.

        Raises:
            LoraNotFound
        """
        with self._database.read() as connection:
            found = tuple(_loras(connection, [name]))
        if not found:
            raise LoraNotFound(name, "no LoRA has that name")
        return found[0]

    def page(self, search: Search, limit: int, cursor: str) -> Page[Lora]:
        """LoRAs with a live version that fits the search, by name.

        Raises:
            InvalidCursor
        """
        limit = min(max(limit, 1), MAX_LIMIT)
        after = _read_cursor(cursor, str, "")
        if not all(text.isprintable() for text in (search.name, search.trigger, search.tag)):
            return Page(())
        statement = (
            select(loras.c.name)
            .where(loras.c.name > after, _has_version(search), *_name_has(search.name))
            .order_by(loras.c.name)
            .limit(limit + 1)
        )
        with self._database.read() as connection:
            names = list(connection.execute(statement).scalars())
            items = tuple(_loras(connection, names[:limit]))
        return Page(items, _cursor(names[limit - 1]) if len(names) > limit else "")

    def versions(self, name: str, limit: int, cursor: str) -> Page[LoraVersion]:
        """The live versions of a LoRA, the highest first.

        Raises:
            LoraNotFound, InvalidCursor
        """
        limit = min(max(limit, 1), MAX_LIMIT)
        below = _read_cursor(cursor, int, 2**31 - 1)
        statement = (
            VERSION_ROWS.where(loras.c.name == name, versions.c.number < below)
            .order_by(versions.c.number.desc())
            .limit(limit + 1)
        )
        with self._database.read() as connection:
            found = [version_from(row) for row in connection.execute(statement)]
        if not found and not cursor:
            raise LoraNotFound(name, "no LoRA has that name")
        return Page(tuple(found[:limit]), _cursor(found[limit - 1].number) if len(found) > limit else "")

    def alias(self, name: str, alias: str) -> Alias:
        """Where an alias points, with its etag.

        Raises:
            LoraNotFound
        """
        row = self._database.lookup(_ALIAS, {"name": name, "alias": alias})
        if row is None:
            raise LoraNotFound(f"{name}:{alias}", f"'{name}' has no alias '{alias}'")
        return alias_from(row)

    def refs_of(self, digest: str) -> tuple[str, ...]:
        """Every live version with these bytes (64 hex digits)."""
        statement = VERSION_ROWS.where(versions.c.digest == digest).order_by(loras.c.name, versions.c.number)
        with self._database.read() as connection:
            return tuple(f"{row.name}@{row.number}" for row in connection.execute(statement))

    def live_blobs(self) -> dict[str, int]:
        """Size in bytes by digest (64 hex digits) of all that live versions name."""
        with self._database.read() as connection:
            rows = connection.execute(
                select(blobs.c.digest, blobs.c.size_bytes)
                .join_from(blobs, versions, versions.c.digest == blobs.c.digest)
                .where(versions.c.deleted_ms.is_(None))
                .distinct()
            )
            return {row.digest: row.size_bytes for row in rows}

    def _not_found(self, text: str, ref: ByAlias | ByNumber | ByDigest) -> LoraNotFound:
        if isinstance(ref, ByDigest):
            return LoraNotFound(text, "no live version has that digest")
        with self._database.read() as connection:
            known = any(_loras(connection, [ref.name]))
        if not known:
            return LoraNotFound(text, f"no LoRA is called '{ref.name}'")
        if isinstance(ref, ByNumber):
            return LoraNotFound(text, f"'{ref.name}' has no version {ref.number}, or it was deleted")
        return LoraNotFound(text, f"'{ref.name}' has no alias '{ref.alias}'")


def _loras(connection: Connection, names: Iterable[str]) -> Iterator[Lora]:
    """The LoRAs of these names that have a live version, by name, in three statements."""
    wanted = list(names)
    latest = VERSION_ROWS.add_columns(loras.c.created_ms.label("lora_ms")).join(
        aliases, aliases.c.version_id == versions.c.id
    )
    rows = connection.execute(
        latest.where(loras.c.name.in_(wanted), aliases.c.alias == LATEST).order_by(loras.c.name)
    ).all()
    counts = connection.execute(
        select(loras.c.name, func.count())
        .join_from(loras, versions, versions.c.lora_id == loras.c.id)
        .where(loras.c.name.in_(wanted), versions.c.deleted_ms.is_(None))
        .group_by(loras.c.name)
    )
    count_of = {row[0]: int(row[1]) for row in counts}
    found = [alias_from(row) for row in connection.execute(ALIAS_ROWS.where(loras.c.name.in_(wanted)))]
    for row in rows:
        of_name = tuple(alias for alias in found if alias.name == row.name)
        yield Lora(row.name, version_from(row), count_of[row.name], of_name, moment(row.lora_ms))


def _has_version(search: Search) -> ColumnElement[bool]:
    """That the LoRA at hand has a live version that fits."""
    wanted = tuple(_of_version(search))
    if not wanted:
        return exists().where(versions.c.lora_id == loras.c.id, versions.c.deleted_ms.is_(None))
    # As a set that is found first: a page of a rare word need not look at every LoRA.
    return loras.c.id.in_(select(versions.c.lora_id).where(versions.c.deleted_ms.is_(None), *wanted))


def _of_version(search: Search) -> Iterator[ColumnElement[bool]]:
    for kind, word in (("trigger", search.trigger), ("tag", search.tag)):
        if word:
            has_word = labels.c.folded.contains(word.casefold(), autoescape=True)
            yield versions.c.id.in_(select(labels.c.version_id).where(labels.c.kind == kind, has_word))
    if search.hash:
        digits = search.hash.strip().lower().removeprefix("sha256:")
        if not re.fullmatch(rf"[0-9a-f]{{{MIN_HASH_DIGITS},64}}", digits):
            yield versions.c.id < 0  # nothing has such a hash
        else:
            data = select(blobs.c.digest).where(_begins(blobs.c.data_sha256, digits))
            yield or_(_begins(versions.c.digest, digits), versions.c.digest.in_(data))


def _begins(column: Column[str], digits: str) -> ColumnElement[bool]:
    """That a column of hex digits begins so, as a range: an index finds a range, but not every LIKE."""
    return column.between(digits, digits + "g")


def _name_has(part: str) -> Iterator[ColumnElement[bool]]:
    if part:
        yield loras.c.name.contains(part.lower(), autoescape=True)


def _cursor(value: str | int) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


def _read_cursor(cursor: str, kind: type[Value], default: Value) -> Value:
    if not cursor:
        return default
    try:
        value = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error):
        value = None
    if not isinstance(value, kind) or isinstance(value, bool) or not _is_place(value):
        raise InvalidCursor("the cursor is not one of this list; begin without one")
    return value


def _is_place(value: str | int) -> bool:
    return is_name(value) if isinstance(value, str) else 0 < value <= MAX_NUMBER
