"""Every name and who may move it: the transactions that change the catalogue.

A writer locks the LoRA's row first and a blob's row second; a collection locks one blob's row alone. So writers of
one name go one after another, and no blob is collected while a version of it is being recorded.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import Connection, Row, delete, exists, insert, select, update
from sqlalchemy.dialects import postgresql, sqlite

from lora_registry.database import Database
from lora_registry.errors import AliasConflict, LoraNotFound, VersionExists, VersionInUse
from lora_registry.records import Alias, LoraVersion
from lora_registry.refs import LATEST
from lora_registry.rows import ALIAS_ROWS, VERSION_ROWS, alias_from, version_from, words_text
from lora_registry.schema import aliases, blobs, labels, loras, versions

ABSENT: Final = ""
"""As an expected etag: the alias must not exist yet."""


@dataclass(frozen=True)
class Publication:
    """What a publish records. `digest` is 64 hex digits; `number` 0 asks for the next one."""

    name: str
    number: int
    digest: str
    data_sha256: str
    size_bytes: int
    summary: str
    triggers: tuple[str, ...]
    tags: tuple[str, ...]
    description: str
    lineage: Mapping[str, Any]
    aliases: tuple[str, ...]


class Catalog:
    """Records and changes names. `now_ms` is milliseconds since the epoch."""

    def __init__(self, database: Database, now_ms: Callable[[], int]) -> None:
        self._database, self._now_ms = database, now_ms

    def record(self, wanted: Publication, before_commit: Callable[[], None]) -> LoraVersion:
        """The new version, or the one that has these bytes already (`existing`); its aliases moved with it.

        `before_commit` is called once no collection can take the blob away any more, and must leave it in the store.
        What it raises undoes everything.

        Raises:
            VersionExists: the number is taken by other bytes, or the bytes by another number.
        """
        now = self._now_ms()
        with self._database.write() as connection:
            lora_id, next_number = self._locked_lora(connection, wanted.name, now)
            self._locked_blob(connection, wanted, now)
            same = connection.execute(
                VERSION_ROWS.where(versions.c.lora_id == lora_id, versions.c.digest == wanted.digest)
            ).one_or_none()
            if same is not None and wanted.number in (0, same.number):
                version_id, version = same.id, replace(version_from(same), existing=True)
            else:
                _refuse_taken_number(connection, wanted, lora_id, same)
                version_id = self._insert_version(connection, wanted, lora_id, next_number, now)
                version = version_from(
                    connection.execute(VERSION_ROWS.where(versions.c.id == version_id)).one()
                )
                self._follow_latest(connection, lora_id, now)
            for alias in wanted.aliases:
                self._point_alias(connection, lora_id, alias, version_id, now)
            before_commit()
        return version

    def delete_version(self, name: str, number: int) -> None:
        """Hide a version for good; its number is not given out again.

        Raises:
            LoraNotFound: there is no such live version.
            VersionInUse: an alias other than `latest` points to it.
        """
        now = self._now_ms()
        with self._database.write() as connection:
            lora_id = self._lock_known(connection, name)
            version = _live_version(connection, lora_id, name, number)
            pointing = connection.execute(
                select(aliases.c.alias)
                .where(aliases.c.version_id == version.id, aliases.c.alias != LATEST)
                .order_by(aliases.c.alias)
            ).scalars()
            if names := tuple(pointing):
                raise VersionInUse(f"{name}@{number}", names)
            connection.execute(update(versions).where(versions.c.id == version.id).values(deleted_ms=now))
            self._follow_latest(connection, lora_id, now)

    def set_alias(self, name: str, alias: str, number: int, expected: str | None) -> Alias:
        """Point an alias to a version. `expected` is its etag, or ABSENT; None moves it from wherever it is.

        Raises:
            LoraNotFound: there is no such live version.
            AliasConflict: the alias is not as expected.
        """
        with self._database.write() as connection:
            lora_id = self._lock_known(connection, name)
            version = _live_version(connection, lora_id, name, number)
            found = _alias(connection, lora_id, alias)
            _check_expected(f"{name}:{alias}", found, expected)
            if found is None or found.number != number:
                self._point_alias(connection, lora_id, alias, version.id, self._now_ms())
            moved = _alias(connection, lora_id, alias)
            assert moved is not None
            return moved

    def delete_alias(self, name: str, alias: str, expected: str | None) -> None:
        """Take an alias away.

        Raises:
            LoraNotFound: there is none.
            AliasConflict: it is not as expected.
        """
        with self._database.write() as connection:
            lora_id = self._lock_known(connection, name)
            found = _alias(connection, lora_id, alias)
            if found is None:
                raise LoraNotFound(f"{name}:{alias}", f"'{name}' has no alias '{alias}'")
            _check_expected(found.ref, found, expected)
            connection.execute(delete(aliases).where(aliases.c.lora_id == lora_id, aliases.c.alias == alias))

    def live_digests(self, since_ms: int) -> set[str]:
        """Digests (64 hex digits) of versions that are live, or were deleted after `since_ms`."""
        with self._database.read() as connection:
            return set(
                connection.execute(select(versions.c.digest).where(_is_needed(since_ms)).distinct()).scalars()
            )

    @contextmanager
    def collecting(self, digest: str, since_ms: int) -> Iterator[bool]:
        """Whether no version needs that blob, in a transaction that keeps it so until the block is left."""
        with self._database.write() as connection:
            placeholder = {
                "digest": digest,
                "data_sha256": "",
                "size_bytes": 0,
                "summary": "{}",
                "created_ms": 0,
            }
            connection.execute(self._insert(blobs).values(placeholder).on_conflict_do_nothing())
            connection.execute(select(blobs.c.digest).where(blobs.c.digest == digest).with_for_update())
            of_blob = versions.c.digest == digest
            needed = connection.execute(select(exists().where(of_blob, _is_needed(since_ms)))).scalar_one()
            yield not needed
            if needed:
                return
            if connection.execute(select(exists().where(of_blob))).scalar_one():
                connection.execute(
                    update(blobs).where(blobs.c.digest == digest).values(removed_ms=self._now_ms())
                )
            else:
                connection.execute(delete(blobs).where(blobs.c.digest == digest))

    def _insert(self, table: Any) -> Any:
        return (sqlite if self._database.is_sqlite else postgresql).insert(table)

    def _locked_lora(self, connection: Connection, name: str, now: int) -> tuple[int, int]:
        fresh = {"name": name, "next_number": 1, "alias_revision": 1, "created_ms": now}
        connection.execute(self._insert(loras).values(fresh).on_conflict_do_nothing())
        row = connection.execute(
            select(loras.c.id, loras.c.next_number).where(loras.c.name == name).with_for_update()
        ).one()
        return row.id, row.next_number

    def _lock_known(self, connection: Connection, name: str) -> int:
        found = connection.execute(select(loras.c.id).where(loras.c.name == name).with_for_update()).scalar()
        if found is None:
            raise LoraNotFound(name, "no LoRA has that name")
        return int(found)

    def _locked_blob(self, connection: Connection, wanted: Publication, now: int) -> None:
        fresh = {
            "digest": wanted.digest,
            "data_sha256": wanted.data_sha256,
            "size_bytes": wanted.size_bytes,
            "summary": wanted.summary,
        }
        # An update even where nothing changes: it locks the row against a collection.
        connection.execute(
            self._insert(blobs)
            .values(**fresh, created_ms=now)
            .on_conflict_do_update(index_elements=["digest"], set_={**fresh, "removed_ms": None})
        )

    def _insert_version(
        self, connection: Connection, wanted: Publication, lora_id: int, next_number: int, now: int
    ) -> int:
        number = wanted.number or next_number
        connection.execute(
            update(loras).where(loras.c.id == lora_id).values(next_number=max(next_number, number + 1))
        )
        row = {
            "lora_id": lora_id,
            "number": number,
            "digest": wanted.digest,
            "words": words_text(wanted.triggers, wanted.tags, wanted.description, wanted.lineage),
            "created_ms": now,
        }
        version_id: int = connection.execute(
            insert(versions).values(row).returning(versions.c.id)
        ).scalar_one()
        folded = {("trigger", word.casefold()) for word in wanted.triggers}
        folded |= {("tag", word.casefold()) for word in wanted.tags}
        if folded:
            connection.execute(
                insert(labels),
                [{"version_id": version_id, "kind": kind, "folded": word} for kind, word in folded],
            )
        return version_id

    def _follow_latest(self, connection: Connection, lora_id: int, now: int) -> None:
        """Keep `latest` on the highest live version."""
        highest = connection.execute(
            select(versions.c.id)
            .where(versions.c.lora_id == lora_id, versions.c.deleted_ms.is_(None))
            .order_by(versions.c.number.desc())
            .limit(1)
        ).scalar()
        if highest is None:
            connection.execute(delete(aliases).where(aliases.c.lora_id == lora_id, aliases.c.alias == LATEST))
            return
        self._point_alias(connection, lora_id, LATEST, highest, now)

    def _point_alias(
        self, connection: Connection, lora_id: int, alias: str, version_id: int, now: int
    ) -> None:
        at = connection.execute(
            select(aliases.c.version_id).where(aliases.c.lora_id == lora_id, aliases.c.alias == alias)
        ).scalar()
        if at == version_id:
            return
        connection.execute(
            update(loras).where(loras.c.id == lora_id).values(alias_revision=loras.c.alias_revision + 1)
        )
        revision = connection.execute(
            select(loras.c.alias_revision).where(loras.c.id == lora_id)
        ).scalar_one()
        place = {"version_id": version_id, "revision": revision, "updated_ms": now}
        connection.execute(
            self._insert(aliases)
            .values(lora_id=lora_id, alias=alias, **place)
            .on_conflict_do_update(index_elements=["lora_id", "alias"], set_=place)
        )


def _is_needed(since_ms: int) -> Any:
    return versions.c.deleted_ms.is_(None) | (versions.c.deleted_ms > since_ms)


def _live_version(connection: Connection, lora_id: int, name: str, number: int) -> Row[Any]:
    found = connection.execute(
        VERSION_ROWS.where(versions.c.lora_id == lora_id, versions.c.number == number)
    ).one_or_none()
    if found is None:
        raise LoraNotFound(f"{name}@{number}", f"'{name}' has no version {number}, or it was deleted")
    return found


def _alias(connection: Connection, lora_id: int, alias: str) -> Alias | None:
    row = connection.execute(
        ALIAS_ROWS.where(aliases.c.lora_id == lora_id, aliases.c.alias == alias)
    ).one_or_none()
    return None if row is None else alias_from(row)


def _check_expected(ref: str, found: Alias | None, expected: str | None) -> None:
    if expected is None:
        return
    etag = found.etag if found else ABSENT
    if etag != expected:
        fact = f"points to version {found.number}" if found else "does not exist"
        raise AliasConflict(ref, f"{fact}, which is not what the caller expected", etag)


def _refuse_taken_number(
    connection: Connection, wanted: Publication, lora_id: int, same: Row[Any] | None
) -> None:
    if same is not None:
        ref = f"{wanted.name}@{same.number}"
        raise VersionExists(
            ref, f"sha256:{same.digest}", f"has these bytes already; it cannot be number {wanted.number} too"
        )
    if not wanted.number:
        return
    taken = connection.execute(
        select(versions.c.digest, versions.c.deleted_ms).where(
            versions.c.lora_id == lora_id, versions.c.number == wanted.number
        )
    ).one_or_none()
    if taken is not None:
        fact = (
            "was deleted, and its number is not given out again"
            if taken.deleted_ms
            else "exists with other bytes"
        )
        raise VersionExists(f"{wanted.name}@{wanted.number}", f"sha256:{taken.digest}", fact)
