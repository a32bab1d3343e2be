"""The database of datasets, train jobs and comparisons: SQLite in a file of its own, or the registry's PostgreSQL."""

from pathlib import Path

from lora_registry.database import Database
from lora_registry.incoming import storage_errors
from service.store.migrations import MIGRATIONS


def location(database: str, data: Path) -> str:
    """The URL for `settings.database` and `settings.data`; the folder is made where SQLite is to be in it."""
    if database:
        return database
    with storage_errors():
        data.mkdir(parents=True, exist_ok=True)
    return f"sqlite:///{data / 'work.sqlite3'}"


def connect(url: str) -> Database:
    """The database at that URL, its tables made or brought up to date.

    Raises:
        CatalogUnavailable
    """
    return Database(url, MIGRATIONS)
