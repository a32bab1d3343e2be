"""The use case of the registry: threads, bounded memory, and what is left behind when something ends early."""

import asyncio
import threading
from contextlib import aclosing

import pytest

from darkroom.types import LoraVersion
from lora_files import PICKLE, lora_file, registry_in_memory, sd15_file
from lora_registry import Registry
from lora_registry.errors import (
    AliasConflict,
    CatalogUnavailable,
    DigestMismatch,
    InvalidLora,
    InvalidName,
    LoraNotFound,
    VersionExists,
)
from service.blocking import PIECE_BYTES
from service.errors import TooManyUploads
from service.loras import MAX_UPLOADS, Loras
from service.metrics import Metrics
from unit.lora_registry.makers import pocket


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def kept():
    with registry_in_memory() as kept:
        yield kept


@pytest.fixture
def loras(kept, metrics):
    loras = Loras(lambda: kept[0], metrics)
    yield loras
    loras.close()


@pytest.fixture
def leftovers(kept):
    """Temporary files of uploads."""
    return lambda: list(kept[1].rglob("*.part"))


async def pieces(data, size=1000):
    for start in range(0, len(data), size):
        yield data[start : start + size]


async def whole(file):
    async with aclosing(file.pieces):
        return b"".join([piece async for piece in file.pieces])


def test_what_was_published_can_be_found_and_read(loras):
    async def story():
        version = await loras.publish("ink", pieces(lora_file()), alias="prod", triggers=["ink wash"])
        assert isinstance(version, LoraVersion)
        assert (version.ref, version.triggers, version.existing) == ("ink@1", ["ink wash"], False)
        for ref in ("ink", "ink@1", "ink:prod", version.digest):
            assert await loras.resolve(ref) == version
        assert await loras.version("ink", 1) == version
        assert (await loras.get("ink")).latest == version
        assert (await loras.versions("ink")).items == [version]
        assert [lora.name for lora in (await loras.list(trigger="wash")).items] == ["ink"]
        assert await whole(await loras.open("ink:prod")) == lora_file()
        return version

    version = asyncio.run(story())
    assert loras.registry().resolve("ink").digest == version.digest


def test_the_same_bytes_again_are_the_same_version(loras):
    async def story():
        first = await loras.publish("ink", pieces(lora_file()))
        return first, await loras.publish("ink", pieces(lora_file()))

    first, again = asyncio.run(story())
    assert again == first.model_copy(update={"existing": True})


def test_of_two_publishers_of_one_number_one_wins(loras):
    async def story():
        return await asyncio.gather(
            *(loras.publish("ink", pieces(lora_file(seed)), number=1) for seed in range(2)),
            return_exceptions=True,
        )

    won, lost = sorted(asyncio.run(story()), key=lambda one: isinstance(one, Exception))
    assert isinstance(lost, VersionExists)
    assert lost.digest == won.digest


def test_a_refused_file_is_counted_by_its_reasons_and_leaves_nothing(loras, metrics, leftovers):
    for data in (PICKLE, lora_file()[:-1], sd15_file(), b""):
        with pytest.raises(InvalidLora):
            asyncio.run(loras.publish("ink", pieces(data)))
    assert leftovers() == []
    for code in ("file.pickle", "file.truncated", "family.sd1", "file.empty"):
        assert metrics.registry.get_sample_value("darkroom_lora_refusals_total", {"reason": code}) == 1, code


def test_an_inspection_says_the_same_and_publishes_nothing(loras, leftovers):
    async def story():
        good = await loras.inspect(pieces(lora_file()))
        bad = [await loras.inspect(pieces(data)) for data in (PICKLE, sd15_file())]
        return good, bad, await loras.list()

    good, bad, page = asyncio.run(story())
    assert (good.verdict, good.kind, good.modules) == ("accepted", "lora", 2)
    assert [found.verdict for found in bad] == ["refused", "refused"]
    assert [found.reasons[0].code for found in bad] == ["file.pickle", "family.sd1"]
    assert page.items == []
    assert leftovers() == []


def test_a_wrong_name_is_refused_before_a_byte_is_taken(loras):
    async def never():
        raise AssertionError("taken")
        yield b""

    for arguments in ({"name": "../x"}, {"name": "ink", "alias": "latest"}):
        with pytest.raises(InvalidName):
            asyncio.run(loras.publish(**arguments, pieces=never()))


def test_other_bytes_than_announced_are_not_published(loras):
    with pytest.raises(DigestMismatch):
        asyncio.run(loras.publish("ink", pieces(lora_file()), digest="sha256:" + "0" * 64))
    with pytest.raises(LoraNotFound):
        asyncio.run(loras.get("ink"))


def test_an_upload_that_breaks_off_publishes_nothing_and_leaves_no_file(loras, leftovers):
    async def broken():
        yield lora_file()[:2000] + b"\0" * PIECE_BYTES
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(loras.publish("ink", broken()))
    assert leftovers() == []
    assert asyncio.run(loras.list()).items == []


def test_a_cancelled_upload_leaves_no_file(loras, leftovers):
    async def story():
        waiting = asyncio.Event()

        async def endless():
            yield lora_file()[:2000] + b"\0" * PIECE_BYTES
            waiting.set()
            await asyncio.Event().wait()
            yield b""

        task = asyncio.create_task(loras.publish("ink", endless()))
        await waiting.wait()
        assert len(leftovers()) == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert leftovers() == []


