"""Fixtures: the store of datasets and train jobs, on SQLite and on PostgreSQL. Conftests import them by name."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

import servers
from darkroom.types import TrainRequest
from lora_registry import faults
from service.jobs.table import JobTable
from service.store.database import connect, location
from service.store.files import files

DATASET = "sha256:" + "d" * 64
_numbers = count()


class Clock:
    """Time that passes when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def data() -> Iterator[Path]:
    """A folder in memory where that is possible: each write waits for the disk, and a shared disk is slow."""
    memory = Path("/dev/shm")
    where = memory if os.access(memory, os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="work-", dir=where) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def work_postgres() -> Iterator[servers.Postgres]:
    """A running PostgreSQL."""
    with servers.postgres() as server:
        server.start()
        yield server


@pytest.fixture(scope="session")
def migrated_work(tmp_path_factory) -> Path:
    """A SQLite store as the migrations make it; copied, as a migration takes a tenth of a second."""
    folder = tmp_path_factory.mktemp("migrated")
    connect(location("", folder)).close()
    return folder / "work.sqlite3"


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request, data) -> Iterator[str]:
    """A database of each kind, without a table."""
    if request.param == "sqlite":
        yield location("", data)
        return
    import psycopg

    server = request.getfixturevalue("work_postgres")
    name = f"work_{next(_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE template0")
        yield server.url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def work_url(empty_url, data, request) -> str:
    """A database of each kind with empty tables."""
    if empty_url.startswith("sqlite"):
        shutil.copy(request.getfixturevalue("migrated_work"), data)
    return empty_url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def opened(work_url, data, clock):
    """Opens the table of this test, as often as wanted: each is another process's view of it."""
    databases = []

    def open_table(clock=clock) -> JobTable:
        databases.append(connect(work_url))
        return JobTable(databases[-1], files("", data), clock=clock)

    yield open_table
    for database in databases:
        database.close()


@pytest.fixture
def table(opened) -> JobTable:
    return opened()


@pytest.fixture
def local(migrated_work, data, clock) -> Iterator[JobTable]:
    """A table in SQLite."""
    shutil.copy(migrated_work, data)
    database = connect(location("", data))
    yield JobTable(database, files("", data), clock=clock)
    database.close()


@pytest.fixture
def armed():
    """Arms a fault for the rest of the test."""
    yield faults.load
    faults.load("")


def request(name: str = "fox") -> TrainRequest:
    return TrainRequest(kind="subject", name=name, dataset=DATASET, instance_prompt="a photo of sks fox")


def new(table: JobTable, name: str = "fox") -> str:
    """The id of a new job."""
    return table.create(request(name), max_train_steps=100)[0].id
