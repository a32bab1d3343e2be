"""The real client on the real service in one process, without a socket."""

import asyncio
import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from PIL import Image
from starlette.testclient import TestClient

from darkroom import AsyncDarkroom, Darkroom, Generation
from darkroom._calls import Call
from darkroom.types import GenerateResponse
from service.api.app import create_app
from service.api.auth import KeyRing
from service.api.edge import Edge
from service.engine.engine import Engine
from service.wiring import Components

URL = "http://darkroom.test"
GOOD = {"prompt": "a red circle on a blue background", "seed": 7, "num_inference_steps": 4}
LONG = GOOD | {"num_inference_steps": 100, "num_images": 8}


def pixels(data: bytes) -> np.ndarray:
    """(H, W, 3), as levels that can be subtracted."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)


def in_a_loop(edge: Edge, work: Callable[[AsyncDarkroom], Any]) -> Any:
    """What `work` gives, awaited with an asynchronous client of the service that never tries twice."""

    async def main() -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(edge)) as http:
            return await work(AsyncDarkroom(URL, http_client=http, max_retries=0))

    return asyncio.run(main())


class Sync:
    """`Darkroom` over Starlette's test client."""

    def __init__(self, edge: Edge) -> None:
        self._http = TestClient(edge, base_url=URL)
        self._client = Darkroom(http_client=self._http, max_retries=0)

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._client, method)(*args, **kwargs)


class Async:
    """`AsyncDarkroom` over httpx's ASGI transport, each call in an event loop of its own."""

    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    def ask(self, method: str, *args: Any, **kwargs: Any) -> Any:
        return in_a_loop(self._edge, lambda client: getattr(client, method)(*args, **kwargs))


class Caller:
    """One of the two clients, with the methods that both have."""

    def __init__(self, kind: Sync | Async) -> None:
        self._ask = kind.ask

    def generate(self, prompt: str = GOOD["prompt"], **fields: Any) -> Generation:
        return self._ask("generate", **GOOD | {"prompt": prompt} | fields)

    def generate_request(self, request: Any) -> Generation:
        return self._ask("generate_request", request)

    def info(self) -> Any:
        return self._ask("info")

    def post(self, body: bytes, content_type: str = "application/json") -> GenerateResponse:
        """A body that the client itself would never send."""
        headers = (("Content-Type", content_type),)
        call = Call("POST", "/v1/generate", GenerateResponse.model_validate_json, body=body, headers=headers)
        return self._ask("_call", call)


@dataclass
class Served:
    """A service in this process."""

    components: Components
    edge: Edge

    @property
    def http(self) -> TestClient:
        return TestClient(self.edge, base_url=URL)

    @property
    def engine(self) -> Engine:
        return self.components.generation._engine()

    def metric(self, name: str, **labels: str) -> float:
        return self.components.metrics.registry.get_sample_value(f"darkroom_{name}", labels) or 0.0

    def caller(self, kind: type[Sync | Async] = Sync) -> Caller:
        return Caller(kind(self.edge))

    def in_a_loop(self, work: Callable[[AsyncDarkroom], Any]) -> Any:
        return in_a_loop(self.edge, work)

    async def busy(self) -> None:
        """Return once a run has been accepted."""
        async with asyncio.timeout(30):
            while not self.metric("queue_depth"):
                await asyncio.sleep(0)


def settle(components: Components) -> Served:
    """The components behind app and edge, once their loading has ended, well or not."""
    components._resident._thread.join(timeout=60)
    return served(components)


def served(components: Components) -> Served:
    app = create_app(lambda: components)
    settings = components.settings
    edge = Edge(app, keys=KeyRing(()), metrics=components.metrics, max_body_bytes=settings.max_body_bytes)
    return Served(components, edge)


class Awaited:
    """A part of `AsyncDarkroom` (`loras`, `datasets`, `train`), each call in an event loop of its own."""

    def __init__(self, part: str, edge: Edge, api_key: str | None) -> None:
        self._part, self._edge, self._api_key = part, edge, api_key

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*arguments: Any, **more: Any) -> Any:
            return asyncio.run(self._ask(name, *arguments, **more))

        return ask

    async def _ask(self, method: str, /, *arguments: Any, **more: Any) -> Any:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self._edge)) as http:
            client = AsyncDarkroom(URL, http_client=http, api_key=self._api_key, max_retries=0)
            asked = getattr(getattr(client, self._part), method)(*arguments, **more)
            return [one async for one in asked] if hasattr(asked, "__aiter__") else await asked
