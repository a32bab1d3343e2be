"""What a database's own failures become."""

import pytest
from sqlalchemy import text

from lora_registry.database import Database
from lora_registry.errors import CatalogFull, CatalogUnavailable


@pytest.fixture
def sqlite(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'registry.sqlite3'}")
    yield database
    database.close()


def test_a_database_without_room_says_so_and_changes_nothing(sqlite):
    def fill():
        with sqlite.write() as connection:
            pages = connection.execute(text("PRAGMA page_count")).scalar()
            connection.execute(text(f"PRAGMA max_page_count = {pages}"))
            connection.execute(text("CREATE TABLE more (words TEXT)"))
            connection.execute(text("INSERT INTO more VALUES (hex(randomblob(1000000)))"))

    with pytest.raises(CatalogFull, match=r"disk of the registry.* is full"):
        fill()
    with sqlite.read() as connection:
        names = connection.execute(text("SELECT name FROM sqlite_master")).scalars().all()
    assert "more" not in names


def test_any_other_failure_is_a_database_that_is_away(sqlite):
    def ask():
        with sqlite.write() as connection:
            connection.execute(text("SELECT * FROM nowhere"))

    with pytest.raises(CatalogUnavailable) as failed:
        ask()
    assert not isinstance(failed.value, CatalogFull)
