"""A service without an engine behind the real edge, and a caller that may cut, slow down or leave."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from darkroom.types import (
    Accepted,
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
    LoraServed,
    Receipt,
    ServiceInfo,
    Timings,
)
from service.api.app import create_app
from service.api.auth import KeyRing
from service.api.edge import Edge
from service.api.in_flight import InFlight
from service.engine.orders import Progress
from service.metrics import Metrics
from service.settings import Settings

TIMINGS = Timings(
    queue=0.001, encode=0.002, base=0.25, refiner=0.1, decode=0.03, encode_image=0.004, total=0.4
)
MEDIA_TYPES = {"png": "image/png", "jpeg": "image/jpeg", "webp": "image/webp"}


@dataclass
class Generated:
    """What a real generation gives: files, and the same as JSON."""

    request: GenerateRequest
    id: str = "gen_1"
    model: str = "stand-in"
    timings: Timings = TIMINGS
    loras: tuple[LoraServed, ...] = ()

    @property
    def images(self) -> tuple[SimpleNamespace, ...]:
        data = f"bytes of a {self.request.output.format}".encode()
        media_type = MEDIA_TYPES[self.request.output.format]
        return tuple(
            SimpleNamespace(index=i, seed=7 + i, data=data, media_type=media_type, receipt=None)
            for i in range(self.request.num_images)
        )

    def response(self) -> GenerateResponse:
        images = [
            GeneratedImage.model_construct(
                index=image.index,
                seed=image.seed,
                b64="AAAA",
                media_type=image.media_type,
                width=64,
                height=64,
                receipt=Receipt.model_construct(),
            )
            for image in self.images
        ]
        return GenerateResponse.model_construct(
            id=self.id, model=self.model, images=images, timings=self.timings, tokens=None
        )


class Generation:
    """Gives a picture, raises `error`, or works until `release` is set; `late_error` comes after acceptance."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.late_error: BaseException | None = None
        self.slow = False
        self.started = asyncio.Event()
        self.release = asyncio.Event()
        self.cancelled = False

    async def generate(self, request: GenerateRequest) -> Generated:
        self.started.set()
        if self.error is not None:
            raise self.error
        if self.slow:
            try:
                await self.release.wait()
            except asyncio.CancelledError:
                self.cancelled = True
                raise
        return Generated(request)

    async def events(self, request: GenerateRequest) -> AsyncGenerator[Accepted | Progress | Generated]:
        """A step of each image, what `generate` does, the rest of the steps at once."""
        if self.error is not None:
            raise self.error
        yield Accepted(id=Generated.id, estimated_seconds=2.5)
        steps, preview = request.num_inference_steps, np.zeros((8, 16, 3), np.uint8)
        for step in range(1, steps + 1):
            for index in range(request.num_images):
                yield Progress(index, step, steps, preview if request.previews else None)
            if step == 1:
                generated = await self.generate(request)
        if self.late_error is not None:
            raise self.late_error
        yield generated


@dataclass
class StandIn:
    """Components without weights."""

    settings: Settings = field(default_factory=lambda: Settings(_env_file=None))
    metrics: Metrics = field(default_factory=Metrics)
    generation: Generation = field(default_factory=Generation)
    reason: str = "ready"
    living: bool = True

    def ready(self) -> SimpleNamespace:
        return SimpleNamespace(ready=self.reason == "ready", reason=self.reason)

    def alive(self) -> bool:
        return self.living

    def inspect(self) -> None:
        """Nothing: it has no weights."""

    def info(self) -> ServiceInfo:
        return ServiceInfo.model_construct(name="darkroom", version="0", ready=True)


@dataclass(frozen=True)
class Reply:
    """What came back over ASGI."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> dict[str, Any]:
        assert self.headers["content-type"] == "application/problem+json", self.body
        problem = json.loads(self.body)
        assert problem["status"] == self.status
        assert problem["request_id"] == self.headers["x-request-id"]
        return problem


@dataclass(frozen=True)
class Call:
    """One request over ASGI. `leaves_on` is an event at which the caller closes the connection."""

    method: str
    path: str
    headers: dict[str, str] = field(default_factory=dict)
    chunks: tuple[bytes, ...] = ()
    leaves_on: Callable[[], Coroutine[Any, Any, Any]] | None = None
    never_sends: bool = False

    @property
    def scope(self) -> dict[str, Any]:
        raw = [(k.lower().encode(), v.encode("latin-1")) for k, v in self.headers.items()]
        return {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": self.method,
            "path": self.path,
            "raw_path": self.path.encode(),
            "root_path": "",
            "scheme": "http",
            "query_string": b"",
            "headers": raw,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }

    async def on(self, app: Any) -> Reply:
        chunks, sent, finished = list(self.chunks), [], asyncio.Event()

        async def receive() -> dict[str, Any]:
            if self.never_sends:
                await asyncio.Event().wait()
            if chunks:
                return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}
            await (self.leaves_on() if self.leaves_on else finished.wait())
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                finished.set()

        await app(self.scope, receive, send)
        start, *bodies = sent
        headers = {k.decode().lower(): v.decode("latin-1") for k, v in start["headers"]}
        return Reply(start["status"], headers, b"".join(message["body"] for message in bodies))


def call(method: str, path: str, *, body: bytes | str | None = None, **headers: str) -> Call:
    """A request; a body is JSON unless `content_type` says otherwise."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is None:
        return Call(method, path, named)
    data = body.encode() if isinstance(body, str) else body
    defaults = {"content-type": "application/json", "content-length": str(len(data))}
    return Call(method, path, defaults | named, (data,))


class Served:
    """The stand-in behind the real app and the real edge."""

    def __init__(self) -> None:
        self.components = StandIn()
        self.in_flight = InFlight()
        self.app = create_app(lambda: self.components, self.in_flight)  # type: ignore[arg-type, return-value]
        self.guard(KeyRing(()))

    def guard(self, keys: KeyRing, *, max_body_bytes: int = 1 << 20) -> None:
        self.edge = Edge(self.app, keys=keys, metrics=self.components.metrics, max_body_bytes=max_body_bytes)

    def ask(self, request: Call) -> Reply:
        return asyncio.run(request.on(self.edge))

    def post(self, path: str, body: bytes | str, **headers: str) -> Reply:
        return self.ask(call("POST", path, body=body, **headers))

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask(call("GET", path, **headers))

    def generate(self, body: bytes | str = '{"prompt": "a fox"}', **headers: str) -> Reply:
        return self.post("/v1/generate", body, **headers)

    def metric(self, name: str, **labels: str) -> float:
        return self.components.metrics.registry.get_sample_value(f"darkroom_{name}", labels) or 0.0


@pytest.fixture
def service() -> Served:
    return Served()


@pytest.fixture
def build_call() -> Callable[..., Call]:
    return call


@pytest.fixture
def change() -> Callable[..., Any]:
    return replace
