"""What happens to a job or a comparison, heard over as many connections as it takes: the policy, without I/O."""

import math
from dataclasses import dataclass
from typing import Generic, TypeVar

from darkroom._calls import EVENT_STREAM, Call
from darkroom._connection import Connection
from darkroom._errors import BadResponse, ConnectionFailed, DarkroomError, ServerError, Timeout
from darkroom._exchange import FIRST_BACKOFF_SECONDS, LONGEST_BACKOFF_SECONDS, Outside
from darkroom._sse import ServerSentEvent
from darkroom._streams import SILENCE_SECONDS, LongReading, Reading, read_as, told_error
from darkroom.types import CompareEvent, Comparison, JobEvent, TrainJob

PATIENCE_SECONDS = 600.0
"""How long a service may be away. What is followed outlives a restart, and to load a model takes minutes."""

EventT = TypeVar("EventT", bound=JobEvent | CompareEvent)
EndT = TypeVar("EndT", bound=TrainJob | Comparison)


@dataclass(frozen=True)
class Followed(Generic[EventT, EndT]):
    """Something that tells of itself: where, and what that is made of."""

    what: str
    """For people: `train job train-1`."""
    path: str
    """Of its events."""
    event: type[EventT]
    event_types: frozenset[str]
    end: type[EndT]
    """What it sends of itself, as it is then, when there is nothing more to tell."""

    def listen(self, after: int, silence_seconds: float) -> Call[bytes]:
        """What happens to it after that event, as a stream that is silent for so long only when it is broken."""
        last = (("Last-Event-ID", str(after)),) if after else ()
        return Call(
            "GET",
            self.path,
            bytes,
            headers=(("Accept", EVENT_STREAM), *last),
            idempotent=True,
            longest_seconds=silence_seconds,
        )

    def understood(self, sent: ServerSentEvent, call: Call[bytes]) -> EventT | EndT | None:
        """What was sent; None where a service that is newer than this client sent it.

        Raises: the `APIError` that the stream ends in; `BadResponse`.
        """
        if sent.event in self.event_types:
            return read_as(self.event, sent, call)
        if sent.event == "done":
            return read_as(self.end, sent, call)
        if sent.event == "error":
            raise told_error(sent, call)
        return None


class Following(Generic[EventT, EndT]):
    """Where a reader of these events is, and whether they try again where a stream breaks off."""

    def __init__(
        self,
        followed: Followed[EventT, EndT],
        connection: Connection,
        outside: Outside,
        *,
        after: int,
        timeout_seconds: float | None,
    ) -> None:
        self._followed, self._connection, self._outside = followed, connection, outside
        self._after = after
        self._timeout_seconds = timeout_seconds
        self._give_up_at = outside.now() + (math.inf if timeout_seconds is None else timeout_seconds)
        self._lost_at: float | None = None
        self._failures = 0
        self.ended = False

    def reading(self) -> Reading[EventT | EndT]:
        """The stream to open next: it goes on after the last event that was heard."""
        left_seconds = max(0.001, self._give_up_at - self._outside.now())
        call = self._followed.listen(self._after, min(SILENCE_SECONDS, left_seconds))
        return LongReading(
            call, self._connection, self._outside, self._give_up_at, self._followed.understood, self._is_end
        )

    def heard(self, told: EventT | EndT) -> None:
        """Note what came."""
        self._lost_at, self._failures = None, 0
        if isinstance(told, (JobEvent, CompareEvent)):
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
                f"{self._followed.what} did not end within {self._timeout_seconds:g} s; it goes on, "
                "so wait again, or cancel it"
            ) from error
        patience = PATIENCE_SECONDS if self._connection.max_retries else 0.0
        if not _may_pass(error) or now - self._lost_at >= patience:
            raise error
        backoff_seconds: float = min(LONGEST_BACKOFF_SECONDS, FIRST_BACKOFF_SECONDS * 2**self._failures)
        self._failures += 1
        left_seconds = self._give_up_at - now
        return min(self._outside.draw() * backoff_seconds, left_seconds)

    def __str__(self) -> str:
        return f"the events of {self._followed.what}"

    def _is_end(self, told: EventT | EndT) -> bool:
        return isinstance(told, self._followed.end)


def _may_pass(error: DarkroomError) -> bool:
    if isinstance(error, BadResponse):
        return error.status >= 500
    return isinstance(error, (ConnectionFailed, Timeout, ServerError))
