"""The use case: images from a request."""

import asyncio
import base64
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass

from darkroom.types import (
    Accepted,
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
    Receipt,
    Timings,
    TokenReport,
)
from service import images
from service.engine.engine import Engine
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
        )


Event = Accepted | Progress | Generated
"""What is told of a request that is being worked on."""


class Generation:
    """Makes images from requests: fills defaults in, has the engine run them, encodes the pixels off the event loop.

    `engine` answers the resident engine, or raises `ModelLoading` or `EngineStopped`.
    """

    def __init__(
        self,
        *,
        engine: Callable[[], Engine],
        runs: Runs,
        encoding: Executor,
        metrics: Metrics,
        versions: dict[str, str],
        default_timeout_seconds: float,
    ) -> None:
        self._engine = engine
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
        async with aclosing(self.events(request)) as events:
            async for event in events:
                if isinstance(event, Generated):
                    return event
        raise AssertionError("the events of a request end in its images")

    async def events(self, request: GenerateRequest) -> AsyncGenerator[Event]:
        """Make the images of a request and tell of every step: first `Accepted`, at last the images.

        Closing the generator early frees the device before the next step.

        Raises:
            ModelLoading, EngineStopped, Draining: no picture can be made now.
            InvalidPrompt, InvalidOption: the request cannot be done on this service.
            TooExpensive, Overloaded: it was not accepted.
            DeadlineExceeded, UnusableImage, OutOfDeviceMemory, Cancelled: it was accepted and did not end well.
        """
        started = time.perf_counter()
        generation_id = f"gen_{uuid.uuid4().hex}"
        engine = self._engine()
        first_seed = _drawn_seed() if request.seed is None else request.seed
        order = order_from(request, engine.models, first_seed=first_seed)
        timeout_seconds = request.timeout_seconds or self._default_timeout_seconds
        try:
            async with aclosing(self._runs.events(engine, order, timeout_seconds=timeout_seconds)) as events:
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
            update={"encode_image": now - encoding_started, "total": now - started}
        )
        self._observe(timings, len(finished))
        yield Generated(
            id=generation_id,
            model=engine.models.name,
            images=tuple(finished),
            timings=timings,
            tokens=done.tokens if request.tokens else None,
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
            self._metrics.stage_seconds.labels(stage).observe(seconds)
        self._metrics.images_total.inc(count)


def _drawn_seed() -> int:
    """A seed that a person can read out and every tool takes: 32 bits."""
    return secrets.randbelow(2**32)