def test_one_upload_too_many_is_turned_away_and_there_is_room_again_afterwards(loras, leftovers):
    async def main():
        release, begun = asyncio.Event(), asyncio.Queue()

        async def slow(data):
            begun.put_nowait(None)
            yield data
            await release.wait()

        files = [lora_file(seed) for seed in range(MAX_UPLOADS)]
        waiting = [asyncio.create_task(loras.publish(f"l{n}", slow(data))) for n, data in enumerate(files)]
        for _ in waiting:
            await begun.get()
        with pytest.raises(TooManyUploads):
            await loras.publish("late", pieces(lora_file(99)))
        release.set()
        await asyncio.gather(*waiting)
        assert (await loras.publish("late", pieces(lora_file(99)))).ref == "late@1"

    asyncio.run(main())
    assert leftovers() == []


def test_a_caller_cancelled_while_a_thread_works_waits_for_the_thread(loras):
    entered, release, left = threading.Event(), threading.Event(), []

    def work():
        entered.set()
        release.wait(10)
        left.append("the thread")

    async def story():
        task = asyncio.create_task(loras._in_thread(work))
        await asyncio.to_thread(entered.wait, 10)
        task.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
        assert not task.done()
        release.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        left.append("the caller")

    asyncio.run(story())
    assert left == ["the thread", "the caller"]


def test_a_registry_that_cannot_be_reached_is_asked_again_with_the_next_call(tmp_path):
    calls = []

    def connect():
        calls.append(None)
        if len(calls) < 3:
            raise CatalogUnavailable("away")
        return Registry.connect([pocket()], data=tmp_path)

    loras = Loras(connect, Metrics())
    for _ in range(2):
        with pytest.raises(CatalogUnavailable):
            asyncio.run(loras.list())
    assert asyncio.run(loras.list()).items == []
    assert loras.registry() is loras.registry()
    assert len(calls) == 3
    loras.close()


def test_callers_at_once_connect_once(tmp_path):
    calls = []

    def connect():
        calls.append(None)
        return Registry.connect([pocket()], data=tmp_path)

    loras = Loras(connect, Metrics())

    async def story():
        await asyncio.gather(*(loras.list() for _ in range(8)))

    asyncio.run(story())
    assert len(calls) == 1
    loras.close()


class CountedLock:
    """A lock that tells who has come to it."""

    def __init__(self):
        self.arrivals, self._lock = threading.Semaphore(0), threading.Lock()

    def __enter__(self):
        self.arrivals.release()
        self._lock.acquire()

    def __exit__(self, *_exception):
        self._lock.release()


def test_those_who_wait_for_an_attempt_that_fails_share_its_failure():
    release, calls, failures = threading.Event(), [], []

    def connect():
        calls.append(None)
        release.wait(10)
        raise CatalogUnavailable("away")

    def ask():
        try:
            loras.registry()
        except CatalogUnavailable as exc:
            failures.append(exc)

    loras = Loras(connect, Metrics())
    loras._lock = CountedLock()
    callers = [threading.Thread(target=ask) for _ in range(4)]
    for caller in callers:
        caller.start()
    for _ in callers:
        assert loras._lock.arrivals.acquire(timeout=10)
    release.set()
    for caller in callers:
        caller.join(10)
    assert (len(calls), len(failures)) == (1, 4)


def test_nothing_is_connected_before_it_is_needed():
    def connect():
        raise AssertionError("connected")

    Loras(connect, Metrics()).close()


def test_an_alias_is_moved_only_from_where_its_mover_saw_it(loras):
    async def story():
        for seed in range(2):
            await loras.publish("ink", pieces(lora_file(seed)))
        first = await loras.set_alias("ink", "prod", 1, if_match="")
        for wrong in ("", "nonsense"):
            with pytest.raises(AliasConflict):
                await loras.set_alias("ink", "prod", 2, if_match=wrong)
        moved = await loras.set_alias("ink", "prod", 2, if_match=first.etag)
        assert (moved.version, await loras.alias("ink", "prod")) == (2, moved)
        assert (await loras.set_alias("ink", "prod", 1, if_match="*")).version == 1
        with pytest.raises(AliasConflict):
            await loras.set_alias("ink", "other", 1, if_match="*")
        await loras.delete_alias("ink", "prod", if_match="*")
        with pytest.raises(LoraNotFound):
            await loras.alias("ink", "prod")
        await loras.delete("ink", 2)
        return await loras.get("ink")

    lora = asyncio.run(story())
    assert (lora.latest.version, lora.version_count) == (1, 1)


def test_a_download_that_ends_early_closes_the_file(loras):
    async def story():
        await loras.publish("ink", pieces(lora_file(count=40)))
        file = await loras.open("ink", "kohya")
        assert file.file_name == "ink-1.kohya.safetensors"
        assert file.etag != file.version.digest
        async with aclosing(file.pieces):
            first = await anext(file.pieces)
        assert 0 < len(first) < file.size_bytes
        with pytest.raises(StopAsyncIteration):
            await anext(file.pieces)

    asyncio.run(story())
