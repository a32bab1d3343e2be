"""Datasets by the digest of their contents: taken in, found, read, deleted. The only class that others use.

It blocks on disks, databases and stores: call it from a thread. One object serves many threads; many processes may
share one database and one store.
"""

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final

from sqlalchemy import Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from darkroom.types.datasets import (
    MAX_PICTURES,
    Dataset,
    DatasetFault,
    DatasetPage,
    DatasetPicture,
    DatasetSummary,
    SynthesizeRequest,
)
from lora_registry.blobs import Blobs
from lora_registry.database import Database
from lora_registry.rows import moment
from service.datasets import contents
from service.datasets.contents import Entry, digest_of
from service.datasets.errors import DatasetNotFound, EmptyDataset, InvalidArchive, PictureNotFound
from service.datasets.incoming import Incoming, unnamed
from service.datasets.intake import Intake, Invalid
from service.errors import InvalidOption
from service.store.cursors import page
from service.store.files import hold_off_collection, put_bytes, read_bytes
from service.store.schema import datasets

MAX_LIMIT: Final = 200
MAX_NAME_CHARACTERS: Final = 64
_ID: Final = re.compile(r"sha256:[0-9a-f]{64}")
_SUMMARY: Final = (
    datasets.c.digest,
    datasets.c.name,
    datasets.c.picture_count,
    datasets.c.size_bytes,
    datasets.c.created_ms,
)


Opener = Callable[[], bytes]
"""Gives the PNG of a picture."""
PictureFiles = list[tuple[DatasetPicture, Opener]]


