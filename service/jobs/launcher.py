"""Starts waiting jobs as processes of this machine, and looks after those that are there already.

A process has a session of its own and outlives the service. What is known of it is in the job's row, written by the
process itself when it claims; so a service that was started anew finds it again, and tells it from a stranger that
has its number by now.
"""

import contextlib
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from darkroom.types import TrainJob
from lora_registry.errors import RegistryError
from service.errors import DarkroomError
from service.jobs import process_logs
from service.jobs.changes import ENDED
from service.jobs.errors import JobNotFound
from service.jobs.processes import Holder
from service.jobs.table import HeldJob, JobTable

log = structlog.get_logger()

LOG_BYTES: Final = 4 * 2**20
IDLE_SECONDS: Final = 300.0
"""For importing everything, before it claims; and for letting go of the device, after its job has ended."""
STOP_POLL_SECONDS: Final = 0.05
UNKEPT_SECONDS: Final = 60.0
"""Between two attempts to keep a log, where that failed."""


@dataclass(frozen=True)
class Child:
    """A process that this launcher started, and the job's fence at that time."""

    process: subprocess.Popen[bytes]
    fence: int


class LocalLauncher:
    """A thread that has at most `max_running` jobs at work on this machine, the oldest first.

    `command` makes the command line for a job's id; its output goes to `folder`/<id>/train.log, and once the process is
    gone, whoever started it, to the job's files. `ended` hears of each job that a process started here has brought to
    its end. A job whose end was asked for, or whose lease has run out
    although its process is there, has `grace_seconds`, and a process that holds no job has `idle_seconds`; then it is
    killed.
    """

    def __init__(
        self,
        table: JobTable,
        folder: Path,
        command: Callable[[str], Sequence[str]],
        *,
        max_running: int = 1,
        environment: Mapping[str, str] | None = None,
        ended: Callable[[TrainJob], None] = lambda _job: None,
        poll_seconds: float = 1.0,
        grace_seconds: float = 30.0,
        idle_seconds: float = IDLE_SECONDS,
        log_bytes: int = LOG_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._table, self._folder, self._command = table, folder, command
        self._max_running, self._environment, self._ended = max_running, environment, ended
        self._poll_seconds, self._grace_seconds = poll_seconds, grace_seconds
        self._idle_seconds, self._log_bytes, self._clock = idle_seconds, log_bytes, clock
        self._children: dict[str, Child] = {}
        self._overdue_since: dict[str, float] = {}
        self._unkept_since: dict[Path, float] = {}
        self._stopping = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._main, name="launcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look at once: a job was made or cancelled."""
        self._wake.set()

    def stop(self, *, patience_seconds: float = 20.0) -> None:
        """Start nothing more, and have the processes of this machine come to a safe state and leave.

        Those that are not gone after `patience_seconds` are left alone: the next launcher finds them.
        """
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join()
        deadline = time.monotonic() + patience_seconds
        try:
            staying = self._processes()
        except RegistryError:
            staying = [Holder.of(child.process.pid) for child in self._children.values()]
        for holder in staying:
            holder.send(signal.SIGTERM)
        pause = threading.Event()
        while any(holder.life() == "alive" for holder in staying) and time.monotonic() < deadline:
            pause.wait(STOP_POLL_SECONDS)
        for job_id in list(self._children):
            self._reap(job_id)
        self._keep_logs()

    def look(self) -> None:
        """One round: mourn, kill, keep what the dead have written, start.

        Raises:
            CatalogUnavailable: some of it was not done; the next round does it.
        """
        self._trim_logs()
        for job_id in list(self._children):
            self._reap(job_id)
        held = self._table.held()
        for job in held:
            self._look_at(job)
        for job_id in self._children.keys() - {job.id for job in held}:
            self._look_at_idle(job_id)
        known = {*self._children, *(job.id for job in held)}
        self._overdue_since = {
            key: since for key, since in self._overdue_since.items() if key.rpartition(" ")[2] in known
        }
        self._keep_logs()
        self._start_waiting()

    def _main(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                self.look()
            except (RegistryError, DarkroomError) as exc:
                log.warning("train jobs could not be looked after", reason=str(exc))
            except Exception:  # a thread's main: one bad round must not be the last
                log.error("train jobs could not be looked after", exc_info=True)
            self._wake.wait(self._poll_seconds)

    def _reap(self, job_id: str) -> None:
        child = self._children[job_id]
        code = child.process.poll()
        if code is None:
            return
        log.info("train process ended", job=job_id, pid=child.process.pid, exit_code=code)
        process_logs.note(self._log_of(job_id), f"process {child.process.pid} ended: {_ending(code)}")
        if not self._stopping:
            self._account_for(job_id, child, code)
        del self._children[job_id]

    def _account_for(self, job_id: str, child: Child, code: int) -> None:
        """One that claimed and died is found by its row, like those of other launchers."""
        with contextlib.suppress(JobNotFound):
            if self._table.fence(job_id) == child.fence:
                self._table.never_began(
                    job_id, child.fence, f"the process ended before it began ({_ending(code)})"
                )
            if (job := self._table.get(job_id)).state in ENDED:
                self._ended(job)

    def _look_at(self, job: HeldJob) -> None:
        holder = Holder.parse(job.holder)
        life = holder.life()
        if life == "dead" or (life == "unknown" and job.has_expired):
            log.warning("train process was lost", job=job.id, pid=holder.pid)
            self._table.died(
                job.id, job.fence, "the process was lost" if life == "dead" else "the lease ran out"
            )
        elif self._is_overdue(f"held {job.id}", job.cancel_requested or job.has_expired, self._grace_seconds):
            log.warning("train process was killed", job=job.id, pid=holder.pid)
            holder.send(signal.SIGKILL)

    def _look_at_idle(self, job_id: str) -> None:
        # It has not begun, or is on its way out; where it hangs, it stands in the way of all that wait.
        child = self._children[job_id].process
        if self._is_overdue(f"idle {job_id}", True, self._idle_seconds):
            log.warning("idle train process was killed", job=job_id, pid=child.pid)
            Holder.of(child.pid).send(signal.SIGKILL)

    def _is_overdue(self, key: str, is_late: bool, grace_seconds: float) -> bool:
        if not is_late:
            self._overdue_since.pop(key, None)
            return False
        return self._clock() - self._overdue_since.setdefault(key, self._clock()) >= grace_seconds

    def _start_waiting(self) -> None:
        free = self._max_running - len(self._processes())
        if free <= 0 or self._stopping:
            return
        for job in self._table.waiting():
            if free > 0 and job.id not in self._children:
                self._launch(job.id)
                free -= 1

    def _launch(self, job_id: str) -> None:
        fence = self._table.fence(job_id)
        try:
            with process_logs.opened(self._log_of(job_id)) as output:
                output.write(process_logs.stamped("a process begins"))
                process = subprocess.Popen(
                    list(self._command(job_id)),
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                    env=None if self._environment is None else dict(self._environment),
                )
        except OSError as exc:  # a full disk, too many processes: it may be better later
            log.warning("train process could not be started", job=job_id, reason=exc.strerror)
            return
        self._children[job_id] = Child(process, fence)
        log.info("train process started", job=job_id, pid=process.pid)

    def _processes(self) -> list[Holder]:
        """Our children, and processes of this machine that hold a job without being one."""
        ours = {child.process.pid for child in self._children.values() if child.process.poll() is None}
        others = [Holder.parse(job.holder) for job in self._table.held()]
        return [Holder.of(pid) for pid in ours] + [
            holder for holder in others if holder.pid not in ours and holder.life() == "alive"
        ]

    def _log_of(self, job_id: str) -> Path:
        return self._folder / job_id / process_logs.NAME

    def _trim_logs(self) -> None:
        for job_id in self._children:
            with contextlib.suppress(OSError):
                process_logs.trim(self._log_of(job_id), self._log_bytes)

    def _keep_logs(self) -> None:
        """Have the jobs keep the logs of processes that are gone. It holds nothing else up where that fails."""
        for path in self._folder.glob(f"*/{process_logs.NAME}"):
            job_id, now = path.parent.name, self._clock()
            if job_id in self._children:
                continue  # how it ends is yet to be noted
            if path in self._unkept_since and now - self._unkept_since[path] < UNKEPT_SECONDS:
                continue
            try:
                with process_logs.left_behind(path) as written:
                    self._table.keep_log(job_id, written)
            except BlockingIOError:
                continue  # its process runs
            except (OSError, RegistryError, DarkroomError) as exc:
                log.warning("log of a train process could not be kept", job=job_id, reason=type(exc).__name__)
                self._unkept_since[path] = now
            else:
                self._unkept_since.pop(path, None)


def _ending(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {-code}"
