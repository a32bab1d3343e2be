"""Admission, deadlines and cancellation, without a device and without waiting."""

import asyncio
import contextlib
from dataclasses import dataclass

import pytest

from fake_engine import FakeEngine
from service.errors import (
    DeadlineExceeded,
    Draining,
    EngineStopped,
    OutOfDeviceMemory,
    Overloaded,
    TooExpensive,
)
from service.metrics import Metrics
from service.runs import Accepted, Runs


@dataclass(frozen=True)
class Costing:
    """An order, as far as it matters here."""

    seconds: float
    seeds: tuple[int, ...] = (1,)
    start: None = None


class Desk:
    """Runs with an engine behind them and a queue of at most 100 s."""

    def __init__(self) -> None:
        self.engine, self.metrics = FakeEngine(), Metrics()
        self.runs = Runs(max_queue_seconds=100, metrics=self.metrics)

    async def complete(self, seconds: float, images: int = 1, timeout_seconds: float = 10_000.0):
        order = Costing(seconds, tuple(range(images)))
        events = self.runs.events(self.engine, order, timeout_seconds=timeout_seconds)
        async with contextlib.aclosing(events):
            *_, done = [event async for event in events]
            return done

    async def begin(self, *args, **kwargs) -> asyncio.Task:
        """The same as a task that has come as far as it can."""
        task = asyncio.create_task(self.complete(*args, **kwargs))
        await settle()
        return task

    def metric(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"darkroom_{name}", labels) or 0.0


@pytest.fixture
def desk():
    return Desk()


async def settle() -> None:
    """Let everything that is ready run."""
    for _ in range(10):
        await asyncio.sleep(0)


async def refused(task: asyncio.Task, kind: type[Exception]) -> Exception:
    with pytest.raises(kind) as caught:
        await task
    return caught.value


def test_an_idle_service_takes_more_than_its_queue_holds(desk):
    async def main():
        task = await desk.begin(500)
        desk.engine.works[0].finish()
        assert len((await task).pictures) == 1

    asyncio.run(main())


def test_a_busy_service_takes_what_fits_and_refuses_the_next(desk):
    async def main():
        running = [await desk.begin(60), await desk.begin(40)]
        error = await refused(await desk.begin(12.5), Overloaded)
        assert error.retry_after_seconds == 13
        assert str(error) == "100.0 s of work are queued and 100.0 s are allowed; try again in 13 s"
        assert len(desk.engine.works) == 2
        for work in desk.engine.works:
            work.finish()
        await asyncio.gather(*running)

    asyncio.run(main())


def test_the_shortest_time_to_wait_is_a_second(desk):
    async def main():
        task = await desk.begin(99.9)
        assert (await refused(await desk.begin(0.2), Overloaded)).retry_after_seconds == 1
        task.cancel()

    asyncio.run(main())


def test_progress_makes_room(desk):
    async def main():
        await desk.begin(100, images=2)
        (work,) = desk.engine.works
        await refused(await desk.begin(25), Overloaded)
        work.progress(index=0, step=5, steps=10)
        await settle()
        assert desk.runs.backlog_seconds == desk.metric("queue_estimated_seconds") == 75
        accepted = await desk.begin(25)
        assert len(desk.engine.works) == 2
        work.progress(index=0, step=6, steps=10)
        work.progress(index=1, step=10, steps=10)
        await settle()
        assert desk.runs.backlog_seconds == pytest.approx(20 + 25)
        accepted.cancel()

    asyncio.run(main())


def test_what_cannot_be_done_in_time_is_not_begun(desk):
    async def main():
        error = await refused(await desk.begin(31, timeout_seconds=30), TooExpensive)
        assert "about 31 s, and it has 30 s" in str(error)
        assert desk.engine.works == []

    asyncio.run(main())


def test_draining_refuses_new_work_and_sees_the_old_through(desk):
    async def main():
        task = await desk.begin(10)
        desk.runs.drain()
        await refused(await desk.begin(1), Draining)
        desk.engine.works[0].finish()
        await task

    asyncio.run(main())
    assert desk.runs.draining


def test_cancelling_the_caller_cancels_the_work(desk):
    async def main():
        task = await desk.begin(10)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()

    asyncio.run(main())
    assert desk.engine.works[0].cancelled
    assert (desk.runs.backlog_seconds, desk.metric("queue_depth")) == (0, 0)


def test_leaving_the_events_early_cancels_the_work(desk):
    async def main():
        events = desk.runs.events(desk.engine, Costing(10), timeout_seconds=60)
        async with contextlib.aclosing(events):
            assert await anext(events) == Accepted(estimated_seconds=10)
            desk.engine.works[0].progress(0, 1, 10)
            assert (await anext(events)).step == 1

    asyncio.run(main())
    assert desk.engine.works[0].cancelled
    assert desk.runs.backlog_seconds == 0


def test_a_deadline_cancels_the_work_and_counts(desk):
    async def main():
        error = await refused(await desk.begin(0, timeout_seconds=0), DeadlineExceeded)
        assert "within 0 s" in str(error)

    asyncio.run(main())
    assert all(work.cancelled for work in desk.engine.works)
    assert desk.metric("cancelled_total", reason="deadline") == 1
    assert desk.metric("queue_depth") == 0


def test_a_failure_of_the_engine_is_the_caller_s_error_and_frees_the_queue(desk):
    async def main():
        task = await desk.begin(10)
        desk.engine.works[0].fail(OutOfDeviceMemory("too large"))
        await refused(task, OutOfDeviceMemory)

    asyncio.run(main())
    assert desk.runs.backlog_seconds == 0


def test_an_engine_that_takes_nothing_leaves_nothing_in_the_queue(desk):
    desk.engine.refuses_with = EngineStopped("the engine has stopped")

    async def main():
        await refused(await desk.begin(10), EngineStopped)

    asyncio.run(main())
    assert desk.metric("queue_depth") == 0


def test_an_engine_may_go_on_talking_after_the_loop_has_closed(desk):
    async def main():
        await desk.begin(10)

    asyncio.run(main())
    (work,) = desk.engine.works
    assert work.cancelled
    work.progress(0, 1, 2)
    work.finish()
