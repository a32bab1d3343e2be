"""The store's migrations make what its tables say, beside a registry or alone."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from lora_registry.database import Database
from lora_registry.errors import CatalogUnavailable
from lora_registry.schema import metadata as registry_tables
from service.store.database import connect
from service.store.migrations import MIGRATIONS
from service.store.schema import metadata


def test_migrations_and_tables_agree(empty_url):
    with connect(empty_url).read() as connection:
        options = {
            "compare_type": True,
            "compare_server_default": True,
            "version_table": MIGRATIONS.version_table,
        }
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_the_newest_revision_is_the_one_that_the_program_expects(empty_url):
    with connect(empty_url).read() as connection:
        script = ScriptDirectory.from_config(MIGRATIONS.configuration(connection))
        assert script.get_current_head() == MIGRATIONS.head == MIGRATIONS.current(connection)


def test_down_to_nothing_and_up_again(empty_url):
    database = connect(empty_url)
    with database.write() as connection:
        MIGRATIONS.migrate(connection, "base")
        assert inspect(connection).get_table_names() == [MIGRATIONS.version_table]
    with database.write() as connection:
        MIGRATIONS.bring_up_to_date(connection)
        assert set(metadata.tables) <= set(inspect(connection).get_table_names())
    database.close()


def test_the_store_and_the_registry_share_a_database_and_neither_touches_the_other(empty_url):
    registry, work = Database(empty_url), connect(empty_url)
    with work.write() as connection:
        MIGRATIONS.migrate(connection, "base")
        assert set(registry_tables.tables) <= set(inspect(connection).get_table_names())
    registry.close()
    work.close()
    again = connect(empty_url)
    with again.read() as connection:
        names = set(inspect(connection).get_table_names())
    assert names == {*registry_tables.tables, *metadata.tables, "alembic_version", MIGRATIONS.version_table}
    again.close()


def test_a_database_of_a_newer_program_is_left_alone(work_url):
    database = connect(work_url)
    with database.write() as connection:
        connection.execute(text(f"UPDATE {MIGRATIONS.version_table} SET version_num = '9999'"))
    database.close()
    with pytest.raises(CatalogUnavailable, match="datasets and train jobs has schema 9999"):
        connect(work_url)
