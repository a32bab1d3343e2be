"""Where a page of rows ends, as an opaque word: the time and the key of its last row."""

import base64
import binascii
import json

from sqlalchemy import Column, ColumnElement, and_, or_

from lora_registry.errors import InvalidCursor


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
