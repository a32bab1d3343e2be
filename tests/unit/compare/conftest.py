"""The store's fixtures."""

from work_store import (  # noqa: F401
    armed,
    clock,
    comparisons,
    data,
    migrated_work,
    opened,
    opened_comparisons,
    table,
    work_postgres,
    work_url,
)
