"""One row, locked: what changes in it and the events that tell of it are written together or not at all."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final, Self

from sqlalchemy import Column, Connection, Row, Table, insert, select, update

from lora_registry.database import Database

MOST_EVENTS: Final = 500
MAX_INTEGER: Final = 2**31 - 1
"""Of a column."""


class Change:
    """Collects what shall be different; `write` writes it. `row` is as it was before.

    Whoever has one must have the row locked. A subclass says which table it is of.
    """

    rows: ClassVar[Table]
    teller: ClassVar[Column[str]]
    """Of the table of its events: the column with the row's id."""
    missing: ClassVar[type[Exception]]
    """What is raised, with the id, where there is no such row."""

    def __init__(self, connection: Connection, row: Row[Any], now_ms: int) -> None:
        self.connection, self.row, self.now_ms = connection, row, now_ms
        self._values: dict[str, Any] = {}
        self._events: list[dict[str, Any]] = []

    @classmethod
    @contextmanager
    def of(cls, database: Database, key: str, now_ms: int) -> Iterator[Self]:
        """A transaction in which nobody else changes the row of that id. Raises `missing`."""
        with database.write() as connection:
            row = locked(connection, cls.rows, key)
            if row is None:
                raise cls.missing(key)
            change = cls(connection, row, now_ms)
            yield change
            change.write()

    def set(self, **values: Any) -> None:
        """Give columns new values."""
        self._values |= values

    def value(self, column: str) -> Any:
        """What the column will hold."""
        return self._values.get(column, getattr(self.row, column))

    def event(self, type: str, **data: Any) -> None:
        """Add an event with the next number; `data` are fields of its record, those that are None left out."""
        self._events.append(
            {
                self.teller.name: self.row.id,
                "id": self.row.next_event + len(self._events),
                "type": type,
                "at_ms": self.now_ms,
                "data": json.dumps({name: value for name, value in data.items() if value is not None}),
            }
        )

    def write(self) -> None:
        """Write what was collected. Once."""
        values = self._values | {"next_event": self.row.next_event + len(self._events)}
        self.connection.execute(update(self.rows).where(self.rows.c.id == self.row.id).values(values))
        if self._events:
            self.connection.execute(insert(self.teller.table), self._events)


def locked(connection: Connection, rows: Table, key: str) -> Row[Any] | None:
    """The row of that id, which nobody else changes until this writing transaction ends."""
    # PostgreSQL locks the row; on SQLite a writing transaction is alone anyway.
    return connection.execute(select(rows).where(rows.c.id == key).with_for_update()).one_or_none()


def events_after(
    connection: Connection, teller: Column[str], key: str, *, after: int, limit: int
) -> Sequence[Row[Any]]:
    """Rows of the events of that row with a higher number than `after`, in order. `teller` is as Change has it."""
    told = teller.table
    statement = select(told).where(teller == key, told.c.id > min(after, MAX_INTEGER)).order_by(told.c.id)
    return connection.execute(statement.limit(min(max(limit, 1), MOST_EVENTS))).all()
