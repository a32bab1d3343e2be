"""`FakeDarkroom`, an in-memory service for the tests of programs that use this client.

It speaks the real protocol under the real client: requests are validated by the same classes, failures come
as the same problem documents, retries happen (and take no time).
"""

import http
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import get_args

from pydantic import ValidationError

from darkroom import _fake_streams
from darkroom._async_client import AsyncDarkroom
from darkroom._calls import EVENT_STREAM
from darkroom._client import Darkroom
from darkroom._connection import DEFAULT_MAX_RETRIES
from darkroom._errors import refusal_of
from darkroom._exchange import Outside
from darkroom._fake_compare import Failure, FakeCompare
from darkroom._fake_datasets import FakeDatasets
from darkroom._fake_loras import Answer, Asked, FakeLoras, Refused
from darkroom._fake_pictures import can_encode, generated
from darkroom._fake_train import FakeTraining
from darkroom._http import httpx
from darkroom.types import (
    GenerateRequest,
    ImageFormat,
    Limits,
    ModelInfo,
    Problem,
    SchedulerName,
    ServiceInfo,
)
from darkroom.types.faults import invalid_request
from darkroom.types.generate import MAX_EDGE, MAX_IMAGES, MAX_PROMPT_CHARACTERS, MAX_STEPS
from darkroom.types.loras import MAX_LORAS

_URL = "http://fake-darkroom"
_CODES = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    422: "invalid_request",
    429: "rate_limited",
    500: "internal",
    503: "overloaded",
    504: "deadline_exceeded",
}
_INFO = ServiceInfo(
    name="darkroom",
    version="0",
    ready=True,
    model=ModelInfo(
        name="fake", fingerprint="0" * 64, width=64, height=64, refiner=True, dtype="none", device="none"
    ),
    schedulers=list(get_args(SchedulerName)),
    formats=list(get_args(ImageFormat)),
    limits=Limits(
        max_edge=MAX_EDGE,
        max_steps=MAX_STEPS,
        max_images=MAX_IMAGES,
        max_prompt_characters=MAX_PROMPT_CHARACTERS,
        max_body_bytes=1 << 20,
        max_queue_seconds=120.0,
        max_loras=MAX_LORAS,
        max_lora_bytes=1 << 30,
    ),
    versions={},
)


@dataclass(frozen=True)
class Received:
    """One request that reached the fake, failed ones included."""

    method: str
    path: str
    generate: GenerateRequest | None = None
    """The order for pictures, where it was one and was valid."""