class Datasets:
    """The datasets in this database and store.

    Every method may raise CatalogUnavailable and StorageUnavailable, beside what it names.
    """

    def __init__(self, database: Database, files: Blobs, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._files, self._clock = database, files, clock
        self._insert = sqlite.insert if database.is_sqlite else postgresql.insert

    # In

    def receive(self, boundary: bytes | None = None) -> Incoming:
        """Where to write an upload, piece by piece, before it is added; close it in any case."""
        return Incoming(self._files.staging, boundary=boundary)

    def add(
        self, incoming: Incoming, *, prompt: str = "", invalid: Invalid = "refuse", name: str = ""
    ) -> Dataset:
        """The dataset that was uploaded. Nothing is kept unless everything in it is good, or may be left out.

        Its faults are those of this upload, even where the dataset was there already.

        Raises:
            InvalidArchive, InvalidDataset, EmptyDataset, DatasetTooLarge, StorageFull
            InvalidOption: the name cannot be used.
        """
        with unnamed(self._files.staging) as spool:
            intake = Intake(spool)
            intake.take(incoming.members())
            entries, faults = intake.entries(" ".join(prompt.split()), invalid)
            return self._store(entries, intake.png, name=name, faults=faults)

    def add_pictures(
        self,
        pictures: Iterable[tuple[str, bytes, str]],
        *,
        name: str = "",
        synthesis: SynthesizeRequest | None = None,
        model: str = "",
        faults: Iterable[DatasetFault] = (),
    ) -> Dataset:
        """The dataset of pictures that we made ourselves: name of the file, PNG without metadata, caption.

        `model` is the fingerprint of the weights that made them; `made_by` finds the dataset by it.

        Raises:
            EmptyDataset, StorageFull
        """
        made: dict[str, bytes] = {}
        entries: list[Entry] = []
        told = list(faults)
        for file, png, caption in pictures:
            digest = digest_of(png)
            if digest in made:
                message = "shows the very pixels of another one, which is kept"
                told.append(DatasetFault(file=file, code="duplicate", message=message))
                continue
            made[digest] = png
            width, height = _size_of(png)
            entries.append(Entry(file, digest, width, height, caption, len(png)))
        if not entries:
            raise EmptyDataset(told)
        recorded = None if synthesis is None else _recorded(synthesis, model)
        return self._store(entries, made.__getitem__, name=name, faults=told, synthesis=recorded)

    def delete(self, id: str) -> None:
        """Hide a dataset; the same upload brings it back. Its pictures stay until a collection takes them.

        Raises:
            DatasetNotFound
        """
        with self._database.write() as connection:
            done = connection.execute(
                update(datasets)
                .where(datasets.c.digest == _hex(id), datasets.c.deleted_ms.is_(None))
                .values(deleted_ms=self._now_ms())
            )
        if done.rowcount != 1:
            raise DatasetNotFound(id)

    # Out

    def get(self, id: str) -> Dataset:
        """A dataset with all its pictures. Raises DatasetNotFound, BlobMissing."""
        return self._read(self._row(id))

    def made_by(self, synthesis: SynthesizeRequest, model: str) -> Dataset | None:
        """The dataset that this synthesis has given with these weights, where it is still there."""
        with self._database.read() as connection:
            row = connection.execute(
                select(datasets)
                .where(datasets.c.synthesis == _recorded(synthesis, model), datasets.c.deleted_ms.is_(None))
                .order_by(datasets.c.created_ms)
                .limit(1)
            ).one_or_none()
        return None if row is None else self._read(row).model_copy(update={"existing": True})

    def list(self, *, limit: int = 50, cursor: str = "") -> DatasetPage:
        """Some datasets, the newest first. Raises InvalidCursor."""
        statement = select(*_SUMMARY).where(datasets.c.deleted_ms.is_(None))
        columns = datasets.c.created_ms, datasets.c.digest
        with self._database.read() as connection:
            rows, next_cursor = page(
                connection, statement, *columns, limit=limit, cursor=cursor, most=MAX_LIMIT
            )
        items = [
            DatasetSummary(
                id=f"sha256:{row.digest}",
                name=row.name,
                picture_count=row.picture_count,
                size_bytes=row.size_bytes,
                created_at=moment(row.created_ms),
            )
            for row in rows
        ]
        return DatasetPage(items=items, next_cursor=next_cursor)

    def open_picture(self, id: str, which: int | str) -> bytes:
        """The PNG of one picture, by its place (from 0) or by its digest.

        Raises:
            DatasetNotFound, PictureNotFound, BlobMissing
        """
        found = self.get(id).pictures
        for place, picture in enumerate(found):
            if which in (place, picture.digest):
                return read_bytes(self._files, picture.digest)
        raise PictureNotFound(id, which, len(found))

    def pictures(self, id: str) -> PictureFiles:
        """Each picture with what gives its PNG, for a trainer. Raises DatasetNotFound, BlobMissing."""
        return [
            (picture, partial(read_bytes, self._files, picture.digest)) for picture in self.get(id).pictures
        ]

    def digests(self) -> set[str]:
        """`sha256:…` of every blob that a dataset needs: what a collection must keep. Raises BlobMissing."""
        with self._database.read() as connection:
            statement = select(datasets.c.digest).where(datasets.c.deleted_ms.is_(None))
            manifests = [f"sha256:{digest}" for digest in connection.execute(statement).scalars()]
        kept = set(manifests)
        for digest in manifests:
            kept.update(p.digest for p in contents.pictures_in(read_bytes(self._files, digest)))
        return kept

    # Steps

    def _store(
        self,
        entries: Sequence[Entry],
        png: Callable[[str], bytes],
        *,
        name: str,
        faults: Sequence[DatasetFault],
        synthesis: str | None = None,
    ) -> Dataset:
        """All pictures first, then the manifest, then the one row that makes them visible."""
        check_name(name)
        if len(entries) > MAX_PICTURES:
            raise InvalidArchive("archive.too_many", f"a dataset has at most {MAX_PICTURES} pictures")
        listed = contents.manifest(entries)
        id = digest_of(listed)
        sizes = {entry.digest: entry.size_bytes for entry in entries} | {id: len(listed)}

        def bytes_of(digest: str) -> bytes:
            return listed if digest == id else png(digest)

        old = [digest for digest, size_bytes in sizes.items() if self._files.has(digest, size_bytes)]
        for digest in sizes:
            put_bytes(self._files, bytes_of(digest))
        values = {
            "name": name,
            "picture_count": len(entries),
            "size_bytes": sum(entry.size_bytes for entry in entries),
            "faults": json.dumps([fault.model_dump() for fault in faults]),
            "synthesis": synthesis,
            "created_ms": self._now_ms(),
            "deleted_ms": None,
        }
        with self._database.write() as connection:
            hold_off_collection(connection)
            for digest in old:  # what was there before may have been old enough to be collected meanwhile
                if not self._files.has(digest, sizes[digest]):
                    put_bytes(self._files, bytes_of(digest))
            back = connection.execute(
                update(datasets)
                .where(datasets.c.digest == _hex(id), datasets.c.deleted_ms.is_not(None))
                .values(values)
            ).rowcount
            new = connection.execute(
                self._insert(datasets).values(digest=_hex(id), **values).on_conflict_do_nothing()
            ).rowcount
        existing = back + new < 1
        return self.get(id).model_copy(update={"faults": [*faults], "existing": existing})

    def _row(self, id: str) -> Row[Any]:
        with self._database.read() as connection:
            row = connection.execute(
                select(datasets).where(datasets.c.digest == _hex(id), datasets.c.deleted_ms.is_(None))
            ).one_or_none()
        if row is None:
            raise DatasetNotFound(id)
        return row

    def _read(self, row: Row[Any]) -> Dataset:
        id = f"sha256:{row.digest}"
        return Dataset(
            id=id,
            name=row.name,
            pictures=contents.pictures_in(read_bytes(self._files, id)),
            size_bytes=row.size_bytes,
            faults=[DatasetFault.model_validate(fault) for fault in json.loads(row.faults)],
            synthesis=_synthesis_in(row.synthesis),
            created_at=moment(row.created_ms),
        )

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


def check_name(name: str) -> None:
    """Raises InvalidOption for a name that a dataset cannot have."""
    if len(name) > MAX_NAME_CHARACTERS or not name.isprintable():
        raise InvalidOption(
            f"a dataset's name has at most {MAX_NAME_CHARACTERS} printable characters", pointer="/name"
        )


def _recorded(synthesis: SynthesizeRequest, model: str) -> str:
    """How a dataset was made, as its row has it: equal for equal work, whatever the dataset is called."""
    made = {"model": model, "request": synthesis.model_dump(mode="json", exclude={"name"})}
    return json.dumps(made, sort_keys=True, separators=(",", ":"))


def _synthesis_in(recorded: str | None) -> SynthesizeRequest | None:
    return None if recorded is None else SynthesizeRequest.model_validate(json.loads(recorded)["request"])


def _hex(id: str) -> str:
    """The 64 hex digits of an id. Raises DatasetNotFound for what is no id."""
    if not _ID.fullmatch(id):
        raise DatasetNotFound(id)
    return id.removeprefix("sha256:")


def _size_of(png: bytes) -> tuple[int, int]:
    """Width and height, where the PNG specification has them: behind the signature and the head of IHDR."""
    return int.from_bytes(png[16:20], "big"), int.from_bytes(png[20:24], "big")
