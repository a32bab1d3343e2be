"""The service as a process of its own, for tests that need real sockets and signals."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).parents[1]
STARTUP_SECONDS = 120.0
STOP_SECONDS = 60.0


def environment(**settings: str) -> dict[str, str]:
    """This process's environment, with the settings given and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    given = {f"DARKROOM_{name.upper()}": value for name, value in settings.items()}
    return kept | {"PYTHONPATH": f"{ROOT}:{ROOT / 'client' / 'src'}"} | given


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.05)


@dataclass
class Served:
    """A running service."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    http: httpx.Client

    def metric(self, name: str) -> float:
        found = re.search(rf"^{re.escape(name)} (\S+)$", self.http.get("/metrics").text, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def working(self) -> bool:
        return self.metric("darkroom_queue_depth") == 1

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(STOP_SECONDS)

    def kill(self) -> None:
        """As the end of a container does: all its processes at once, whatever they are doing."""
        kill_family(self.process)
        self.process.wait(STOP_SECONDS)


def kill_family(process: subprocess.Popen[bytes]) -> None:
    """Kill a process and its descendants. A worker has a session of its own, and would outlive its parent."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(process.pid)
        for one in (parent, *parent.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()


@contextlib.contextmanager
def running(folder: Path, port: int, command: Sequence[str], env: dict[str, str]) -> Iterator[Served]:
    """The command, its output in `folder`; it is stopped at the end, and killed where it does not."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
    url = f"http://127.0.0.1:{port}"
    with httpx.Client(base_url=url, timeout=60) as http:
        try:
            yield Served(process, url, log, http)
        finally:
            if process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_SECONDS)
            if process.poll() is None:
                kill_family(process)


@contextlib.contextmanager
def serving(folder: Path, host: str = "127.0.0.1", **settings: str) -> Iterator[Served]:
    """`python -m service serve` on the pocket model; `settings` become DARKROOM_* variables."""
    port = free_port()
    command = [sys.executable, "-m", "service", "serve", "--host", host, "--port", str(port)]
    # A machine that is busy with other things estimates large orders at more than any default allows.
    defaults = {
        "model": "pocket",
        "threads": "1",
        "max_queue_seconds": "3600",
        "timeout_seconds": "3600",
    }
    with running(folder, port, command, environment(**defaults | settings)) as served:
        yield served


def wait_until_ready(served: Served) -> set[str]:
    """Wait for readiness; the codes of the problems that were answered before."""
    codes = set()

    def ready() -> bool:
        assert served.process.poll() is None, served.log.read_text()
        try:
            reply = served.http.get("/readyz")
        except httpx.TransportError:
            return False
        if reply.status_code == 503:
            codes.add(reply.json()["code"])
            assert int(reply.headers["retry-after"]) > 0
        return reply.status_code == 200

    until(ready, STARTUP_SECONDS, "readiness")
    return codes