class FakeDarkroom:
    """A service in memory: real protocol, small pictures that depend on the request, and faults on order. It keeps
    the LoRAs that are published to it, whatever they are; its train jobs and comparisons end at once.

    With an `api_key` it lets in only clients that hold it. `sleeps` are the seconds that clients would have
    waited before their retries.

    >>> fake = FakeDarkroom()
    >>> fake.fail_next(503, times=2)
    >>> with fake.client() as client:
    ...     picture = client.generate("a fox", seed=7).image
    >>> picture
    <Image 64×64 image/png, 0.4 kB, seed 7>
    >>> [received.path for received in fake.requests]
    ['/v1/generate', '/v1/generate', '/v1/generate']
    """

    def __init__(self, *, api_key: str | None = None) -> None:
        self.requests: list[Received] = []
        self.sleeps: list[float] = []
        self._api_key = api_key
        self._failures: list[tuple[httpx.Response | Exception, bool]] = []
        """Each with whether it strikes midway."""
        self._ids = itertools.count(1)
        self._loras = FakeLoras()
        self._datasets = FakeDatasets()
        self._training = FakeTraining(self._loras)
        self._comparisons = FakeCompare(self._loras)

    def fail_next(
        self,
        failure: int | Exception,
        times: int = 1,
        *,
        code: str | None = None,
        retry_after_seconds: float | None = None,
        midway: bool = False,
    ) -> None:
        """Answer the next requests, of any kind, with this status, or let them fail with this exception.

        With `midway=True` a stream is accepted and ends with that status after half of its steps; given an
        exception, it stops there without a word.
        `ConnectionError` and `TimeoutError` stand for a service that is not reached and one that does not
        answer. A 429 and a 503 carry `Retry-After: 0` unless told otherwise.

        >>> fake.fail_next(429, retry_after_seconds=3600)
        >>> client.info()
        Traceback (most recent call last):
        darkroom._errors.RateLimited: the fake answers 429 Too Many Requests (429 rate_limited)
        """
        if isinstance(failure, int):
            if retry_after_seconds is None and failure in (429, 503):
                retry_after_seconds = 0
            self._failures += [(_refusal(failure, code, retry_after_seconds), midway) for _ in range(times)]
        else:
            self._failures += [(_as_httpx(failure), midway)] * times

    def fail_next_job(self, code: str = "training_diverged", detail: str = "loss is NaN") -> None:
        """Let the next train job fail half-way, with this problem. It can be retried.

        >>> fake.fail_next_job()
        >>> client.train.wait(client.train.negative("wrong"))
        Traceback (most recent call last):
        darkroom._errors.TrainFailed: train job train-1 of 'wrong' failed at step 200: loss is NaN (training_diverged)
        """
        title = code.replace("_", " ").capitalize()
        self._training.failures.append(Problem(title=title, status=422, detail=detail, code=code))

    def fail_next_comparison(
        self,
        code: str = "device_lost",
        detail: str = "the device is gone",
        *,
        cells: Iterable[int] | None = None,
    ) -> None:
        """Let the next comparison fail half-way with this problem, or go on to its end without these `cells`.

        >>> fake.fail_next_comparison("out_of_memory", "too large", cells=[1])
        >>> result = client.compare("a fox", seeds=[7], axes={"width": [64, 2048]})
        >>> result["width=2048", "a fox", 7].problem.detail
        'too large'
        """
        problem = Problem(title=code.replace("_", " ").capitalize(), status=500, detail=detail, code=code)
        failing = None if cells is None else frozenset(cells)
        self._comparisons.failures.append(Failure(problem, failing))

    def client(self, *, api_key: str | None = None, max_retries: int = DEFAULT_MAX_RETRIES) -> Darkroom:
        """A `Darkroom` that talks to this fake and never sleeps."""
        transport = httpx.Client(transport=httpx.MockTransport(self._answer))
        client = Darkroom(_URL, api_key=api_key, max_retries=max_retries, http_client=transport)
        client._outside = self._outside()
        client._sleep = self.sleeps.append
        return client

    def async_client(
        self, *, api_key: str | None = None, max_retries: int = DEFAULT_MAX_RETRIES
    ) -> AsyncDarkroom:
        """An `AsyncDarkroom` that talks to this fake and never sleeps."""

        async def sleep(seconds: float) -> None:
            self.sleeps.append(seconds)

        transport = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        client = AsyncDarkroom(_URL, api_key=api_key, max_retries=max_retries, http_client=transport)
        client._outside = self._outside()
        client._sleep = sleep
        return client

    def _outside(self) -> Outside:
        # Time passes only by sleeping, so that deadlines are reached in tests as they are in life.
        return Outside(now=lambda: sum(self.sleeps), draw=lambda: 0.5)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        order = _order_in(request)
        received = order if isinstance(order, GenerateRequest) else None
        self.requests.append(Received(request.method, request.url.path, received))
        streams = request.headers.get("accept") == EVENT_STREAM
        if self._failures:
            failure, midway = self._failures.pop(0)
            if midway and streams and received is not None:
                problem = "" if isinstance(failure, Exception) else failure.text
                return self._pictures(received, streams=True, failure=problem)
            if isinstance(failure, Exception):
                raise failure
            return failure
        if self._api_key and request.headers.get("authorization") != f"Bearer {self._api_key}":
            return _refusal(401)
        if request.url.path.startswith(("/v1/loras", "/v1/lora-versions/")):
            return self._registry_answer(request, self._loras.answer)
        if request.url.path.startswith("/v1/datasets"):
            return self._registry_answer(request, self._datasets.answer)
        if request.url.path.startswith("/v1/train-jobs"):
            return self._registry_answer(request, self._training.answer)
        if request.url.path.startswith(("/v1/compare", "/v1/runs")):
            return self._registry_answer(request, self._comparisons.answer)
        match request.method, request.url.path:
            case "POST", "/v1/generate":
                if isinstance(order, Problem):
                    return _problem(order)
                assert order is not None
                if not streams and (refused := _fake_streams.without_stream(order)) is not None:
                    return _problem(refused)
                return self._pictures(order, streams=streams)
            case "GET", "/v1/info":
                return _json(200, _INFO.model_dump_json())
            case "GET", "/readyz":
                return _json(200, "{}")
        return _refusal(404)

    def _pictures(
        self, order: GenerateRequest, *, streams: bool, failure: str | None = None
    ) -> httpx.Response:
        try:
            loras = self._loras.named_in([use.ref for use in order.loras])
        except Refused as refused:
            return _problem(refused.problem)
        if streams:
            return _events(_fake_streams.stream(order, next(self._ids), loras, failure=failure))
        return _json(200, generated(order, next(self._ids), loras).model_dump_json())

    def _registry_answer(self, request: httpx.Request, ask: Callable[[Asked], Answer]) -> httpx.Response:
        query = {name: request.url.params.get_list(name) for name in request.url.params}
        path = request.url.raw_path.decode("ascii").partition("?")[0]
        asked = Asked(request.method, path, query, dict(request.headers), request.content)
        try:
            answer = ask(asked)
        except Refused as refused:
            return _problem(refused.problem)
        return httpx.Response(answer.status, content=answer.body, headers=dict(answer.headers))


