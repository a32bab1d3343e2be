"""Idempotency keys: an order that comes twice makes one row."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, Row, Table, select
from sqlalchemy.dialects import postgresql, sqlite

from service.store.errors import KeyReused


def insert_once(
    connection: Connection, rows: Table, values: Mapping[str, Any], *, key: str, fingerprint: str
) -> tuple[Row[Any], bool]:
    """The row of these values, or the one that this key made out of the same body (True). No key: always a new one.

    Raises:
        KeyReused: the key came with another body before.
    """
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    stated = {**values, "idempotency_key": key or None, "fingerprint": fingerprint or None}
    statement = dialect.insert(rows).values(stated).on_conflict_do_nothing().returning(*rows.c)
    row = connection.execute(statement).one_or_none()
    if row is not None:
        return row, False
    made = row_made_with(connection, rows, key, fingerprint)
    assert made is not None, "an insert that did nothing has met its key, or an id of 80 random bits twice"
    return made, True


def row_made_with(connection: Connection, rows: Table, key: str, fingerprint: str) -> Row[Any] | None:
    """The row that this key made out of the same body, if there is one. Raises KeyReused."""
    row = connection.execute(select(rows).where(rows.c.idempotency_key == key)).one_or_none()
    if row is not None and row.fingerprint != (fingerprint or None):
        raise KeyReused(key)
    return row
