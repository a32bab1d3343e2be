"""The store's migrations make what its tables say, beside a registry or alone."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from lora_registry.database import Database
from lora_registry.errors import CatalogUnavailable
from lora_registry.schema import metadata as registry_tables
from service.compare.table import ComparisonTable
from service.jobs.table import JobTable
from service.store.database import connect
from service.store.files import files
from service.store.migrations import MIGRATIONS
from service.store.schema import metadata
from work_store import request


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


def test_jobs_of_before_there_were_comparisons_are_kept(empty_url, data):
    database = connect(empty_url)
    with database.write() as connection:
        MIGRATIONS.migrate(connection, "0001")
    with database.read() as connection:
        assert "comparisons" not in inspect(connection).get_table_names()
    before = JobTable(database, files("", data))
    job, _ = before.create(request(), max_train_steps=100)
    before.claim(job.id, holder="here 1 1", lease_seconds=60).put("loss.png", b"png", "image/png")
    then = before.get(job.id), before.events(job.id)
    database.close()
    upgraded = connect(empty_url)
    after = JobTable(upgraded, files("", data))
    assert (after.get(job.id), after.events(job.id)) == then
    assert ComparisonTable(upgraded, files("", data)).list().items == []
    upgraded.close()


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


def test_a_database_of_a_newer_program_is_left_alone(empty_url):
    database = connect(empty_url)
    with database.write() as connection:
        connection.execute(text(f"UPDATE {MIGRATIONS.version_table} SET version_num = '9999'"))
    database.close()
    with pytest.raises(CatalogUnavailable, match="datasets, train jobs and comparisons has schema 9999"):
        connect(empty_url)
