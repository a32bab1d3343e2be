"""The store's fixtures."""

from work_store import (  # noqa: F401
    armed,
    clock,
    data,
    empty_url,
    local,
    migrated_work,
    opened,
    table,
    work_postgres,
    work_url,
)
