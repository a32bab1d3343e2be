"""The whole policy of one call: time limits, what is tried again, when, and when to give up.

`exchange` is a generator that does no I/O. It yields what is to be done next (`Send` or `Sleep`), is told
what came of it, and returns the value or raises. The two clients only drive it, so that the policy exists
once.

What is tried again:

| what happened | any call | only idempotent calls |
|---|---|---|
| the service was not reached | yes | |
| 429, 503 with `Retry-After` (Darkroom refused before any work was done) | yes | |
| 429, 503 without, 502, 504, a connection that broke, an attempt without an answer | | yes |

Making a picture is not idempotent in this sense: it costs seconds of a GPU, and after a read timeout the
first one may well be in the making.
"""

import itertools
import random
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Literal, TypeAlias, TypeVar

from darkroom._calls import Call
from darkroom._connection import Connection
from darkroom._errors import ConnectionFailed, DarkroomError, Timeout
from darkroom._replies import Reply, read, retry_after_seconds

T = TypeVar("T")

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 8.0
LONGEST_RETRY_AFTER_SECONDS = 60.0
"""A service that asks for more is not waited for: the caller decides, by the error's
`retry_after_seconds`."""


@dataclass(frozen=True)
class Outside:
    """What the policy asks of the world: a stopwatch, a calendar and a die. Tests bring their own."""

    now: Callable[[], float] = time.monotonic
    wall_now: Callable[[], float] = time.time
    draw: Callable[[], float] = random.random


@dataclass(frozen=True)
class Send:
    """Send this call. `give_up_at` is a reading of `Outside.now`; the answer has to be complete by then."""

    call: Call[object]
    connect_seconds: float
    read_seconds: float
    give_up_at: float


@dataclass(frozen=True)
class Sleep:
    """Wait, and know why."""

    seconds: float
    because: str


@dataclass(frozen=True)
class Failure:
    """No answer. `unreached`: the request was certainly not delivered; `broken`: it may have been."""

    kind: Literal["unreached", "timeout", "broken"]
    error: Exception | None = None


Outcome: TypeAlias = Reply | Failure
Steps: TypeAlias = Generator[Send | Sleep, Outcome | None, T]


def exchange(call: Call[T], connection: Connection, outside: Outside) -> Steps[T]:
    """Make one call, as often as it takes.

    Raises: the error of the last attempt, when it is not one to try again, when `max_retries` are used up,
    or when the next wait would end after the deadline.
    """
    retries = connection.max_retries
    total_seconds = min(
        connection.timeouts.total_seconds, call.longest_seconds or connection.timeouts.total_seconds
    )
    started = outside.now()
    give_up_at = started + total_seconds
    for attempt in itertools.count():
        # A sleep may overshoot, and HTTP libraries refuse a negative limit.
        left_seconds = max(0.001, give_up_at - outside.now())
        connect_seconds = min(connection.timeouts.connect_seconds, left_seconds)
        outcome = yield Send(call, connect_seconds, left_seconds, give_up_at)
        assert outcome is not None, "a Send is answered with a Reply or a Failure"
        try:
            if isinstance(outcome, Failure):
                raise error_of(outcome, call, connection, total_seconds) from outcome.error
            return read(call, outcome, wall_now_seconds=outside.wall_now())
        except DarkroomError as error:
            wait_seconds = _wait_seconds(call, outcome, attempt, outside)
            if attempt >= retries or wait_seconds is None or outside.now() + wait_seconds >= give_up_at:
                if attempt:
                    error.add_note(f"Tried {attempt + 1} times in {outside.now() - started:.1f} s.")
                raise
            because = (
                f"{call} failed ({error}); trying again in {wait_seconds:.1f} s, {attempt + 1} of {retries}"
            )
        yield Sleep(wait_seconds, because)
    raise AssertionError("unreachable")


def _wait_seconds(call: Call[T], outcome: Outcome, attempt: int, outside: Outside) -> float | None:
    """How long to wait before the next attempt; `None` where there must not be one."""
    # Full jitter: clients that were refused together must not come back together.
    backoff_seconds = outside.draw() * min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**attempt)
    if isinstance(outcome, Failure):
        return backoff_seconds if outcome.kind == "unreached" or call.idempotent else None
    if outcome.status in (502, 504):
        return backoff_seconds if call.idempotent else None
    if outcome.status not in (429, 503):
        return None
    asked_seconds = retry_after_seconds(outcome, wall_now_seconds=outside.wall_now())
    if asked_seconds is None:
        # Darkroom always names a time with these. Without one it was something in between, which may give
        # up on a request that the service still works on.
        return backoff_seconds if call.idempotent else None
    return asked_seconds + backoff_seconds if asked_seconds <= LONGEST_RETRY_AFTER_SECONDS else None


def error_of(failure: Failure, call: Call[T], connection: Connection, total_seconds: float) -> DarkroomError:
    """What a caller is told of a call that got no whole answer."""
    what = f"{type(failure.error).__name__}: {failure.error}".rstrip(": ") if failure.error else failure.kind
    if failure.kind == "unreached":
        return ConnectionFailed(
            f"{connection.base_url} could not be reached ({what}); is Darkroom running there? "
            "base_url or DARKROOM_URL set the address"
        )
    if failure.kind == "timeout":
        return Timeout(
            f"{connection.base_url} did not answer {call} within {total_seconds:g} s; "
            "ask for less at once, or give the client a longer timeout"
        )
    return ConnectionFailed(f"the connection to {connection.base_url} broke during {call} ({what})")
