"""`Darkroom`, the client for programs and notebooks. `_async_client` is its twin: change both."""

import logging
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from types import TracebackType
from typing import Self, TypeVar, Unpack

from darkroom import _calls, _http
from darkroom._callers import ReadingOf
from darkroom._compare_options import CompareOptions, compare_request
from darkroom._comparison_result import ComparisonResult
from darkroom._comparisons import Comparisons
from darkroom._connection import DEFAULT_MAX_RETRIES, Timeouts, resolve
from darkroom._datasets import DatasetLibrary
from darkroom._errors import DarkroomError, refused_before_sending
from darkroom._exchange import Failure, Outcome, Outside, Send, Sleep, Steps, exchange
from darkroom._following import EndT, EventT, Followed, Following
from darkroom._images import Generation
from darkroom._loras import LoraRegistry
from darkroom._options import Loras, Options, lora_uses, request_from
from darkroom._progress_bar import OnEvent
from darkroom._replies import Reply
from darkroom._streams import Reading, Stream, of_pictures
from darkroom._train import TrainJobs
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


class Darkroom:
    """A client for one Darkroom service. Threads may share it.

    `base_url` and `api_key` default to the environment's `DARKROOM_URL` (else http://127.0.0.1:3000) and
    `DARKROOM_API_KEY`. `timeout` bounds a whole call with all its retries, in seconds, 600 by default; give a
    `Timeouts` to say more. `http_client` is anything with `httpx.Client`'s API, for proxies, certificates and
    tests; it stays its owner's to close.

    >>> with Darkroom("http://gpu-node:3000", timeout=120) as client:
    ...     print(client)
    Darkroom('http://gpu-node:3000')
    """

    def __init__(
        self,
        base_url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float | Timeouts | None = None,
        max_retries: int = DEFAULT_MAX_RETRIES,
        http_client: _http.HttpClient | None = None,
    ) -> None:
        own_url = _http.url_of(http_client)
        self._connection = resolve(base_url, api_key, timeout, max_retries, http_client_url=own_url)
        self._owns_http = http_client is None
        self._http = _http.new_client() if http_client is None else http_client
        self._library = _http.library_of(self._http)
        self._outside = Outside()
        self._sleep: Callable[[float], None] = time.sleep

    def generate(
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
        """Pictures of a prompt.

        The arguments are those of `GenerateRequest`, where each is explained. Prompts are in compel's syntax:
        `(phrase)1.3`, `(phrase)++`, `word-`. `loras` are refs, or `LoraUse` with weight and scope.
        `timeout_seconds` is the service's deadline, after which it stops working on the request.

        Raises: `InvalidRequest` before anything is sent where a value cannot be right, else any
        `DarkroomError`.

        >>> foxes = client.generate("a (red)1.3 fox", seed=7, num_images=2, output=Output(metadata="none"))
        >>> foxes[1]
        <Image 64×64 image/png, 0.4 kB, seed 8>
        """
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
        return self.generate_request(request)

    def generate_request(self, request: GenerateRequest) -> Generation:
        """Pictures of a request that is already made.

        >>> base = GenerateRequest(prompt="a fox", seed=7)
        >>> client.generate_request(base.model_copy(update={"guidance_scale": 5.0})).image.seed
        7
        """
        return Generation.from_response(self._call(_calls.generate(request)))

    def stream(self, prompt: str, *, previews: bool = False, **options: Unpack[Options]) -> Stream:
        """The same pictures as from `generate`, with the same keywords, and every step on the way to them.

        Iterate over it: first comes `Accepted`, then `Progress` for the steps, at last the `Generation`. Leave the
        loop early under `with` and the connection is closed, so that the service stops working. The request is
        sent when the first event is asked for, and sent again by the rules of `generate`, until it is accepted
        and never after.

        Raises: `InvalidRequest` before anything is sent where a value cannot be right; from the loop, any
        `DarkroomError`.

        >>> from darkroom import Progress
        >>> with client.stream("a fox", seed=7, num_inference_steps=2, previews=True) as events:
        ...     for event in events:
        ...         if isinstance(event, Progress):
        ...             print(event.step, event.steps, event.preview)
        1 2 <PictureFile image/png, 0.3 kB>
        2 2 None
        >>> event.image
        <Image 64×64 image/png, 0.4 kB, seed 7>
        """
        with refused_before_sending():
            request = request_from(prompt, options, previews=previews)
        return self.stream_request(request)

    def stream_request(self, request: GenerateRequest) -> Stream:
        """The same of a request that is already made."""
        return Stream(self._read(_calls.stream(request), of_pictures))

    def compare(
        self,
        prompts: str | Iterable[str],
        *,
        on_event: bool | OnEvent[CompareEvent] = True,
        timeout_seconds: float | None = None,
        **options: Unpack[CompareOptions],
    ) -> ComparisonResult:
        """Whether something helped: every arm draws the same prompts and seeds, and is held against the first one.

        An arm is a name and what it changes of `base`, `{"plain": {}, "ink": {"loras": ["ink@2"]}}`; `axes` and a
        `preset` make more of them. `seeds` is a list, or how many. `metric` names beforehand what decides. All
        keywords are those of `CompareRequest`. Returns when all is drawn and measured; meanwhile a line on a terminal
        shows how far it is, `on_event=False` leaves it out, and a function is called with every event.

        Raises: `InvalidRequest`, before anything is sent where a value cannot be right; `CompareFailed` where it
        fails as a whole or is cancelled (cells that failed are in the result); `Timeout` after `timeout_seconds`,
        while the service goes on.

        >>> result = client.compare(
        ...     ["a fox", "a cat"],
        ...     seeds=8,
        ...     base={"num_inference_steps": 20},
        ...     arms={"plain": {}, "blurry": {"negative_prompt": "blurry"}},
        ...     metric="sharpness",
        ... )
        >>> result
        <ComparisonResult cmp_1 succeeded: 2 arms × 2 prompts × 8 seeds, 32 of 32 cells>
        >>> [verdict.pairs for verdict in result.verdicts if verdict.decides]
        [16]
        """
        run = self.comparisons.create(compare_request(prompts, options))
        return self.comparisons.wait(run, on_event=on_event, timeout_seconds=timeout_seconds)

    def plan_comparison(self, prompts: str | Iterable[str], **options: Unpack[CompareOptions]) -> ComparePlan:
        """What the same comparison would come to: arms, pictures, evaluations, seconds. Nothing is drawn.

        >>> plan = client.plan_comparison("a fox", axes={"guidance_scale": [5, 9, 13]})
        >>> [arm.name for arm in plan.arms], plan.cells
        (['guidance_scale=5', 'guidance_scale=9', 'guidance_scale=13'], 24)
        """
        return self.comparisons.plan(compare_request(prompts, options))

    @property
    def loras(self) -> LoraRegistry:
        """The LoRAs that the service has: publish, list, move aliases, download."""
        return LoraRegistry(self._call)

    @property
    def datasets(self) -> DatasetLibrary:
        """Pictures to learn from: upload them, have the service make them, list, look at, delete them."""
        return DatasetLibrary(self._call, self._read)

    @property
    def train(self) -> TrainJobs:
        """Train jobs: begin one, wait for it, hear of its steps, cancel it, fetch what it made."""
        return TrainJobs(self._call, self._follow)

    @property
    def comparisons(self) -> Comparisons:
        """Comparisons one by one: begin one, wait for it, hear of its cells, cancel it, fetch what it made."""
        return Comparisons(self._call, self._follow)

    def info(self) -> ServiceInfo:
        """What the service is and what it can do.

        >>> client.info().limits.max_edge
        2048
        """
        return self._call(_calls.info())

    def wait_until_ready(
        self, timeout_seconds: float = 600.0, on_wait: Callable[[DarkroomError], object] | None = None
    ) -> None:
        """Return once the service can make pictures, however often it has to be asked.

        `on_wait` is called after every probe that failed, with the reason; `on_wait=print` will do.

        Raises: `Timeout` when the time is up.

        >>> client.wait_until_ready(timeout_seconds=120, on_wait=print)
        """
        self._run(
            until_ready(self._connection, self._outside, timeout_seconds=timeout_seconds, on_wait=on_wait)
        )

    def close(self) -> None:
        """Give the connections back. A client that the caller brought stays open."""
        if self._owns_http:
            self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._connection.base_url!r})"

    def _call(self, call: _calls.Call[T]) -> T:
        return self._run(exchange(call, self._connection, self._outside))

    def _read(self, call: _calls.Call[bytes], reading: ReadingOf[E]) -> Generator[E, None, None]:
        return self._events(reading(call, self._connection, self._outside))

    def _events(self, reading: Reading[E]) -> Generator[E, None, None]:
        opening = exchange(reading.call, self._connection, self._outside)
        response = reading.opened(self._run(opening, reading))
        try:
            for chunk in response.iter_bytes():
                yield from reading.feed(chunk)
        except self._library.RequestError as error:
            if not reading.ended:
                raise reading.broken(_http.failure_of(error, self._library)) from error
        finally:
            response.close()
        if not reading.ended:
            raise reading.cut_short()

    def _follow(
        self, followed: Followed[EventT, EndT], after: int, timeout_seconds: float | None
    ) -> Generator[EventT | EndT, None, None]:
        following = Following(
            followed, self._connection, self._outside, after=after, timeout_seconds=timeout_seconds
        )
        while not following.ended:
            try:
                with closing(self._events(following.reading())) as listening:
                    for told in listening:
                        following.heard(told)
                        yield told
            except DarkroomError as error:
                wait_seconds = following.lost(error)
                _log.info(f"lost {following} ({error}); asking again in {wait_seconds:.1f} s")
                self._sleep(wait_seconds)

    def _run(self, steps: Steps[T], reading: Reading[E] | None = None) -> T:
        outcome: Outcome | None = None
        while True:
            try:
                step = steps.send(outcome)
            except StopIteration as done:
                value: T = done.value
                return value
            if isinstance(step, Sleep):
                _log.info(step.because)
                self._sleep(step.seconds)
                outcome = None
            else:
                outcome = self._send(step, reading)

    def _send(self, step: Send, reading: Reading[E] | None) -> Reply | Failure:
        request = _http.build_request(self._http, step, self._connection)
        try:
            response = self._http.send(request, stream=True, follow_redirects=False)
            if reading is not None and _http.is_event_stream(response):
                reading.begin(response, step.give_up_at)
                return _http.reply_of(response, [])
            try:
                chunks: list[bytes] = []
                take = chunks.append
                if (download := _http.download_of(step, response)) is not None:
                    take = download.write
                for chunk in response.iter_bytes():
                    take(chunk)
                    # The library's read limit starts anew with every chunk; ours does not.
                    if self._outside.now() > step.give_up_at:
                        return Failure("timeout")
            finally:
                response.close()
        except self._library.RequestError as error:
            return _http.failure_of(error, self._library)
        return _http.reply_of(response, chunks)
