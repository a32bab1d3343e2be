"""Contenders in processes of their own.

Two users of torch in one process are not as fast as one: every thread that calls torch has OpenMP threads of its own,
and where these are more than cores OpenMP waits in another way, which made the same work 1.5 times as slow here.
"""

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

Work = Callable[[Any], Any]
Prepare = Callable[[], AbstractContextManager[Work]]


@dataclass
class Apart:
    """Work that is done in another process."""

    _pipe: Connection

    def wait_until_ready(self) -> None:
        """Return once the work can be asked for."""
        self._answer()

    def do(self, job: Any) -> tuple[float, Any]:
        """The seconds that the other process took for the job by its clock, and what came out."""
        self._pipe.send(job)
        return self._answer()

    def seconds(self, job: Any) -> float:
        return self.do(job)[0]

    def _answer(self) -> tuple[float, Any]:
        try:
            seconds, outcome = self._pipe.recv()
        except EOFError as exc:
            raise RuntimeError("a contender's process has ended; its error is printed above") from exc
        return seconds, outcome


@contextmanager
def apart(prepare: Prepare) -> Iterator[Apart]:
    """A process that enters `prepare()`, of a module's function, and then does the work that it yields, job by job."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_serve, args=(prepare, there), daemon=True)
    process.start()
    there.close()
    try:
        yield Apart(here)
    finally:
        here.close()
        process.join(30)
        process.kill()


def _serve(prepare: Prepare, pipe: Connection) -> None:
    with prepare() as work:
        pipe.send((0.0, None))
        while True:
            try:
                job = pipe.recv()
            except EOFError:
                return
            started = time.perf_counter()
            outcome = work(job)
            seconds = time.perf_counter() - started
            pipe.send((seconds, outcome))
