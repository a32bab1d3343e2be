"""The use case: images from a request."""

import asyncio
import base64
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from darkroom.types import (
    Accepted,
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
    LoraServed,
    Receipt,
    Timings,
    TokenReport,
)
from service import images
from service.adapters import Adapters
from service.engine.engine import Engine
from service.engine.loras.arranged import Arranged
from service.engine.orders import Done, Order, Picture, Progress
from service.errors import InvalidOption, UnusableImage
from service.metrics import Metrics
from service.runs import Runs
from service.translation import order_from, receipt_for


@dataclass(frozen=True)
class FinishedImage:
    """One image as a file, with its recipe."""

    index: int
    seed: int
    data: bytes
    media_type: str
    width: int
    height: int
    receipt: Receipt


@dataclass(frozen=True)
class Generated:
    """The answer to a request."""

    id: str
    model: str
    images: tuple[FinishedImage, ...]
    timings: Timings
    tokens: TokenReport | None
    loras: tuple[LoraServed, ...] = ()

    def response(self) -> GenerateResponse:
        """The answer as JSON carries it, files in base64."""
        return GenerateResponse(
            id=self.id,
            model=self.model,
            images=[
                GeneratedImage(
                    index=image.index,
                    seed=image.seed,
                    b64=base64.b64encode(image.data).decode("ascii"),
                    media_type=image.media_type,
                    width=image.width,
                    height=image.height,
                    receipt=image.receipt,
                )
                for image in self.images
            ],
            timings=self.timings,
            tokens=self.tokens,
            loras=list(self.loras),
        )


class Fetching:
    """An order's adapters on their way into memory, and what came of it."""

    def __init__(self, adapters: Adapters, order: Order, engine: Engine) -> None:
        self._adapters, self._order, self._engine = adapters, order, engine
        self.seconds = 0.0
        self.served: tuple[LoraServed, ...] = ()

    async def fetch(self) -> Mapping[str, Arranged]:
        """The adapters by digest, held by whoever asked."""
        started = time.perf_counter()
        found = await self._adapters.fetch(self._order.loras, self._engine)
        self.seconds = time.perf_counter() - started
        self.served = tuple(found.served(self._order.loras))
        return found.adapters


Event = Accepted | Progress | Generated
"""What is told of a request that is being worked on."""
Outcome = TypeVar("Outcome")


async def outcome(events: AsyncGenerator[object], kind: type[Outcome]) -> Outcome:
    """The event of this kind, in which `events` end."""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, kind):
                return event
    raise AssertionError(f"the events end in no {kind.__name__}")


class Generation:
    """Makes images from requests: fills defaults in, has the engine run them, encodes the pixels off the event loop.

    `engine` answers the resident engine, or raises `ModelLoading` or `EngineStopped`.
    """

    def __init__(
        self,
        *,
        engine: Callable[[], Engine],
        adapters: Adapters,
        runs: Runs,
        encoding: Executor,
        metrics: Metrics,
        versions: dict[str, str],
        default_timeout_seconds: float,
    ) -> None:
        self._engine = engine
        self._adapters = adapters
        self._runs = runs
        self._encoding = encoding
        self._metrics = metrics
        self._versions = versions
        self._default_timeout_seconds = default_timeout_seconds

    async def generate(self, request: GenerateRequest) -> Generated:
        """Make the images of a request. Cancelling the coroutine frees the device before the next step.

        Raises:
            InvalidOption: it asks for previews, which only `events` can show.
            DarkroomError: as `events`.
        """
        if request.previews:
            raise InvalidOption(
                "previews come only in a stream of events; accept `text/event-stream`, or leave `previews` out",
                pointer="/previews",
            )
        return await outcome(self.events(request), Generated)

    async def events(self, request: GenerateRequest) -> AsyncGenerator[Event]:
        """Make the images of a request and tell of every step: first `Accepted`, at last the images.

        Closing the generator early frees the device before the next step.

        Raises:
            ModelLoading, EngineStopped, Draining: no picture can be made now.
            UnknownLora, InvalidPrompt, InvalidOption: the request cannot be done on this service.
            RegistryError: a LoRA cannot be had now.
            TooExpensive, Overloaded: it was not accepted.
            DeadlineExceeded, UnusableImage, OutOfDeviceMemory, Cancelled: it was accepted and did not end well.
        """
        started = time.perf_counter()
        generation_id = f"gen_{uuid.uuid4().hex}"
        engine = self._engine()
        first_seed = _drawn_seed() if request.seed is None else request.seed
        versions = await self._adapters.resolve(request.loras)
        order = order_from(request, engine.models, first_seed=first_seed, loras=versions)
        timeout_seconds = request.timeout_seconds or self._default_timeout_seconds
        fetching = Fetching(self._adapters, order, engine)
        try:
            async with aclosing(
                self._runs.events(
                    engine,
                    order,
                    timeout_seconds=timeout_seconds,
                    fetch=fetching.fetch if order.loras else None,
                )
            ) as events:
                async for event in events:
                    if isinstance(event, Done):
                        done = event
                    elif isinstance(event, Progress):
                        yield event
                    else:
                        yield Accepted(id=generation_id, estimated_seconds=event.estimated_seconds)
        except UnusableImage as exc:
            self._metrics.unusable_images_total.labels(exc.defect).inc()
            raise
        encoding_started = time.perf_counter()
        loop = asyncio.get_running_loop()
        finished = await asyncio.gather(
            *(
                loop.run_in_executor(self._encoding, self._encode, request, order, picture, engine)
                for picture in done.pictures
            )
        )
        now = time.perf_counter()
        timings = done.timings.model_copy(
            update={
                "fetch": fetching.seconds,
                "encode_image": now - encoding_started,
                "total": now - started,
            }
        )
        self._observe(timings, len(finished))
        yield Generated(
            id=generation_id,
            model=engine.models.name,
            images=tuple(finished),
            timings=timings,
            tokens=done.tokens if request.tokens else None,
            loras=fetching.served,
        )

    def _encode(
        self, request: GenerateRequest, order: Order, picture: Picture, engine: Engine
    ) -> FinishedImage:
        receipt = receipt_for(request, order, picture, engine.models, self._versions)
        file = images.encode(picture.pixels_HWC, request.output, receipt)
        return FinishedImage(
            picture.index, picture.seed, file.data, file.media_type, order.width, order.height, receipt
        )

    def _observe(self, timings: Timings, count: int) -> None:
        for stage, seconds in timings.model_dump(exclude={"total"}).items():
            if stage != "fetch" or seconds:  # which most requests do not have
                self._metrics.stage_seconds.labels(stage).observe(seconds)
        self._metrics.images_total.inc(count)


def _drawn_seed() -> int:
    """A seed that a person can read out and every tool takes: 32 bits."""
    return secrets.randbelow(2**32)
