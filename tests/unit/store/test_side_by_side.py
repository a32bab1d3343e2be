"""Databases of one process that are made at the same moment, as the registry's and that of the jobs are."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

from lora_registry.database import Database
from service.store.database import connect


def test_databases_may_be_made_side_by_side_in_one_process(tmp_path: Path):
    def make(number: int) -> bool:
        url = f"sqlite:///{tmp_path / str(number)}.sqlite3"
        with closing(connect(url) if number % 2 else Database(url)):
            return True

    with ThreadPoolExecutor(6) as threads:
        assert all(threads.map(make, range(18)))
