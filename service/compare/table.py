"""Comparisons as everyone sees them: made, listed, cancelled and claimed.

States: queued → running → succeeded, failed or cancelled; back to queued where a process leaves. One whose process
died is taken up by another, which goes on with the cells that are not done. Any number of processes on any number of
machines may use one table.
"""

import builtins
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, BinaryIO, Final, cast

from sqlalchemy import Select, and_, delete, insert, or_, select

from darkroom.types import (
    CompareCell,
    CompareEvent,
    CompareFile,
    ComparePlan,
    CompareRequest,
    Comparison,
    ComparisonPage,
    MetricInfo,
    Problem,
    RunState,
)
from lora_registry.blobs import Blobs
from lora_registry.database import Database
from service.compare.changes import ENDED, RunChange
from service.compare.claims import ComparisonClaim
from service.compare.errors import CompareFileNotFound, ComparisonNotFound
from service.compare.rows import (
    at_place,
    comparison_from,
    event_from,
    file_from,
    get_comparison,
    measured,
    named,
    whole_comparison,
    written,
    written_all,
    written_cell,
)
from service.store.changes import MAX_INTEGER, events_after
from service.store.cursors import page
from service.store.keys import insert_once, row_made_with
from service.store.schema import cells, comparison_events, comparison_files, comparisons

FRUITLESS_ATTEMPTS: Final = 3
"""So many deaths in a row without a new finished cell are not bad luck."""


@dataclass(frozen=True)
class Draft:
    """A comparison that has been planned, and is to be made."""

    request: CompareRequest
    plan: ComparePlan
    cells: tuple[CompareCell, ...]
    """All waiting; each at the place that its index says."""
    metrics: tuple[MetricInfo, ...]
    model: str
    """Fingerprint of the weights that it was planned for."""
    pinned: str
    """JSON that whoever draws it gets back as it is: which versions its refs of LoRAs meant."""