def _order_in(request: httpx.Request) -> GenerateRequest | Problem | None:
    """The order, or why it is refused; None where the request is no order."""
    if request.url.path != "/v1/generate":
        return None
    try:
        order = GenerateRequest.model_validate_json(request.content)
    except ValidationError as error:
        return refusal_of(error)
    if not can_encode(order.output.format):
        message = f"the fake draws {order.output.format} only where Pillow is installed"
        return invalid_request([{"type": "value_error", "loc": ("output", "format"), "msg": message}])
    return order


def _refusal(
    status: int, code: str | None = None, retry_after_seconds: float | None = None
) -> httpx.Response:
    title = http.HTTPStatus(status).phrase
    problem = Problem(
        title=title,
        status=status,
        detail=f"the fake answers {status} {title}",
        code=code or _CODES.get(status, title.lower().replace(" ", "_")),
    )
    return _problem(problem, retry_after_seconds)


def _problem(problem: Problem, retry_after_seconds: float | None = None) -> httpx.Response:
    headers = {} if retry_after_seconds is None else {"Retry-After": f"{retry_after_seconds:g}"}
    return _json(
        problem.status, problem.model_dump_json(), {**headers, "Content-Type": "application/problem+json"}
    )


def _json(status: int, text: str, headers: dict[str, str] | None = None) -> httpx.Response:
    return httpx.Response(status, text=text, headers={"Content-Type": "application/json", **(headers or {})})


def _events(body: bytes) -> httpx.Response:
    return httpx.Response(200, content=body, headers={"Content-Type": EVENT_STREAM})


def _as_httpx(error: Exception) -> Exception:
    """The exception that httpx raises for the same thing, so that tests need not know httpx."""
    if isinstance(error, ConnectionError):
        return httpx.ConnectError(str(error))
    if isinstance(error, TimeoutError):
        return httpx.ReadTimeout(str(error))
    return error
