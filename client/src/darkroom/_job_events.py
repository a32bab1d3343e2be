"""What happens to a train job, heard over as many connections as it takes: the policy, without I/O."""

import math
from typing import Any, Final, TypeAlias, get_args

from darkroom import _train_calls
from darkroom._calls import Call
from darkroom._connection import Connection
from darkroom._errors import BadResponse, ConnectionFailed, DarkroomError, ServerError, Timeout
from darkroom._exchange import FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, Outside
from darkroom._sse import ServerSentEvent
from darkroom._streams import Reading, read_as, told_error
from darkroom.types import JobEvent, JobEventType, TrainJob

SILENCE_SECONDS = 60.0
"""The service says something every quarter of a minute: a connection that is silent for longer is broken."""
PATIENCE_SECONDS = 600.0
"""How long a service may be away. A job outlives a restart, and to load a model takes minutes."""

_EVENTS: Final = frozenset(get_args(JobEventType))

Told: TypeAlias = JobEvent | TrainJob
"""Events, and the job as it is at their end."""


class Following:
    """Where a reader of one job's events is, and whether they try again where a stream breaks off."""

    def __init__(
        self,
        job: TrainJob | str,
        connection: Connection,
        outside: Outside,
        *,
        after: int,
        timeout_seconds: float | None,
    ) -> None:
        self._job, self._connection, self._outside = job, connection, outside
        self._after = after
        self._timeout_seconds = timeout_seconds
        self._give_up_at = outside.now() + (math.inf if timeout_seconds is None else timeout_seconds)
        self._lost_at: float | None = None
        self._failures = 0
        self.ended = False

    def reading(self) -> Reading[Told]:
        """The stream to open next: it goes on after the last event that was heard."""
        left_seconds = max(0.001, self._give_up_at - self._outside.now())
        call = _train_calls.events(self._job, self._after, min(SILENCE_SECONDS, left_seconds))
        return _Listening(call, self._connection, self._outside, self._give_up_at)

    def heard(self, told: Told) -> None:
        """Note what came."""
        self._lost_at, self._failures = None, 0
        if isinstance(told, JobEvent):
            self._after = told.id
        else:
            self.ended = True

    def lost(self, error: DarkroomError) -> float:
        """How many seconds to wait before the next stream.

        Raises: `Timeout` when the time is up; the error, where waiting does not cure it or has not for long.
        """
        now = self._outside.now()
        self._lost_at = now if self._lost_at is None else self._lost_at
        if now >= self._give_up_at:
            raise Timeout(
                f"job {_train_calls.id_of(self._job)} did not end within {self._timeout_seconds:g} s; it goes on, "
                "so wait again, or cancel it"
            ) from error
        patience = PATIENCE_SECONDS if self._connection.max_retries else 0.0
        if not _may_pass(error) or now - self._lost_at >= patience:
            raise error
        backoff_seconds: float = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**self._failures)
        self._failures += 1
        left_seconds = self._give_up_at - now
        return min(self._outside.draw() * backoff_seconds, left_seconds)


class _Listening(Reading[Told]):
    """The reading of a stream of events, which the job ends. Its time is not that of its opening."""

    def __init__(
        self, call: Call[bytes], connection: Connection, outside: Outside, give_up_at: float
    ) -> None:
        super().__init__(call, connection, outside, _understood, lambda told: isinstance(told, TrainJob))
        self._ends_at = give_up_at

    def begin(self, response: Any, give_up_at: float) -> None:  # noqa: ARG002
        super().begin(response, self._ends_at)


def _understood(sent: ServerSentEvent, call: Call[bytes]) -> Told | None:
    if sent.event in _EVENTS:
        return read_as(JobEvent, sent, call)
    if sent.event == "done":
        return read_as(TrainJob, sent, call)
    if sent.event == "error":
        raise told_error(sent, call)
    return None  # of a service that is newer than this client


def _may_pass(error: DarkroomError) -> bool:
    if isinstance(error, BadResponse):
        return error.status >= 500
    return isinstance(error, (ConnectionFailed, Timeout, ServerError))
