"""The frame of a process that works on one job: it claims, keeps the lease, and records the outcome."""

import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Literal

from darkroom.types import Problem
from lora_registry.errors import RegistryError, StorageFull
from service.errors import DarkroomError
from service.jobs.claims import Claim
from service.jobs.errors import JobNotFound, NotClaimable
from service.jobs.processes import Holder
from service.jobs.table import JobTable
from service.store.errors import LeaseLost

Reason = Literal["cancelled", "leave", "lost"]

LEASE_SECONDS: Final = 60.0
PATIENCE_SECONDS: Final = 300.0
"""For so long a database that is away is tried again before the work is given up."""
WATCH_SECONDS: Final = 0.2
"""Between two looks at whether the job is to end. A look reads one row; to extend the lease writes it."""

DONE: Final = 0
FAILED: Final = 1
LEFT: Final = 3
LOST: Final = 4
NOT_CLAIMED: Final = 5

_STRENGTH: Final[tuple[Reason | None, ...]] = (None, "leave", "cancelled", "lost")


@dataclass(frozen=True)
class Finished:
    """What a job has published: `name@3`, and `sha256:…` of the file."""

    ref: str
    digest: str


class Stopped(Exception):
    """Raised by the work where it ends early because it was asked to. Its state is safe by then."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason)
        self.reason = reason


class Stop:
    """Whether the work shall end early. `leave`: the process must go, and another will carry on."""

    def __init__(self) -> None:
        self._reason: Reason | None = None

    def asked(self) -> Reason | None:
        """Why, or None; as cheap as reading an attribute."""
        return self._reason

    def ask(self, reason: Reason) -> None:
        """A stronger reason takes the place of a weaker one: lost, then cancelled, then leave."""
        if _STRENGTH.index(reason) > _STRENGTH.index(self._reason):
            self._reason = reason

    def check(self) -> None:
        """Raise Stopped where it shall."""
        if self._reason is not None:
            raise Stopped(self._reason)


Work = Callable[[Claim, Stop], Finished]


def run(
    table: JobTable,
    job_id: str,
    work: Work,
    *,
    lease_seconds: float = LEASE_SECONDS,
    patience_seconds: float = PATIENCE_SECONDS,
) -> int:
    """Claim the job, do the work, record what became of it. The exit code of a process of which this is the main.

    SIGTERM, where this is the main thread, means: come to a safe state and leave.
    """
    stop = Stop()
    with _leaving_on_sigterm(stop):
        try:
            claim = table.claim(
                job_id,
                holder=str(Holder.this_process()),
                lease_seconds=lease_seconds,
                patience_seconds=patience_seconds,
            )
        except (JobNotFound, NotClaimable) as exc:
            _say(str(exc))
            return NOT_CLAIMED
        with _keeping_the_lease(claim, stop):
            try:
                return _outcome(claim, stop, work)
            except LeaseLost as exc:
                _say(str(exc))
                return LOST


def _outcome(claim: Claim, stop: Stop, work: Work) -> int:
    try:
        finished = work(claim, stop)
    except Stopped as exc:
        return _stopped(claim, exc.reason)
    except LeaseLost:
        raise
    except (DarkroomError, RegistryError) as exc:
        _say(f"the job failed: {exc}")
        claim.failed(problem_of(exc))
        return FAILED
    except Exception:  # a process's main: the job must not stay running, and its log must have the cause
        traceback.print_exc(file=sys.stderr)
        claim.failed(_INTERNAL)
        return FAILED
    claim.succeeded(finished.ref, finished.digest)
    return DONE


def _stopped(claim: Claim, reason: Reason) -> int:
    match reason:
        case "cancelled":
            claim.cancelled()
            return DONE
        case "leave":
            claim.release()
            return LEFT
        case "lost":
            raise LeaseLost(claim.job.id)


def problem_of(error: Exception) -> Problem:
    """An error that was raised on purpose, as a job shows it. Its code is the one that a request would be answered."""
    code = re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__).lower()
    # Its own words are for those who publish.
    detail = _FULL if isinstance(error, StorageFull) else str(error)
    return Problem(title="The training failed", status=500, detail=detail, code=code)


_FULL: Final = "the storage is full; make room and retry the job, which goes on from its last checkpoint"


_INTERNAL: Final = Problem(
    title="The training failed",
    status=500,
    detail="the trainer failed for a reason that it does not know; the job's file `log.txt` has the cause",
    code="internal",
)


@contextmanager
def _keeping_the_lease(claim: Claim, stop: Stop) -> Iterator[None]:
    done = threading.Event()
    beat_seconds = claim.lease_seconds / 3

    def beat() -> None:
        due = time.monotonic()
        while True:
            is_due = time.monotonic() >= due
            if is_due:
                due = time.monotonic() + beat_seconds
            try:
                if claim.heartbeat() if is_due else claim.end_requested():
                    stop.ask("cancelled")
            except LeaseLost:
                stop.ask("lost")
                return
            except RegistryError as exc:
                _say(f"the lease could not be extended: {exc}")  # the fence guards what is written meanwhile
            if done.wait(min(beat_seconds, WATCH_SECONDS)):
                return

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


@contextmanager
def _leaving_on_sigterm(stop: Stop) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda *_: stop.ask("leave"))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: str) -> None:
    sys.stderr.write(f"[{os.getpid()}] {message}\n")
    sys.stderr.flush()
