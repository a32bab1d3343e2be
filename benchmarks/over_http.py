"""What HTTP adds: a request to the service as a process, beside the same one through `Generation` in this process."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.interleave import Rounds, Spread, interleave
from darkroom import Darkroom
from darkroom.types import GenerateRequest
from service.settings import Settings
from service.wiring import Components, build

_ROOT = Path(__file__).parent.parent
_STARTUP_SECONDS = 180.0
_STOP_SECONDS = 60.0


def measure(
    client: Darkroom, components: Components, steps: int, rounds: int
) -> tuple[Rounds, Spread, dict[str, Any]]:
    """The rounds, the seconds added within one call, and the figures of both.

    The two never run at the same time, but each waits with its threads awake on the same cores. So the seconds added
    are taken in two ways: pair by pair between the contenders, and within each HTTP call as the caller's seconds less
    those that the service spent in `Generation.generate` (the `total` of its timings).
    """
    added: list[float] = []

    def over_http(number: int) -> float:
        request = _request(number, steps)
        started = time.perf_counter()
        answer = client.generate_request(request)
        seconds = time.perf_counter() - started
        added.append(seconds - answer.timings.total)
        return seconds

    with asyncio.Runner() as runner:
        runner.run(asyncio.sleep(0))

        def direct(number: int) -> float:
            request = _request(number, steps)
            started = time.perf_counter()
            runner.run(components.generation.generate(request))
            return time.perf_counter() - started

        taken = interleave({"http": over_http, "direct": direct}, rounds, warm_ups=3)
    within = Rounds({"added": added[-rounds:]}).spread("added")
    figures = taken.figures("direct") | {
        "added_seconds_pair_by_pair": vars(taken.difference("http", "direct")),
        "added_seconds_within_a_call": vars(within),
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
def direct_components() -> Iterator[Components]:
    """The built service in this process, ready, without HTTP."""
    components = build(Settings(model="pocket", offline=True, max_queue_seconds=3600))
    components.start()
    try:
        _until_ready(components)
        yield components
    finally:
        components.close()


@contextmanager
def served() -> Iterator[Darkroom]:
    """A keep-alive client of `python -m service serve`, ready, in a process of its own."""
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
    process = subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", str(port)],
        cwd=_ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        with Darkroom(f"http://127.0.0.1:{port}", timeout=120) as client:
            client.wait_until_ready(timeout_seconds=_STARTUP_SECONDS)
            yield client
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()


def _until_ready(components: Components) -> None:
    deadline = time.monotonic() + _STARTUP_SECONDS
    while not components.ready().ready:
        if not components.alive() or time.monotonic() > deadline:
            raise RuntimeError(f"the service in this process is not ready: {components.ready().reason}")
        time.sleep(0.05)
