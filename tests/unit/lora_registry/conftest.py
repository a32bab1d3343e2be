"""Registries on each catalogue and each store; PostgreSQL and S3 are real servers that live as long as the session."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import pytest

from lora_registry import faults
from lora_registry.database import Database
from lora_registry.registry import Registry
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
def postgres() -> Iterator[str]:
    """The URL of a private PostgreSQL, without a database's name; a socket in a temporary folder, no port."""
    binaries = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
    found = shutil.which("pg_ctl") or (binaries and shutil.which("pg_ctl", path=str(binaries)))
    if not found:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))  # a socket's path must be short
    as_other: list[str] = []
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            shutil.chown(folder, "postgres", "postgres")
        except LookupError:
            pytest.skip("PostgreSQL cannot run as root, and there is no user 'postgres'")
        as_other = ["runuser", "-u", "postgres", "--"]
    control = Path(found).resolve().with_name("pg_ctl")
    quiet = {"check": True, "cwd": folder, "stdout": subprocess.DEVNULL}
    options = (
        f"-k {folder} -c listen_addresses='' -c fsync=off -c synchronous_commit=off -c max_connections=60"
    )
    data = folder / "data"
    subprocess.run(
        [*as_other, control.with_name("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-N"], **quiet
    )
    subprocess.run(
        [*as_other, control, "-D", data, "-o", options, "-l", folder / "log", "-w", "start"], **quiet
    )
    yield f"postgresql://postgres@/{{name}}?host={folder}"
    subprocess.run([*as_other, control, "-D", data, "-m", "immediate", "-w", "stop"], **quiet)
    shutil.rmtree(folder)


@contextmanager
def fresh_database(server: str, template: str = "template0") -> Iterator[str]:
    """The URL of a new database on that server, a copy of the template."""
    import psycopg

    name = f"registry_{next(_numbers)}"
    with psycopg.connect(server.format(name="postgres"), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        yield server.format(name=name)
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
    """The URL of an empty bucket on a moto server, to which the AWS_* environment leads."""
    server_module = pytest.importorskip("moto.server", reason="moto[server] is not installed")
    import boto3

    server = server_module.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    variables = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
    }
    before = dict(os.environ)
    os.environ.update(variables)
    boto3.client("s3", region_name="us-east-1").create_bucket(Bucket="loras")
    yield "s3://loras"
    for name in variables:
        os.environ.pop(name)
        if name in before:
            os.environ[name] = before[name]
    server.stop()


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
