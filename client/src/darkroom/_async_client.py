"""`AsyncDarkroom`, the client for asyncio programs. `_client` is its twin: change both."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from types import TracebackType
from typing import Self, TypeVar, Unpack

from darkroom import _calls, _http
from darkroom._async_comparison_result import AsyncComparisonResult
from darkroom._async_comparisons import AsyncComparisons
from darkroom._async_datasets import AsyncDatasetLibrary
from darkroom._async_loras import AsyncLoraRegistry
from darkroom._async_train import AsyncTrainJobs
from darkroom._callers import ReadingOf
from darkroom._compare_options import CompareOptions, compare_request
from darkroom._connection import DEFAULT_MAX_RETRIES, Timeouts, resolve
from darkroom._errors import DarkroomError, refused_before_sending
from darkroom._exchange import Failure, Outcome, Outside, Send, Sleep, Steps, exchange
from darkroom._following import EndT, EventT, Followed, Following
from darkroom._images import Generation
from darkroom._options import Loras, Options, lora_uses, request_from
from darkroom._progress_bar import OnEvent
from darkroom._replies import Reply
from darkroom._streams import AsyncStream, Reading, of_pictures
from darkroom._waiting import until_ready
from darkroom.types import (
    CompareEvent,
    ComparePlan,
    GenerateRequest,
    Output,
    Refiner,
    SchedulerName,
    ServiceInfo,
)

E = TypeVar("E")
T = TypeVar("T")

_log = logging.getLogger("darkroom")
_PNG_WITH_RECIPE = Output()


class AsyncDarkroom:
    """`Darkroom` for asyncio: the same methods and arguments, awaited.

    A call whose task is cancelled closes its connection, and the service stops working on it.

        async with AsyncDarkroom() as client:
            foxes = await asyncio.gather(*(client.generate("a fox", seed=seed) for seed in range(4)))
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | Timeouts | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: _http.AsyncHttpClient | None = None,
    ) -> None:
        own_url = _http.url_of(http_client)
        self._connection = resolve(base_url, api_key, timeout, max_retries, http_client_url=own_url)
        self._owns_http = http_client is None
        self._http = _http.new_async_client() if http_client is None else http_client
        self._library = _http.library_of(self._http)
        self._outside = Outside()
        self._sleep: Callable[[float], Awaitable[None]] = asyncio.sleep

    async def generate(
        self,
        prompt: str,
        *,
        negative_prompt: str | None = None,
        width: int | None = None,
        height: int | None = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        scheduler: SchedulerName = "euler",
        seed: int | None = None,
        num_images: int = 1,
        refiner: Refiner | None = None,
        loras: Loras = (),
        original_size: tuple[int, int] | None = None,
        crops_coords_top_left: tuple[int, int] = (0, 0),
        target_size: tuple[int, int] | None = None,
        negative_original_size: tuple[int, int] | None = None,
        negative_crops_coords_top_left: tuple[int, int] = (0, 0),
        negative_target_size: tuple[int, int] | None = None,
        output: Output = _PNG_WITH_RECIPE,
        tokens: bool = False,
        timeout_seconds: float | None = None,
    ) -> Generation:
        """Pictures of a prompt, as `Darkroom.generate`."""
        with refused_before_sending():
            request = GenerateRequest(
                prompt=prompt,
                negative_prompt=negative_prompt,
                width=width,
                height=height,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                scheduler=scheduler,
                seed=seed,
                num_images=num_images,
                refiner=refiner,
                loras=lora_uses(loras),
                original_size=original_size,
                crops_coords_top_left=crops_coords_top_left,
                target_size=target_size,
                negative_original_size=negative_original_size,
                negative_crops_coords_top_left=negative_crops_coords_top_left,
                negative_target_size=negative_target_size,
                output=output,
                tokens=tokens,
                timeout_seconds=timeout_seconds,
            )
        return await self.generate_request(request)

    async def generate_request(self, request: GenerateRequest) -> Generation:
        """Pictures of a request that is already made, as `Darkroom.generate_request`."""
        return Generation.from_response(await self._call(_calls.generate(request)))

    def stream(self, prompt: str, *, previews: bool = False, **options: Unpack[Options]) -> AsyncStream:
        """Every step on the way to the pictures, as `Darkroom.stream`: `async with`, `async for`."""
        with refused_before_sending():
            request = request_from(prompt, options, previews=previews)
        return self.stream_request(request)

    def stream_request(self, request: GenerateRequest) -> AsyncStream:
        """The same of a request that is already made."""
        return AsyncStream(self._read(_calls.stream(request), of_pictures))

    async def compare(
        self,
        prompts: str | Iterable[str],
        *,
        on_event: bool | OnEvent[CompareEvent] = True,
        timeout_seconds: float | None = None,
        **options: Unpack[CompareOptions],
    ) -> AsyncComparisonResult:
        """Whether something helped, as `Darkroom.compare`."""
        run = await self.comparisons.create(compare_request(prompts, options))
        return await self.comparisons.wait(run, on_event=on_event, timeout_seconds=timeout_seconds)

    async def plan_comparison(
        self, prompts: str | Iterable[str], **options: Unpack[CompareOptions]
    ) -> ComparePlan:
        """What the same comparison would come to, as `Darkroom.plan_comparison`."""
        return await self.comparisons.plan(compare_request(prompts, options))

    @property
    def loras(self) -> AsyncLoraRegistry:
        """The LoRAs that the service has, as `Darkroom.loras`."""
        return AsyncLoraRegistry(self._call)

    @property
    def datasets(self) -> AsyncDatasetLibrary:
        """Pictures to learn from, as `Darkroom.datasets`."""
        return AsyncDatasetLibrary(self._call, self._read)

    @property
    def train(self) -> AsyncTrainJobs:
        """Train jobs, as `Darkroom.train`."""
        return AsyncTrainJobs(self._call, self._follow)

    @property
    def comparisons(self) -> AsyncComparisons:
        """Comparisons one by one, as `Darkroom.comparisons`."""
        return AsyncComparisons(self._call, self._follow)

    async def info(self) -> ServiceInfo:
        """What the service is and what it can do."""
        return await self._call(_calls.info())

    async def wait_until_ready(
        self, timeout_seconds: float = 600.0, on_wait: Callable[[DarkroomError], object] | None = None
    ) -> None:
        """Return once the service can make pictures, as `Darkroom.wait_until_ready`; `on_wait` is not
        awaited."""
        await self._run(
            until_ready(self._connection, self._outside, timeout_seconds=timeout_seconds, on_wait=on_wait)
        )

    async def close(self) -> None:
        """Give the connections back. A client that the caller brought stays open."""
        if self._owns_http:
            await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.base_url!r})"

    async def _call(self, call: _calls.Call[T]) -> T:
        return await self._run(exchange(call, self._connection, self._outside))

    def _read(self, call: _calls.Call[bytes], reading: ReadingOf[E]) -> AsyncGenerator[E, None]:
        return self._events(reading(call, self._connection, self._outside))

    async def _events(self, reading: Reading[E]) -> AsyncGenerator[E, None]:
        opening = exchange(reading.call, self._connection, self._outside)
        response = reading.opened(await self._run(opening, reading))
        try:
            async for chunk in response.aiter_bytes():
                for event in reading.feed(chunk):
                    yield event
        except self._library.RequestError as error:
            if not reading.ended:
                raise reading.broken(_http.failure_of(error, self._library)) from error
        finally:
            await response.aclose()
        if not reading.ended:
            raise reading.cut_short()

    async def _follow(
        self, followed: Followed[EventT, EndT], after: int, timeout_seconds: float | None
    ) -> AsyncGenerator[EventT | EndT, None]:
        following = Following(
            followed, self._connection, self._outside, after=after, timeout_seconds=timeout_seconds
        )
        while not following.ended:
            try:
                async with aclosing(self._events(following.reading())) as listening:
                    async for told in listening:
                        following.heard(told)
                        yield told
            except DarkroomError as error:
                wait_seconds = following.lost(error)
                _log.info(f"lost {following} ({error}); asking again in {wait_seconds:.1f} s")
                await self._sleep(wait_seconds)

    async def _run(self, steps: Steps[T], reading: Reading[E] | None = None) -> T:
        outcome: Outcome | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                value: T = done.value
                return value
            if isinstance(step, Sleep):
                _log.info(step.because)
                await self._sleep(step.seconds)
                outcome = None
            else:
                outcome = await self._send(step, reading)

    async def _send(self, step: Send, reading: Reading[E] | None) -> Reply | Failure:
        request = _http.build_request(self._http, step, self._connection)
        try:
            response = await self._http.send(request, stream=True, follow_redirects=False)
            if reading is not None and _http.is_event_stream(response):
                reading.begin(response, step.give_up_at)
                return _http.reply_of(response, [])
            try:
                chunks: list[bytes] = []
                take = chunks.append
                if (download := _http.download_of(step, response)) is not None:
                    take = download.write
                async for chunk in response.aiter_bytes():
                    take(chunk)
                    # The library's read limit starts anew with every chunk; ours does not.
                    if self._outside.now() > step.give_up_at:
                        return Failure("timeout")
            finally:
                await response.aclose()
        except self._library.RequestError as error:
            return _http.failure_of(error, self._library)
        return _http.reply_of(response, chunks)
