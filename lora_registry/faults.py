"""Named fault points in the I/O paths, for the tests that break every step in turn.

They do nothing unless LORA_REGISTRY_FAULTS is set when the process starts (or `load` is called): it holds
`STEP=ACTION`, where STEP is a point's name (`publish.after_blob`) or `#N` for the Nth point that is passed, and
ACTION is `error` (an OSError), `full` (an OSError for a full disk), `kill` (SIGKILL to the own process) or `stop`
(SIGSTOP, until somebody lets it go on).
A production start refuses to run while `armed()`.
"""

import errno
import os
import signal
from dataclasses import dataclass, field

VARIABLE = "LORA_REGISTRY_FAULTS"


class InjectedFault(OSError):
    """The failure that a test ordered. An OSError, so that it takes the way of a real one."""


@dataclass
class Plan:
    """One step to fail, and the names of the points passed so far."""

    step: str
    action: str
    passed: list[str] = field(default_factory=list)

    def reach(self, name: str) -> None:
        """Pass the point `name`; do what is ordered if this is the step."""
        self.passed.append(name)
        if self.step not in (name, f"#{len(self.passed)}"):
            return
        if self.action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.action == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
            return
        code = errno.ENOSPC if self.action == "full" else errno.EIO
        raise InjectedFault(code, f"injected at {name}")


_plan: Plan | None = None


def load(text: str | None = None) -> Plan | None:
    """The plan of the environment variable (or of `text`), from now on in force; None disarms."""
    global _plan
    text = os.environ.get(VARIABLE) if text is None else text
    step, _, action = (text or "").partition("=")
    _plan = Plan(step, action or "error") if step else None
    return _plan


def armed() -> bool:
    """Whether any fault point may fire in this process."""
    return _plan is not None


def point(name: str) -> None:
    """A step that a test may fail. Costs one comparison where faults are not armed."""
    if _plan is not None:
        _plan.reach(name)


load()
