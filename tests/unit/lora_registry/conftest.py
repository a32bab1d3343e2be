"""Registries on each catalogue and each store; PostgreSQL and S3 are real servers that live as long as the session."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

import servers
from lora_registry import faults
from lora_registry.database import Database
from lora_registry.registry import Registry
from servers import Postgres
from unit.lora_registry.makers import kohya, layers, peft, pocket, safetensors

_numbers = count()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory where that is possible: each publish waits for the disk, and a shared disk is what makes tests slow."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="registry-", dir=memory if os.access(memory, os.W_OK) else None
    ) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A running PostgreSQL."""
    with servers.postgres() as server:
        server.start()
        yield server


@contextmanager
def fresh_database(server: Postgres, template: str = "template0") -> Iterator[str]:
    """The URL of a new database on that server, a copy of the template."""
    import psycopg

    name = f"registry_{next(_numbers)}"
    with psycopg.connect(server.url("postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield server.url(name)
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_database_url(request, tmp_path) -> Iterator[str]:
    """A database of each kind, without a table."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'registry.sqlite3'}"
        return
    with fresh_database(request.getfixturevalue("postgres")) as url:
        yield url


@pytest.fixture(scope="session")
def migrated_file(tmp_path_factory) -> Path:
    """A SQLite catalogue as the migrations make it; copied, as a migration takes a tenth of a second."""
    path = tmp_path_factory.mktemp("migrated") / "registry.sqlite3"
    Database(f"sqlite:///{path}").close()
    return path


@pytest.fixture(scope="session")
def migrated_template(postgres) -> Iterator[str]:
    """The name of a PostgreSQL database as the migrations make it."""
    with fresh_database(postgres) as url:
        Database(url).close()
        yield url.partition("?")[0].rpartition("/")[2]


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request, tmp_path) -> Iterator[str]:
    """A database of each kind with an empty catalogue."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("migrated_file"), tmp_path / "registry.sqlite3")
        yield f"sqlite:///{tmp_path / 'registry.sqlite3'}"
        return
    template = request.getfixturevalue("migrated_template")
    with fresh_database(request.getfixturevalue("postgres"), template) as url:
        yield url


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """The URL of an empty bucket, to which the AWS_* environment leads."""
    with servers.s3() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def blobs_url(request, tmp_path) -> str:
    """An empty store of each kind."""
    if request.param == "local":
        return str(tmp_path / "blobs")
    return f"{request.getfixturevalue('s3')}/{next(_numbers)}"


@pytest.fixture
def opened(database_url, tmp_path):
    """Opens the registry of this test, as often as wanted: each is another replica of it."""
    made: list[Registry] = []

    def connect(**others: str) -> Registry:
        made.append(Registry.connect([pocket()], data=tmp_path, database=database_url, **others))
        return made[-1]

    yield connect
    for registry in made:
        registry.close()


@pytest.fixture
def registry(opened) -> Registry:
    return opened()


@pytest.fixture
def local(tmp_path) -> Iterator[Registry]:
    """A registry in one folder, as it is by default."""
    with Registry.connect([pocket()], data=tmp_path / "data") as registry:
        yield registry


@pytest.fixture
def armed():
    """Arms a fault for the rest of the test."""
    yield faults.load
    faults.load("")


@pytest.fixture(scope="session")
def lora_file():
    """A good LoRA of a few kilobytes; another for each seed."""

    def make(seed: int = 0, rank: int = 2, **metadata: str) -> bytes:
        base = pocket()
        return safetensors(peft(layers(base, count=2), rank=rank), {"seed": str(seed), **metadata})

    return make


@pytest.fixture(scope="session")
def kohya_file() -> bytes:
    base = pocket()
    return safetensors(kohya(base, layers(base), ranks=[2, 4], alphas=[1.0, 4.0]))
