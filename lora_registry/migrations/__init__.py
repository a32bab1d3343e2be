"""The catalogue's schema through time. alembic is imported only when there is something to migrate."""

from importlib.resources import files
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, column, inspect, select, table, text

from lora_registry.errors import CatalogUnavailable

if TYPE_CHECKING:
    from alembic.config import Config

HEAD: Final = "0001"
"""The newest revision; the last file of `versions/`."""
_LOCK: Final = 0x6C6F7261
"""Of PostgreSQL's advisory locks: replicas that start together migrate one after another."""


def current(connection: Connection) -> str:
    """The revision that the database has; empty for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return ""
    found = connection.execute(select(column("version_num")).select_from(table("alembic_version"))).scalar()
    return str(found or "")


def bring_up_to_date(connection: Connection) -> None:
    """Migrate to HEAD within the transaction of `connection`; nothing where it is there already.

    Raises:
        CatalogUnavailable: the database was written by a newer program.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _LOCK})
    revision = current(connection)
    if revision == HEAD:
        return
    if revision > HEAD:
        raise CatalogUnavailable(
            f"the registry's database has schema {revision}, this program knows {HEAD}; run the newer program"
        )
    migrate(connection, HEAD)


def migrate(connection: Connection, revision: str) -> None:
    """Go up or down to a revision (`base` is the empty database)."""
    from alembic import command

    down = revision == "base" or revision < current(connection)
    (command.downgrade if down else command.upgrade)(configuration(connection), revision)


def configuration(connection: Connection) -> "Config":
    """What alembic needs to know; its own command line is not used."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(files(__name__)))
    config.attributes["connection"] = connection
    return config
