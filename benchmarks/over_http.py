"""What HTTP adds: a request to the service as a process, beside the same one through `Generation` without HTTP."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

from benchmarks.apart import Apart
from benchmarks.interleave import Rounds, Spread, interleave
from darkroom import Darkroom
from darkroom._connection import DEFAULT_MAX_RETRIES
from darkroom.types import GenerateRequest

_ROOT = Path(__file__).parent.parent
_STARTUP_SECONDS = 180.0
_STOP_SECONDS = 60.0
_WARM_UPS = 3


def measure(
    client: Darkroom, without: Apart, steps: int, rounds: int
) -> tuple[Rounds, Spread, dict[str, Any]]:
    """The rounds, the seconds added within one call, and the figures of both.

    Two numbers, because one step of the model varies by more than HTTP takes: pair by pair between the contenders, and
    within each HTTP call the caller's seconds less those that the service spent in `Generation.generate` (the `total`
    of its timings).
    """
    added: list[float] = []

    def over_http(number: int) -> float:
        request = _request(number, steps)
        started = time.perf_counter()
        answer = client.generate_request(request)
        seconds = time.perf_counter() - started
        added.append(seconds - answer.timings.total)
        return seconds

    contenders = {"http": over_http, "direct": lambda number: without.seconds(_request(number, steps))}
    taken = interleave(contenders, rounds, warm_ups=_WARM_UPS)
    within = Rounds({"added": added[_WARM_UPS:]}).spread("added")
    figures = taken.figures("direct") | {
        "added_seconds_pair_by_pair": asdict(taken.difference("http", "direct")),
        "added_seconds_within_a_call": asdict(within),
    }
    return taken, within, figures


def _request(number: int, steps: int) -> GenerateRequest:
    return GenerateRequest(
        prompt=f"a red circle above {number} green stars",
        num_inference_steps=steps,
        guidance_scale=5.0,
        seed=number,
    )


@contextmanager
def served(
    threads: int | None,
    data: Path | None = None,
    *,
    max_retries: int = DEFAULT_MAX_RETRIES,
    settings: Mapping[str, str] = MappingProxyType({}),
) -> Iterator[Darkroom]:
    """A keep-alive client of `python -m service serve` on the pocket model, in a process of its own.

    `data` is the folder of its LoRAs, else the user's own; `settings` are more of its environment.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    environment |= {
        "DARKROOM_MODEL": "pocket",
        "DARKROOM_OFFLINE": "true",
        "DARKROOM_MAX_QUEUE_SECONDS": "3600",
        "DARKROOM_LOG_LEVEL": "warning",
        "BENTOML_DO_NOT_TRACK": "true",
    }
    if threads:
        environment["DARKROOM_THREADS"] = str(threads)
    if data is not None:
        environment["DARKROOM_DATA"] = str(data)
    environment |= settings
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", str(port)],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with Darkroom(
            f"http://127.0.0.1:{port}", timeout=_STARTUP_SECONDS, max_retries=max_retries
        ) as client:
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
