"""A comparison in the hands of one process: every write is refused once another one has it."""

import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, Literal

from sqlalchemy import ColumnElement, Connection, bindparam, delete, insert, select, update

from darkroom.types import CompareCell, CompareFile, CompareVerdict, Comparison, Problem, RunStage
from lora_registry.blobs import Blobs
from lora_registry.database import Database
from lora_registry.faults import point
from lora_registry.incoming import storage_errors
from service.compare.changes import RunChange
from service.compare.errors import CompareFileNotFound
from service.compare.rows import at_place, get_comparison, measured, named, written_all, written_cell
from service.store.errors import LeaseLost
from service.store.files import hold_off_collection, put_bytes, read_bytes
from service.store.schema import cells, comparison_files

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9._/-]{0,80}")


class ComparisonClaim:
    """Made by `ComparisonTable.claim_next`. `comparison` is as it was then, with the cells of earlier attempts.

    Every write is one transaction. It raises LeaseLost, and changes nothing, where the comparison was claimed by
    another process since or has ended; CatalogUnavailable, StorageFull or StorageUnavailable where it could not be
    made, and may be made again then. Safe to use from several threads.
    """

    def __init__(
        self,
        database: Database,
        files: Blobs,
        comparison: Comparison,
        pinned: str,
        fence: int,
        *,
        lease_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._database, self._files, self._clock = database, files, clock
        self.comparison, self.pinned, self.fence = comparison, pinned, fence
        self.lease_seconds = lease_seconds
        self._ending, self._has_ended = threading.Lock(), False

    def renew(self) -> bool:
        """Extend the lease; True where its end was asked for. Nothing where this very claim has ended it."""
        with self._ending:
            if self._has_ended:
                return False
            with self._changing() as change:
                change.set(lease_until_ms=change.now_ms + int(self.lease_seconds * 1000))
        return bool(change.row.cancel_requested)

    def keep(self, cell: CompareCell, picture: bytes, thumbnail: bytes) -> None:
        """Record that a cell is done, with its PNG. Kept again, it is the same cell with the newer picture."""
        blobs = [(put_bytes(self._files, data), data) for data in (picture, thumbnail)]
        with storage_errors():
            point("compare.after_blobs")
        with self._changing() as change:
            hold_off_collection(change.connection)
            before = self._cell_state(change.connection, cell.index)
            (picture_digest, _), (thumbnail_digest, _) = blobs
            values = {
                "state": "done",
                "picture": picture_digest.removeprefix("sha256:"),
                "picture_bytes": len(picture),
                "thumbnail": thumbnail_digest.removeprefix("sha256:"),
                "measurements": measured(cell.measurements),
                "data": written_cell(cell),
            }
            change.connection.execute(update(cells).where(*self._at(cell.index)).values(values))
            change.set(done=change.row.done + (before == "waiting"))
            if before != "done":
                change.tell("cell", cell=cell.index)
            for digest, data in blobs:
                self._store_again_if_collected(digest, data)
            point("compare.after_cell")

    def fail(self, index: int, problem: Problem) -> None:
        """Record why a cell has no picture. One that is done stays as it is."""
        with self._changing() as change:
            before = self._cell_state(change.connection, index)
            if before == "done":
                return
            data = change.connection.execute(select(cells.c.data).where(*self._at(index))).scalar_one()
            data = json.dumps(json.loads(data) | {"problem": problem.model_dump(mode="json")})
            change.connection.execute(update(cells).where(*self._at(index)).values(state="failed", data=data))
            change.set(done=change.row.done + (before == "waiting"))
            if before == "waiting":
                change.tell("cell", cell=index, message=problem.detail)

    def measure(self, measurements: Mapping[int, Mapping[str, float]]) -> None:
        """Add measurements to cells, by index; those that have the name of an older one take its place."""
        with self._changing() as change:
            its_cells = cells.c.comparison_id == self.comparison.id
            those = select(cells.c.place, cells.c.measurements).where(
                its_cells, cells.c.place.in_(measurements)
            )
            found = change.connection.execute(those)
            known = {row.place: json.loads(row.measurements) for row in found}
            rows = [
                {"at": index, "text": measured(known[index] | dict(more))}
                for index, more in measurements.items()
            ]
            if rows:
                statement = (
                    update(cells)
                    .where(its_cells, cells.c.place == bindparam("at"))
                    .values(measurements=bindparam("text"))
                )
                change.connection.execute(statement, rows)

    def stage(self, stage: RunStage) -> None:
        """Move to a stage; nothing where it is there already."""
        with self._changing() as change:
            change.stage(stage)

    def put_file(self, name: str, media_type: str, data: bytes) -> CompareFile:
        """Keep a file with the comparison, in the place of one that has its name: `sheet.png`, `differences/3.webp`.

        Raises:
            ValueError: the name is none for a file.
        """
        if not _NAME.fullmatch(name) or ".." in name:
            raise ValueError(f"{name[:120]!r} is no name for a file of a comparison; use a-z, 0-9 and ._/-")
        digest = put_bytes(self._files, data)
        with storage_errors():
            point("compare.after_blob")
        with self._changing() as change:
            hold_off_collection(change.connection)
            change.connection.execute(delete(comparison_files).where(*named(self.comparison.id, name)))
            row = {
                "comparison_id": self.comparison.id,
                "name": name,
                "media_type": media_type,
                "digest": digest.removeprefix("sha256:"),
                "size_bytes": len(data),
            }
            change.connection.execute(insert(comparison_files), row)
            self._store_again_if_collected(digest, data)
            point("compare.after_file")
        return CompareFile(name=name, media_type=media_type, size_bytes=len(data), digest=digest)

    def picture(self, index: int) -> bytes:
        """The PNG of a cell that is done. Raises CompareFileNotFound, BlobMissing."""
        return self._read(index, "picture")

    def thumbnail(self, index: int) -> bytes:
        """Its thumbnail. Raises CompareFileNotFound, BlobMissing."""
        return self._read(index, "thumbnail")

    def finish(
        self,
        state: Literal["succeeded", "failed", "cancelled"],
        *,
        verdicts: Sequence[CompareVerdict] = (),
        conclusion: str = "",
        warnings: Sequence[str] = (),
        problem: Problem | None = None,
    ) -> Comparison:
        """End it, with what it has found; also where its cancel was asked for in the last moment."""
        with self._ending:
            with self._changing() as change:
                point("compare.before_end")
                change.set(
                    verdicts=written_all(verdicts),
                    conclusion=json.dumps(conclusion),
                    warnings=json.dumps(list(warnings)),
                    problem=None if problem is None else problem.model_dump_json(),
                )
                if state == "succeeded":
                    change.stage("done")
                change.state(state, None if problem is None else problem.detail)
            self._has_ended = True
        return get_comparison(self._database, self.comparison.id)

    def release(self) -> None:
        """Leave: it waits again, and keeps its cells. Where its end was asked for it is cancelled instead."""
        with self._changing() as change:
            change.state("cancelled" if change.row.cancel_requested else "queued")

    @contextmanager
    def _changing(self) -> Iterator[RunChange]:
        with RunChange.of(self._database, self.comparison.id, int(self._clock() * 1000)) as change:
            if change.row.fence != self.fence or change.row.state != "running":
                raise LeaseLost(self.comparison.id)
            yield change

    def _cell_state(self, connection: Connection, index: int) -> str:
        return str(connection.execute(select(cells.c.state).where(*self._at(index))).scalar_one())

    def _read(self, index: int, column: Literal["picture", "thumbnail"]) -> bytes:
        with self._database.read() as connection:
            digest = connection.execute(select(cells.c[column]).where(*self._at(index))).scalar()
        if digest is None:
            raise CompareFileNotFound(self.comparison.id, f"images/{index}")
        return read_bytes(self._files, f"sha256:{digest}")

    def _store_again_if_collected(self, digest: str, data: bytes) -> None:
        if not self._files.has(digest, len(data)):  # a collection was at work in between
            put_bytes(self._files, data)

    def _at(self, index: int) -> tuple[ColumnElement[bool], ColumnElement[bool]]:
        return at_place(self.comparison.id, index)
