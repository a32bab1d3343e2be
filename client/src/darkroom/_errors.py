"""Everything that can go wrong, as exceptions with facts.

```
DarkroomError
├── ConnectionFailed          the service was not reached, or hung up half-way
├── Timeout                   this client's own patience ran out
├── BadResponse               an answer that no Darkroom gives: a proxy's page, a redirect, half a JSON
├── TrainFailed               a train job that was waited for has failed or was cancelled (`.job`)
├── CompareFailed             the same of a comparison (`.comparison`); cells that failed are no reason for it
└── APIError                  the service said no, and why (`.problem`, `.status`)
    ├── InvalidRequest        400, 422; also raised before anything is sent
    ├── AuthenticationFailed  401        PermissionDenied  403
    ├── NotFound              404        Conflict          409, 412
    ├── PayloadTooLarge       413        UnsupportedMedia  415
    ├── RateLimited           429
    └── ServerError           any 5xx
        ├── Unavailable       503: loading, overloaded or shutting down (`.code`)
        └── DeadlineExceeded  504: the service's patience, or the request's `timeout_seconds`, ran out
```
"""

from collections.abc import Iterator
from contextlib import contextmanager

from pydantic import ValidationError

from darkroom.types import Comparison, FieldError, Problem, TrainJob
from darkroom.types.faults import invalid_request

# Arguments are positional all the way down so that exceptions survive pickling, as multiprocessing needs.


class DarkroomError(Exception):
    """Base of everything that this client raises on purpose."""


class ConnectionFailed(DarkroomError):
    """The service was not reached, or the connection broke before its answer was complete."""


class Timeout(DarkroomError):
    """No complete answer came within this client's own time limit."""


class BadResponse(DarkroomError):
    """An answer that no Darkroom gives, such as a proxy's error page."""

    def __init__(self, status: int, reason: str, excerpt: str = "") -> None:
        super().__init__(status, reason, excerpt)
        self.status = status
        self.reason = reason
        self.excerpt = excerpt
        """The first 200 characters of the body."""

    def __str__(self) -> str:
        body = f" The body begins {self.excerpt!r}." if self.excerpt else ""
        return f"HTTP {self.status}: {self.reason}.{body}"


class TrainFailed(DarkroomError):
    """A train job ended without a LoRA: `.job.state` is `failed`, and `.problem` says why, or `cancelled`."""

    def __init__(self, job: TrainJob) -> None:
        super().__init__(job)
        self.job = job

    @property
    def problem(self) -> Problem | None:
        """Why it failed; None where it was cancelled."""
        return self.job.problem

    def __str__(self) -> str:
        job = self.job
        what = f"train job {job.id} of {job.name!r} {_ENDS.get(job.state, job.state)} at step {job.step}"
        return what if job.problem is None else f"{what}: {job.problem.detail} ({job.problem.code})"


class CompareFailed(DarkroomError):
    """A comparison ended before its end: `.comparison.state` is `failed`, and `.problem` says why, or `cancelled`.

    What was drawn until then is kept: `client.comparisons.result(failed.comparison)`.
    """

    def __init__(self, comparison: Comparison) -> None:
        super().__init__(comparison)
        self.comparison = comparison

    @property
    def problem(self) -> Problem | None:
        """Why it failed; None where it was cancelled."""
        return self.comparison.problem

    def __str__(self) -> str:
        run = self.comparison
        what = f"comparison {run.id} {_ENDS.get(run.state, run.state)} at cell {run.done} of {run.plan.cells}"
        return what if run.problem is None else f"{what}: {run.problem.detail} ({run.problem.code})"


_ENDS = {"failed": "failed", "cancelled": "was cancelled"}


class APIError(DarkroomError):
    """The service refused or failed, and said why.

    >>> from darkroom.types import Problem
    >>> print(APIError(Problem(title="Teapot", status=418, detail="no coffee here", code="teapot"), 418))
    no coffee here (418 teapot)
    """

    def __init__(self, problem: Problem, status: int, retry_after_seconds: float | None = None) -> None:
        super().__init__(problem, status, retry_after_seconds)
        self.problem = problem
        self.status = status
        self.retry_after_seconds = retry_after_seconds
        """When the service suggests to come back, where it does."""

    @property
    def code(self) -> str:
        """The kind of error, for programs: `overloaded`, `model_loading`, …"""
        return self.problem.code

    @property
    def request_id(self) -> str | None:
        """What to look for in the service's logs."""
        return self.problem.request_id

    @property
    def errors(self) -> list[FieldError]:
        """The faulty fields, each with its JSON pointer; empty where the fault is not in a field."""
        return self.problem.errors

    def __str__(self) -> str:
        facts = f"{self.status} {self.code}"
        if self.request_id:
            facts += f", request {self.request_id}"
        untold = [error for error in self.errors if _told(error) not in self.problem.detail]
        return "\n".join([f"{self.problem.detail} ({facts})", *map(_field_line, untold)])


class InvalidRequest(APIError):
    """400 or 422: fields of the request are wrong; `.errors` says which. Also raised before anything is
    sent."""


class AuthenticationFailed(APIError):
    """401: no API key, or one that the service does not know."""


class PermissionDenied(APIError):
    """403: the API key lacks the scope that this needs."""


class NotFound(APIError):
    """404: no such thing, or no such route on this service."""


class Conflict(APIError):
    """409: the state of the thing does not allow it. 412: it is not in the state that you expected."""


class PayloadTooLarge(APIError):
    """413: the body is larger than the service takes."""


class UnsupportedMedia(APIError):
    """415: the service does not take this kind of body."""


class RateLimited(APIError):
    """429: this caller's own quota is used up; `.retry_after_seconds` says for how long."""


class ServerError(APIError):
    """5xx: the fault is not the caller's."""


class Unavailable(ServerError):
    """503: not now. `.code` is `model_loading`, `overloaded` or `draining`; see `.retry_after_seconds`."""


class DeadlineExceeded(ServerError):
    """504: the request's `timeout_seconds`, or the service's own limit, ran out."""


_BY_STATUS: dict[int, type[APIError]] = {
    400: InvalidRequest,
    401: AuthenticationFailed,
    403: PermissionDenied,
    404: NotFound,
    409: Conflict,
    412: Conflict,
    413: PayloadTooLarge,
    415: UnsupportedMedia,
    422: InvalidRequest,
    429: RateLimited,
    503: Unavailable,
    504: DeadlineExceeded,
}


def api_error(problem: Problem, status: int, retry_after_seconds: float | None) -> APIError:
    """The most specific error for a status."""
    kind = _BY_STATUS.get(status, ServerError if status >= 500 else APIError)
    return kind(problem, status, retry_after_seconds)


@contextmanager
def refused_before_sending() -> Iterator[None]:
    """Turn a request that pydantic refuses into the `InvalidRequest` that the service would have answered."""
    try:
        yield
    except ValidationError as error:
        raise InvalidRequest(refusal_of(error), 422) from None


def refusal_of(error: ValidationError) -> Problem:
    """The problem that the service answers to such a request."""
    return invalid_request(error.errors(include_url=False, include_input=False))


def _told(error: FieldError) -> str:
    """How the detail of a problem has it, where it does."""
    return f"{error.pointer}: {error.message}" if error.pointer else error.message


def _field_line(error: FieldError) -> str:
    place = error.pointer or "the request as a whole"
    if error.position is not None:
        place += f", character {error.position}"
    return f"  {place}: {error.message}"
