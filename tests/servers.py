"""PostgreSQL and S3 as real servers, for tests of what many replicas share."""

import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Postgres:
    """A private PostgreSQL: a socket in a temporary folder, no port."""

    folder: Path
    control: tuple[str | Path, ...]

    def url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}"

    def start(self) -> None:
        # Without fsync a commit survives a crash of the server, and not one of the machine.
        options = f"-k {self.folder} -c listen_addresses='' -c fsync=off -c max_connections=60"
        self._run("-o", options, "-l", self.folder / "log", "-w", "start")

    def stop(self) -> None:
        """As a crash would."""
        self._run("-m", "immediate", "-w", "stop")

    def _run(self, *arguments: str | Path) -> None:
        subprocess.run(
            [*self.control, *arguments], check=True, cwd=self.folder, stdout=subprocess.DEVNULL, timeout=60
        )


@contextmanager
def postgres() -> Iterator[Postgres]:
    """A PostgreSQL that has yet to be started. Skips the test where there is none."""
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
    control, data = Path(found).resolve().with_name("pg_ctl"), folder / "data"
    subprocess.run(
        [*as_other, control.with_name("initdb"), "-D", data, "-A", "trust", "-U", "postgres", "-N"],
        check=True,
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    server = Postgres(folder, (*as_other, control, "-D", data))
    try:
        yield server
    finally:
        if (data / "postmaster.pid").exists():
            server.stop()
        shutil.rmtree(folder)


@contextmanager
def s3() -> Iterator[str]:
    """The URL of an empty bucket on a moto server, to which the AWS_* environment leads meanwhile."""
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
    try:
        bucket = f"loras-{uuid.uuid4().hex}"  # moto keeps what is stored for as long as the process lives
        boto3.client("s3", region_name="us-east-1").create_bucket(Bucket=bucket)
        yield f"s3://{bucket}"
    finally:
        for name in variables:
            os.environ.pop(name)
            if name in before:
                os.environ[name] = before[name]
        server.stop()
