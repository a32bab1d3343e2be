"""A schema through time, by alembic, which is imported only when there is something to migrate."""

import threading
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import Connection, MetaData, Select, column, inspect, select, table, text

from lora_registry.errors import CatalogUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

_ONE_AT_A_TIME: Final = threading.Lock()


@dataclass(frozen=True)
class Migrations:
    """The steps of one schema. Several schemas may share a database: each counts in a table of its own."""

    package: str
    """Where `env.py` and `versions/` are; env.py calls `run`."""
    metadata: MetaData
    head: str
    """The newest revision; the last file of `versions/`."""
    version_table: str
    lock: int
    """Of PostgreSQL's advisory locks: replicas that start together migrate one after another."""
    owner: str
    """Whose database it is, for messages."""

    def current(self, connection: Connection) -> str:
        """The revision that the database has; empty for an empty database."""
        if not inspect(connection).has_table(self.version_table):
            return ""
        statement: Select[Any] = select(column("version_num")).select_from(table(self.version_table))
        return str(connection.execute(statement).scalar() or "")

    def bring_up_to_date(self, connection: Connection) -> None:
        """Migrate to the head within the transaction of `connection`; nothing where it is there already.

        Raises:
            CatalogUnavailable: the database was written by a newer program.
        """
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": self.lock})
        revision = self.current(connection)
        if revision == self.head:
            return
        if revision > self.head:
            raise CatalogUnavailable(
                f"{self.owner} has schema {revision}, this program knows {self.head}; run the newer program"
            )
        self.migrate(connection, self.head)

    def migrate(self, connection: Connection, revision: str) -> None:
        """Go up or down to a revision (`base` is the empty database)."""
        from alembic import command

        down = revision == "base" or revision < self.current(connection)
        # alembic keeps the present migration in module globals: two databases must not migrate side by side.
        with _ONE_AT_A_TIME:
            (command.downgrade if down else command.upgrade)(self.configuration(connection), revision)

    def configuration(self, connection: Connection) -> "Config":
        """What alembic needs to know; its own command line is not used."""
        from alembic.config import Config

        config = Config()
        config.set_main_option("script_location", str(files(self.package)))
        config.attributes.update(
            connection=connection, target_metadata=self.metadata, version_table=self.version_table
        )
        return config


def run() -> None:
    """The whole of an `env.py`: alembic calls it with what `Migrations.configuration` gave."""
    from alembic import context

    context.configure(**context.config.attributes, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