class ComparisonTable:
    """The only way to comparisons. `clock` is seconds since the epoch."""

    def __init__(self, database: Database, files: Blobs, *, clock: Callable[[], float] = time.time) -> None:
        self._database, self._files, self._clock = database, files, clock

    # For callers

    def create(self, draft: Draft, *, key: str = "", fingerprint: str = "") -> tuple[Comparison, bool]:
        """A new comparison, or the one that was made with this idempotency key (True) out of the same body.

        Raises:
            KeyReused: the key came with another body before.
        """
        now = self._now_ms()
        with self._database.write() as connection:
            row, replayed = insert_once(
                connection, comparisons, _fresh_row(draft, now), key=key, fingerprint=fingerprint
            )
            if not replayed:
                if draft.cells:
                    connection.execute(insert(cells), [_fresh_cell(row.id, cell) for cell in draft.cells])
                change = RunChange(connection, row, now)
                change.tell("state", state="queued")
                change.write()
            return whole_comparison(connection, row), replayed

    def made_with(self, key: str, fingerprint: str) -> Comparison | None:
        """The comparison that this idempotency key made out of the same body, if there is one. Raises KeyReused."""
        with self._database.read() as connection:
            row = row_made_with(connection, comparisons, key, fingerprint)
            return None if row is None else whole_comparison(connection, row)

    def get(self, comparison_id: str) -> Comparison:
        """The comparison as it stands, with its cells, verdicts and files.

        Raises:
            ComparisonNotFound
        """
        return get_comparison(self._database, comparison_id)

    def state(self, comparison_id: str) -> RunState:
        """Its state alone, for those who ask often.

        Raises:
            ComparisonNotFound
        """
        with self._database.read() as connection:
            found = connection.execute(
                select(comparisons.c.state).where(comparisons.c.id == comparison_id)
            ).scalar()
        if found is None:
            raise ComparisonNotFound(comparison_id)
        return cast(RunState, found)

    def list(self, *, state: RunState | None = None, limit: int = 50, cursor: str = "") -> ComparisonPage:
        """Comparisons in that state, or all; the newest first, without their cells, verdicts and files.

        Raises:
            InvalidCursor
        """
        statement = select(comparisons)
        if state is not None:
            statement = statement.where(comparisons.c.state == state)
        columns = comparisons.c.created_ms, comparisons.c.id
        with self._database.read() as connection:
            rows, next_cursor = page(connection, statement, *columns, limit=limit, cursor=cursor)
        return ComparisonPage(items=[comparison_from(row) for row in rows], next_cursor=next_cursor)

    def cancel(self, comparison_id: str) -> Comparison:
        """End it: at once where nobody works on it, else soon. One that has ended stays as it is.

        Raises:
            ComparisonNotFound
        """
        with RunChange.of(self._database, comparison_id, self._now_ms()) as change:
            row = change.row
            # The lease of a dead process has run out, and there may be none that would take it up and hear of it.
            if row.state == "queued" or (row.state == "running" and row.lease_until_ms <= change.now_ms):
                change.state("cancelled")
            elif row.state == "running":
                change.set(cancel_requested=True)
        return self.get(comparison_id)

    def events(self, comparison_id: str, *, after: int = 0, limit: int = 500) -> builtins.list[CompareEvent]:
        """Events with a higher number than `after`, in order. Empty also for a comparison that is not there."""
        with self._database.read() as connection:
            rows = events_after(connection, RunChange.teller, comparison_id, after=after, limit=limit)
        return [event_from(row) for row in rows]

    def picture(self, comparison_id: str, cell: int) -> tuple[CompareFile, BinaryIO]:
        """The PNG of a cell that is done; closing it is the caller's.

        Raises:
            ComparisonNotFound, CompareFileNotFound
            BlobMissing, StorageUnavailable
        """
        columns = cells.c.picture.label("digest"), cells.c.picture_bytes
        statement = select(*columns).where(*at_place(comparison_id, min(cell, MAX_INTEGER)))
        name = f"images/{cell}.png"
        with self._database.read() as connection:
            row = connection.execute(statement.where(cells.c.state == "done")).one_or_none()
        if row is None:
            raise self._missing(comparison_id, name)
        found = CompareFile(
            name=name, media_type="image/png", size_bytes=row.picture_bytes, digest=f"sha256:{row.digest}"
        )
        return found, self._files.open(found.digest)

    def open(self, comparison_id: str, name: str) -> tuple[CompareFile, BinaryIO]:
        """One of its files; closing it is the caller's.

        Raises:
            ComparisonNotFound, CompareFileNotFound
            BlobMissing, StorageUnavailable
        """
        statement = select(comparison_files).where(*named(comparison_id, name))
        with self._database.read() as connection:
            row = connection.execute(statement).one_or_none()
        if row is None:
            raise self._missing(comparison_id, name)
        found = file_from(row)
        return found, self._files.open(found.digest)

    # For those who do the work

    def claim_next(self, *, holder: str, lease_seconds: float, model: str) -> ComparisonClaim | None:
        """Take the oldest that was planned for this model and waits, or whose holder's lease has run out.

        Nobody else's writes to it count from then on. On the way it ends those whose processes died once too often,
        and those that were cancelled while nobody worked on them.
        """
        now = self._now_ms()
        wanted = _takeable(model, now)
        with self._database.read() as connection:  # where there is nothing to do, no writer is kept waiting
            if connection.execute(wanted).first() is None:
                return None
        with self._database.write() as connection:
            # PostgreSQL passes over a row that another claimer has; on SQLite a writing transaction is alone anyway.
            locking = wanted.with_for_update(skip_locked=True)
            while (row := connection.execute(locking).one_or_none()) is not None:
                change = RunChange(connection, row, now)
                if row.state == "running":
                    _count_death(change)
                if change.value("state") in ENDED:
                    change.write()
                    continue
                change.set(
                    fence=row.fence + 1,
                    attempts=row.attempts + 1,
                    holder=holder,
                    lease_until_ms=now + int(lease_seconds * 1000),
                    started_ms=row.started_ms if row.started_ms is not None else now,
                    furthest=row.done,
                )
                change.state("running")
                change.write()
                break
            else:
                return None
        return ComparisonClaim(
            self._database,
            self._files,
            self.get(row.id),
            row.pinned,
            row.fence + 1,
            lease_seconds=lease_seconds,
            clock=self._clock,
        )

    # Housekeeping

    def digests(self) -> Iterable[str]:
        """Of all blobs that comparisons name: what a collection must leave."""
        columns = cells.c.picture, cells.c.thumbnail, comparison_files.c.digest
        with self._database.read() as connection:
            return {
                f"sha256:{name}"
                for column in columns
                for name in connection.execute(select(column).where(column.is_not(None)).distinct()).scalars()
            }

    def expire(self, *, older_than_seconds: float) -> int:
        """Forget comparisons that ended before then; how many. Their blobs go with the next collection.

        A repeated idempotency key of one of them makes a new comparison.
        """
        limit_ms = self._now_ms() - int(older_than_seconds * 1000)
        is_old = and_(comparisons.c.state.in_(ENDED), comparisons.c.finished_ms <= limit_ms)
        with self._database.read() as connection:
            old = connection.execute(select(comparisons.c.id).where(is_old)).scalars().all()
        return sum(self._forget(comparison_id) for comparison_id in old)

    def _forget(self, comparison_id: str) -> bool:
        with self._database.write() as connection:
            its_row = comparisons.c.id == comparison_id
            if connection.execute(select(comparisons.c.id).where(its_row).with_for_update()).first() is None:
                return False  # another replica was at it
            for parts in (cells, comparison_events, comparison_files):
                connection.execute(delete(parts).where(parts.c.comparison_id == comparison_id))
            connection.execute(delete(comparisons).where(its_row))
            return True

    def _missing(self, comparison_id: str, name: str) -> CompareFileNotFound:
        with self._database.read() as connection:
            its_row = select(comparisons.c.id).where(comparisons.c.id == comparison_id)
            if connection.execute(its_row).first() is None:
                raise ComparisonNotFound(comparison_id)
        return CompareFileNotFound(comparison_id, name)

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)


