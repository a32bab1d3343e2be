"""What an answer means: a value, or an error with its facts. Pure."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from typing import TypeVar

from pydantic import ValidationError

from darkroom._calls import Call
from darkroom._errors import BadResponse, api_error
from darkroom.types import Problem

T = TypeVar("T")

_EXCERPT_CHARACTERS = 200


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, read to its end. Header names are lower case."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = field(default=b"", repr=False)


def read(call: Call[T], reply: Reply, *, wall_now_seconds: float) -> T:
    """The value that a 2xx answer holds.

    Raises: `APIError` where the service says why it failed, `BadResponse` where the answer is not its own.
    """
    if 200 <= reply.status < 300:
        try:
            return call.decode(reply.body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            at = ".".join(map(str, first["loc"]))
            reason = f"the answer to {call} cannot be read: {first['msg']}" + (f" (at {at})" if at else "")
            raise BadResponse(reply.status, reason, excerpt(reply)) from error
    if 300 <= reply.status < 400:
        # Not followed: it could carry the API key, and the prompt, to an address that nobody chose.
        target = reply.headers.get("location", "nowhere")
        raise BadResponse(
            reply.status, f"{call} was redirected to {target}; is base_url right?", excerpt(reply)
        )
    problem = _problem(reply)
    if problem is None:
        kind = reply.headers.get("content-type", "no content type")
        reason = (
            f"{call} was answered with {kind}, not by Darkroom; is a proxy in between, or base_url wrong?"
        )
        raise BadResponse(reply.status, reason, excerpt(reply))
    raise api_error(problem, reply.status, retry_after_seconds(reply, wall_now_seconds=wall_now_seconds))


def retry_after_seconds(reply: Reply, *, wall_now_seconds: float) -> float | None:
    """How long to wait before coming back, or `None` where the answer says nothing that can be read.

    A date is compared with the answer's own `Date`, so that a clock that is wrong on either side does no
    harm.
    """
    value = reply.headers.get("retry-after", "").strip()
    try:
        seconds = float(value)
    except ValueError:
        moment = _epoch_seconds(value)
        if moment is None:
            return None
        now = _epoch_seconds(reply.headers.get("date", ""))
        return max(0.0, moment - (wall_now_seconds if now is None else now))
    return seconds if math.isfinite(seconds) and seconds >= 0 else None


def excerpt(reply: Reply) -> str:
    """The first 200 characters of the body."""
    # Four bytes are the most that one character takes.
    return reply.body[: 4 * _EXCERPT_CHARACTERS].decode(errors="replace")[:_EXCERPT_CHARACTERS]


def _epoch_seconds(http_date: str) -> float | None:
    try:
        return parsedate_to_datetime(http_date).timestamp()
    except (ValueError, OverflowError):
        return None


def _problem(reply: Reply) -> Problem | None:
    try:
        problem = Problem.model_validate_json(reply.body)
    except ValidationError:
        return None
    if problem.request_id is None and "x-request-id" in reply.headers:
        return problem.model_copy(update={"request_id": reply.headers["x-request-id"]})
    return problem
