"""Which process holds a job, told so that it is never mistaken for another of the same number.

A process is its machine (host name, boot, PID namespace), its number, and its start in clock ticks since the boot:
unlike a time of day, that is the same for ever, whatever is done to the clock.
"""

import os
import signal
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, Self

Life = Literal["alive", "dead", "unknown"]
_ZOMBIES = frozenset("ZX")


@dataclass(frozen=True)
class Holder:
    """A process of some machine."""

    machine: str
    pid: int
    started: str
    """Empty where the system does not say."""

    @classmethod
    def this_process(cls) -> Self:
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Self:
        """The process that has this number on this machine now."""
        status = _status(pid)
        return cls(_machine(), pid, status[1] if status else "")

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` made. Anything else is a process of no machine that is known."""
        machine, _, rest = text.partition(" ")
        pid, _, started = rest.partition(" ")
        return cls(machine, int(pid), started) if pid.isascii() and pid.isdigit() else cls("", 0, "")

    def __str__(self) -> str:
        return f"{self.machine} {self.pid} {self.started}".rstrip()

    def life(self) -> Life:
        """Whether it runs. `unknown`: on another machine, or the system cannot tell it from a later namesake."""
        if self.machine != _machine() or self.pid <= 0:
            return "unknown"
        if not self.started:
            return "unknown" if _exists(self.pid) else "dead"
        status = _status(self.pid)
        return "alive" if status and status[1] == self.started and status[0] not in _ZOMBIES else "dead"

    def send(self, number: signal.Signals) -> None:
        """Signal the process and its session, which is its own; nothing where it is not alive on this machine."""
        if self.life() != "alive":
            return
        try:
            if number == signal.SIGKILL and os.getpgid(self.pid) == self.pid:
                os.killpg(self.pid, number)
            else:
                os.kill(self.pid, number)
        except ProcessLookupError:
            return


def _status(pid: int) -> tuple[str, str] | None:
    """The state letter and the start of a process, from Linux's /proc; None where there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in brackets may hold anything; the state is the first field behind it, the start is field 22 of all.
    fields = text.rpartition(")")[2].split()
    return fields[0], fields[19]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@cache
def _machine() -> str:
    parts = [socket.gethostname()]
    for read in (_boot, _namespace):
        try:
            parts.append(read())
        except OSError:
            continue
    return "/".join(parts).replace(" ", "_")[:160]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _namespace() -> str:
    return os.readlink("/proc/self/ns/pid").strip("pid:[]")
