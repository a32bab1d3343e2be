"""The connection to SQLite or PostgreSQL, and the two kinds of transaction that its users need."""

import sqlite3
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from sqlalchemy import URL, Connection, Engine, Row, Select, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, TimeoutError

from lora_registry.errors import CatalogFull, CatalogUnavailable
from lora_registry.faults import InjectedFault, point
from lora_registry.migrating import Migrations
from lora_registry.migrations import MIGRATIONS

BUSY_SECONDS: Final = 30
POOL_SIZE: Final = 8
_POSTGRESQL_DISK_FULL: Final = "53100"


class Database:
    """One SQLite file (WAL) or one PostgreSQL database, with a schema that is up to date; the registry's by default.

    `url` is `sqlite:///FILE` or `postgresql://…`. Safe to use from several threads.
    """

    def __init__(self, url: str, migrations: Migrations = MIGRATIONS) -> None:
        self._owner = migrations.owner
        self._url = _driver_url(url, self._owner)
        self.is_sqlite = self._url.get_backend_name() == "sqlite"
        arguments: dict[str, Any] = {"timeout": BUSY_SECONDS} if self.is_sqlite else {"connect_timeout": 10}
        # A connection that died with the server is found before it is used, and replaced.
        self._engine = create_engine(
            self._url, connect_args=arguments, pool_size=POOL_SIZE, pool_pre_ping=not self.is_sqlite
        )
        if self.is_sqlite:
            event.listen(self._engine, "connect", _prepare_sqlite)
            event.listen(self._engine, "begin", _begin_sqlite)
            self._lookups: Engine = self._engine.execution_options(sqlite_begin="")
        else:
            # Asking a connection whether it lives costs as much as the lookup: here a dead one is met and replaced.
            self._lookups = create_engine(
                self._url, connect_args=arguments, pool_size=POOL_SIZE, isolation_level="AUTOCOMMIT"
            )
        with self.read() as connection:
            up_to_date = migrations.current(connection) == migrations.head
        if not up_to_date:
            with self.write() as connection:
                migrations.bring_up_to_date(connection)

    def lookup(self, statement: Select[Any], values: Mapping[str, str | int]) -> Row[Any] | None:
        """The one row, or none, that a statement finds; without the cost of a transaction."""
        with catalog_errors(self._owner):
            try:
                return self._look(statement, values)
            except DBAPIError as exc:
                if not exc.connection_invalidated:
                    raise
                return self._look(statement, values)  # the server was restarted; the pool is empty now

    def _look(self, statement: Select[Any], values: Mapping[str, str | int]) -> Row[Any] | None:
        with self._lookups.connect() as connection:
            return connection.execute(statement, values).one_or_none()

    @contextmanager
    def read(self) -> Iterator[Connection]:
        """A transaction that sees one state of the tables."""
        with catalog_errors(self._owner), self._engine.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Connection]:
        """A transaction that changes the tables: all of it, once the block is left without an error."""
        engine = self._engine.execution_options(sqlite_begin="BEGIN IMMEDIATE")
        with catalog_errors(self._owner), engine.connect() as connection, connection.begin():
            point("catalog.begin")
            yield connection
            point("catalog.commit")

    def close(self) -> None:
        """Give all connections back."""
        self._engine.dispose()
        self._lookups.dispose()


@contextmanager
def catalog_errors(owner: str) -> Iterator[None]:
    """Turn the database's failures into CatalogUnavailable, and a full disk into CatalogFull."""
    try:
        yield
    except (DBAPIError, TimeoutError, InjectedFault) as exc:
        if _is_full(exc):
            raise CatalogFull(f"the disk of {owner} is full; nothing was changed") from exc
        # The text of a database error may hold addresses, statements and values.
        raise CatalogUnavailable(f"{owner} does not answer as it should; try again later") from exc


def _is_full(error: Exception) -> bool:
    found = getattr(error, "orig", None)
    if isinstance(found, sqlite3.Error):
        return getattr(found, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL
    return getattr(found, "sqlstate", None) == _POSTGRESQL_DISK_FULL


def _driver_url(text: str, owner: str) -> URL:
    try:
        url = make_url(text)
    except ArgumentError as exc:
        raise CatalogUnavailable(
            f"the URL of {owner} cannot be read; write sqlite:///FILE or postgresql://…"
        ) from exc
    if url.drivername in ("postgresql", "postgres"):
        return url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise CatalogUnavailable(f"{owner} is SQLite or PostgreSQL, not {url.drivername}")
    return url


def _prepare_sqlite(connection: Any, _record: object) -> None:
    # Python's driver begins transactions at times of its own choice; ours are begun by hand below.
    connection.isolation_level = None
    cursor = connection.cursor()
    _switch_to_wal(cursor)
    cursor.execute("PRAGMA synchronous = FULL")  # what was acknowledged survives a power cut
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    # The switch does not wait for others as statements do, so processes that start together wait here.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def _begin_sqlite(connection: Connection) -> None:
    # A writer takes its lock at once: a reader that turns writer would fail instead of waiting.
    statement = connection.get_execution_options().get("sqlite_begin", "BEGIN")
    if statement:
        connection.exec_driver_sql(statement)
