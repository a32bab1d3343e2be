"""Waiting for a service that is starting: the policy, without I/O (see `_exchange`)."""

from collections.abc import Callable
from dataclasses import replace

from darkroom import _calls
from darkroom._connection import Connection
from darkroom._errors import BadResponse, ConnectionFailed, DarkroomError, ServerError, Timeout
from darkroom._exchange import Outside, Sleep, Steps, exchange

POLL_SECONDS = 1.0
PROBE_SECONDS = 10.0
"""A probe without an answer after this time counts as "not ready"."""
LONGEST_POLL_SECONDS = 10.0
"""`Retry-After` is an estimate of the loading time; a probe costs nothing, and nobody wants to be late by
minutes."""


def until_ready(
    connection: Connection,
    outside: Outside,
    *,
    timeout_seconds: float,
    on_wait: Callable[[DarkroomError], object] | None,
) -> Steps[None]:
    """Return once the service can make pictures; `on_wait` hears after every probe why it cannot yet.

    Raises: `Timeout` when the time is up, and at once whatever waiting does not cure (401, 404, …).
    """
    give_up_at = outside.now() + timeout_seconds
    while True:
        patience_seconds = min(PROBE_SECONDS, max(1.0, give_up_at - outside.now()))
        timeouts = replace(connection.timeouts, total_seconds=patience_seconds)
        probing = replace(connection, max_retries=0, timeouts=timeouts)
        try:
            return (yield from exchange(_calls.ready(), probing, outside))
        except (ConnectionFailed, Timeout, ServerError, BadResponse) as error:
            if isinstance(error, BadResponse) and error.status < 500:
                raise
            reason = error
        left_seconds = give_up_at - outside.now()
        if left_seconds <= 0:
            raise Timeout(
                f"{connection.base_url} did not become ready within {timeout_seconds:g} s; at last: {reason}"
            ) from reason
        if on_wait is not None:
            on_wait(reason)
        asked_seconds = reason.retry_after_seconds if isinstance(reason, ServerError) else None
        # A `Retry-After: 0` must not become a busy loop; the last probe comes when the time is up.
        wait_seconds = min(max(asked_seconds or 0.0, POLL_SECONDS), LONGEST_POLL_SECONDS, left_seconds)
        yield Sleep(wait_seconds, f"waiting for {connection.base_url} to become ready ({reason})")