_PROCESS_DIED: Final = Problem(
    title="The comparison failed",
    status=500,
    detail=f"the service died {FRUITLESS_ATTEMPTS} times in a row at this comparison without a new finished cell, "
    "most likely for want of memory; ask for smaller pictures or fewer cells, or look into the service's log",
    code="process_died",
)


def _takeable(model: str, now_ms: int) -> Select[Any]:
    one = comparisons.c
    is_left = and_(one.state == "running", one.lease_until_ms <= now_ms)
    return (
        select(comparisons)
        .where(or_(one.state == "queued", is_left))
        # To end one whose cancel was asked for needs no model.
        .where(or_(one.model == model, one.cancel_requested))
        .order_by(one.created_ms, one.id)
        .limit(1)
    )


def _count_death(change: RunChange) -> None:
    fruitless = 0 if change.row.done > change.row.furthest else change.row.fruitless + 1
    change.set(fruitless=fruitless)
    if change.row.cancel_requested:
        change.state("cancelled")
    elif fruitless >= FRUITLESS_ATTEMPTS:
        change.fail(_PROCESS_DIED)


def _fresh_row(draft: Draft, now_ms: int) -> dict[str, Any]:
    return {
        "id": f"cmp_{secrets.token_hex(10)}",
        "state": "queued",
        "stage": "waiting",
        "request": written(draft.request),
        "plan": written(draft.plan),
        "metrics": written_all(draft.metrics),
        "model": draft.model,
        "pinned": draft.pinned,
        "total": len(draft.cells),
        "done": 0,
        "attempts": 0,
        "fruitless": 0,
        "furthest": 0,
        "cancel_requested": False,
        "fence": 0,
        "lease_until_ms": 0,
        "holder": "",
        "next_event": 1,
        "created_ms": now_ms,
    }


def _fresh_cell(comparison_id: str, cell: CompareCell) -> dict[str, Any]:
    return {
        "comparison_id": comparison_id,
        "place": cell.index,
        "state": "waiting",
        "measurements": measured(cell.measurements),
        "data": written_cell(cell),
    }
