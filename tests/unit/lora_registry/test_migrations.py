"""The migrations make what the models say, on both databases, forwards and backwards."""

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from lora_registry import errors, migrations
from lora_registry.database import Database
from lora_registry.registry import Registry
from lora_registry.schema import metadata
from unit.lora_registry.makers import pocket
from unit.lora_registry.test_races import at_once


def test_migrations_and_models_agree(empty_database_url):
    with Database(empty_database_url).read() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []


def test_the_newest_revision_is_the_one_that_the_program_expects(empty_database_url):
    with Database(empty_database_url).read() as connection:
        script = ScriptDirectory.from_config(migrations.configuration(connection))
        assert script.get_current_head() == migrations.HEAD
        assert migrations.current(connection) == migrations.HEAD


def test_down_to_nothing_and_up_again(empty_database_url):
    database = Database(empty_database_url)
    with database.write() as connection:
        migrations.migrate(connection, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    with database.write() as connection:
        migrations.bring_up_to_date(connection)
        assert set(metadata.tables) <= set(inspect(connection).get_table_names())


def test_versions_survive_a_restart_and_nothing_is_migrated_twice(opened, lora_file):
    version = opened().publish("ink-wash", [lora_file()])
    assert opened().resolve("ink-wash") == version


def test_a_database_of_a_newer_program_is_left_alone(database_url):
    with Database(database_url).write() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(errors.CatalogUnavailable, match="schema 9999, this program knows"):
        Database(database_url)


def test_replicas_that_start_together_on_an_empty_database_all_start(empty_database_url, tmp_path):
    started = at_once(
        *[lambda: Registry.connect([pocket()], data=tmp_path, database=empty_database_url) for _ in range(3)]
    )
    assert [type(registry) for registry in started] == [Registry] * 3
    for registry in started:
        registry.close()


@pytest.mark.parametrize("url", ["mysql://somewhere/x", "nonsense", "sqlite:////nowhere/at/all/x.sqlite3"])
def test_a_database_that_cannot_be_used_is_said_so_without_its_address(url):
    with pytest.raises(errors.CatalogUnavailable) as refused:
        Database(url)
    assert "nowhere" not in str(refused.value)
