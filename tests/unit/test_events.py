"""What is told of a request while its images are made: the use case over an engine that a test plays."""

import asyncio
import contextlib
from concurrent.futures import ThreadPoolExecutor

import pytest

from darkroom.types import Accepted, GenerateRequest
from fake_engine import FakeEngine, no_loras
from service.engine.orders import Progress
from service.errors import DeadlineExceeded, InvalidOption, Overloaded, UnusableImage
from service.generation import Generated, Generation
from service.metrics import Metrics
from service.runs import Runs


class Studio:
    """A Generation over a fake engine, with a queue of at most 100 s."""

    def __init__(self) -> None:
        self.engine, self.metrics = FakeEngine(), Metrics()
        self.runs = Runs(max_queue_seconds=100, metrics=self.metrics)
        self.generation = Generation(
            engine=lambda: self.engine,
            adapters=no_loras(),
            runs=self.runs,
            encoding=ThreadPoolExecutor(1),
            metrics=self.metrics,
            versions={},
            default_timeout_seconds=20,
        )

    def watching(self, **fields):
        """The events of a request, closed when they are left."""
        request = GenerateRequest(**{"prompt": "a fox"} | fields)
        return contextlib.aclosing(self.generation.events(request))

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"darkroom_{name}", labels) or 0.0


@pytest.fixture
def studio():
    return Studio()


def test_first_it_is_accepted_then_come_the_steps_and_at_last_the_images(studio):
    async def main():
        async with studio.watching(num_images=2, previews=True) as events:
            accepted = await anext(events)
            (work,) = studio.engine.works
            assert work.order.previews
            work.progress(0, 1, 2)
            work.progress(1, 1, 2)
            work.finish()
            return accepted, [event async for event in events]

    accepted, (*steps, generated) = asyncio.run(main())
    assert accepted == Accepted(id=generated.id, estimated_seconds=1.0)
    assert steps == [Progress(0, 1, 2), Progress(1, 1, 2)]
    assert isinstance(generated, Generated)
    assert [image.index for image in generated.images] == [0, 1]
    assert studio.metric("queue_depth") == 0


def test_leaving_early_cancels_the_work_and_frees_the_queue(studio):
    async def main():
        async with studio.watching() as events:
            await anext(events)
            assert studio.metric("queue_depth") == 1
        assert studio.engine.works[0].cancelled
        assert studio.runs.backlog_seconds == 0

    asyncio.run(main())


def test_what_is_refused_is_refused_in_the_place_of_the_first_event(studio):
    studio.engine.seconds = 19

    async def main():
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(5):
                await anext(await stack.enter_async_context(studio.watching()))
            async with studio.watching() as events:
                with pytest.raises(Overloaded):
                    await anext(events)

    asyncio.run(main())
    assert len(studio.engine.works) == 5


def test_the_deadline_ends_the_events_and_never_strikes_their_reader(studio):
    studio.engine.seconds = 0

    async def main():
        async with studio.watching(timeout_seconds=1e-9) as events:
            assert isinstance(await anext(events), Accepted)
            studio.engine.works[0].progress(0, 1, 2)
            for _ in range(10):  # the deadline is over, and nobody is waiting for an event
                await asyncio.sleep(0)
            assert await anext(events) == Progress(0, 1, 2)
            with pytest.raises(DeadlineExceeded):
                await anext(events)

    asyncio.run(main())
    assert studio.engine.works[0].cancelled
    assert studio.metric("cancelled_total", reason="deadline") == 1


def test_a_failure_comes_after_the_steps(studio):
    async def main():
        async with studio.watching() as events:
            await anext(events)
            studio.engine.works[0].progress(0, 1, 2)
            studio.engine.works[0].fail(UnusableImage("black", seed=1))
            await anext(events)
            with pytest.raises(UnusableImage):
                await anext(events)

    asyncio.run(main())
    assert studio.metric("unusable_images_total", reason="black") == 1


def test_previews_need_a_reader(studio):
    with pytest.raises(InvalidOption, match="accept `text/event-stream`, or leave `previews` out") as caught:
        asyncio.run(studio.generation.generate(GenerateRequest(prompt="a fox", previews=True)))
    assert caught.value.pointer == "/previews"
    assert studio.engine.works == []
