"""What a signal does to a server that has work in flight."""

import asyncio
import signal

import pytest

from service.api.in_flight import InFlight
from service.api.shutdown import Shutdown


@pytest.fixture
def server():
    """The server's own handlers, as a list of the signals that reached them."""
    reached = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda number, frame: reached.append(number))
    yield reached
    for number, handler in before.items():
        signal.signal(number, handler)


async def forever():
    await asyncio.Event().wait()


def test_the_server_hears_of_the_signal_once_the_work_is_done(server):
    events = []

    async def scenario():
        in_flight, release = InFlight(), asyncio.Event()

        async def work():
            await release.wait()
            events.append("work done")

        asking = asyncio.create_task(in_flight.run(work(), forever))
        shutdown = Shutdown(lambda: events.append("drained"), in_flight, patience_seconds=60)
        shutdown.install()
        signal.raise_signal(signal.SIGTERM)
        while not events:
            await asyncio.sleep(0)
        assert server == []
        release.set()
        await asking
        while not server:
            await asyncio.sleep(0)

    asyncio.run(scenario())
    assert events == ["drained", "work done"]
    assert server == [signal.SIGTERM]


def test_the_same_signal_again_goes_straight_through_and_another_does_not(server):
    async def scenario():
        in_flight = InFlight()
        asking = asyncio.create_task(in_flight.run(forever(), forever))
        await asyncio.sleep(0)
        Shutdown(lambda: None, in_flight, patience_seconds=60).install()
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert server == []
        signal.raise_signal(signal.SIGINT)
        assert server == [signal.SIGINT]
        asking.cancel()

    asyncio.run(scenario())
