"""Where a page of rows ends, as an opaque word: the time and the key of its last row."""

import base64
import binascii
import json
from collections.abc import Sequence
from typing import Any, Final

from sqlalchemy import Column, ColumnElement, Connection, Row, Select, and_, or_

from lora_registry.errors import InvalidCursor

MAX_LIMIT: Final = 500


def cursor_at(created_ms: int, key: str) -> str:
    """What leads to the rows after this one."""
    return base64.urlsafe_b64encode(json.dumps([created_ms, key]).encode()).decode().rstrip("=")


def read_cursor(text: str) -> tuple[int, str]:
    """The time and the key. Raises InvalidCursor where `cursor_at` did not make it."""
    try:
        raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        created_ms, key = json.loads(raw)
    except (ValueError, TypeError, binascii.Error, RecursionError) as exc:
        raise InvalidCursor("the cursor is not one that this service gave out; begin without one") from exc
    if type(created_ms) is not int or type(key) is not str or not 0 <= created_ms < 2**62 or "\0" in key:
        raise InvalidCursor("the cursor is not one that this service gave out; begin without one")
    return created_ms, key


def before(cursor: str, created_ms: Column[int], key: Column[str]) -> ColumnElement[bool]:
    """The rows of the page that the cursor leads to, of a list with the newest first. Raises InvalidCursor."""
    moment, last = read_cursor(cursor)
    return or_(created_ms < moment, and_(created_ms == moment, key < last))


def page(
    connection: Connection,
    statement: Select[Any],
    created_ms: Column[int],
    key: Column[str],
    *,
    limit: int,
    cursor: str,
    most: int = MAX_LIMIT,
) -> tuple[Sequence[Row[Any]], str]:
    """The newest rows of a statement that the cursor leads to, and the cursor of the page after; "" after the last.
    `limit` is the caller's wish, `most` ours.

    Raises:
        InvalidCursor
    """
    limit = min(max(limit, 1), most)
    if cursor:
        statement = statement.where(before(cursor, created_ms, key))
    newest_first = statement.order_by(created_ms.desc(), key.desc()).limit(limit + 1)
    rows = connection.execute(newest_first).all()
    more = len(rows) > limit
    last = rows[limit - 1]._mapping if more else {}
    return rows[:limit], cursor_at(last[created_ms.name], last[key.name]) if more else ""
