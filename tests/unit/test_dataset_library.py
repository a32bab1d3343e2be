"""The use case of datasets: threads, bounded memory, and what is left behind when something ends early."""

import asyncio
import threading

import pytest

import dataset_files as files
from dataset_files import form, png, zipped
from lora_registry.errors import CatalogUnavailable
from service.blocking import PIECE_BYTES
from service.dataset_library import MAX_UPLOADS, DatasetLibrary
from service.datasets.errors import DatasetNotFound, DatasetTooLarge, InvalidArchive
from service.datasets.incoming import Incoming
from service.errors import Draining, InvalidOption, TooManyUploads

GOOD = zipped({"1.png": png(1), "2.png": png(2)})


@pytest.fixture
def kept():
    with files.datasets_in_memory() as kept:
        yield kept


@pytest.fixture
def library(kept):
    library = DatasetLibrary(lambda: kept[0])
    yield library
    library.close()


@pytest.fixture
def blobs(kept):
    return lambda: [path for path in (kept[1] / "training").rglob("*") if path.is_file()]


async def pieces(data, size=100):
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_what_was_uploaded_can_be_found_and_read(library):
    async def story():
        made = await library.upload(pieces(GOOD), prompt="a fox", name="foxes")
        assert await library.get(made.id) == made
        assert [item.id for item in (await library.list()).items] == [made.id]
        again = await library.upload(
            pieces(form({"1.png": png(1), "2.png": png(2)})), boundary=b"----parts", prompt="a fox"
        )
        assert (again.id, again.existing) == (made.id, True)
        picture = await library.picture(made.id, 1)
        await library.delete(made.id)
        with pytest.raises(DatasetNotFound):
            await library.get(made.id)
        return picture

    assert asyncio.run(story()).startswith(b"\x89PNG")


def test_an_upload_that_breaks_off_leaves_nothing(library, blobs):
    class Gone(Exception):
        pass

    async def broken():
        yield GOOD[:200]
        raise Gone

    for _ in range(MAX_UPLOADS + 1):
        with pytest.raises(Gone):
            asyncio.run(library.upload(broken()))
    with pytest.raises(InvalidArchive):
        asyncio.run(library.upload(pieces(GOOD[:-30])))
    assert blobs() == []


def test_an_upload_that_is_cancelled_on_its_way_leaves_nothing(library, blobs):
    async def story():
        sent = asyncio.Event()

        async def endless():
            yield GOOD
            sent.set()
            await asyncio.Event().wait()

        task = asyncio.ensure_future(library.upload(endless()))
        await sent.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert blobs() == []


def test_an_upload_that_is_cancelled_while_it_is_looked_at_stops_there(library, blobs, monkeypatch):
    looking, cancelled = threading.Event(), threading.Event()
    members = Incoming.members

    def slow(incoming):
        for member in members(incoming):
            looking.set()
            assert cancelled.wait(10)
            yield member

    give_up = Incoming.give_up

    def told(incoming):
        give_up(incoming)
        cancelled.set()

    # The generator asks between two members whether it is still wanted.
    monkeypatch.setattr(Incoming, "give_up", told)
    monkeypatch.setattr(Incoming, "members", slow)

    async def story():
        task = asyncio.ensure_future(library.upload(pieces(GOOD)))
        await asyncio.to_thread(looking.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(story())
    assert blobs() == []


def test_an_upload_is_in_memory_only_piece_by_piece(library, monkeypatch):
    written = []
    write = Incoming.write
    monkeypatch.setattr(Incoming, "write", lambda one, piece: (written.append(len(piece)), write(one, piece)))

    async def story():
        with pytest.raises(InvalidArchive):
            await library.upload(pieces(bytes(3 * PIECE_BYTES + 5), 70_000))

    asyncio.run(story())
    assert sum(written) == 3 * PIECE_BYTES + 5
    assert max(written) < PIECE_BYTES + 70_000


def test_an_upload_over_the_limit_is_given_up_with_the_piece_that_goes_over(kept, monkeypatch):
    monkeypatch.setattr(
        kept[0], "receive", lambda boundary: Incoming(kept[1], boundary=boundary, limit_bytes=100)
    )
    library = DatasetLibrary(lambda: kept[0])
    with pytest.raises(DatasetTooLarge):
        asyncio.run(library.upload(pieces(GOOD)))
    library.close()


def test_uploads_at_once_are_bounded_and_a_draining_service_takes_none(library):
    async def story():
        async def never():
            await asyncio.Event().wait()
            yield b""

        tasks = [asyncio.ensure_future(library.upload(never())) for _ in range(MAX_UPLOADS)]
        await asyncio.sleep(0)
        with pytest.raises(TooManyUploads):
            await library.upload(pieces(GOOD))
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await library.upload(pieces(GOOD))).existing is False
        library.drain()
        with pytest.raises(Draining):
            await library.upload(pieces(GOOD))

    asyncio.run(story())


def test_a_name_that_cannot_be_used_is_refused_before_anything_is_read(library):
    async def unread():
        raise AssertionError("nobody may ask for a piece")
        yield b""

    with pytest.raises(InvalidOption):
        asyncio.run(library.upload(unread(), name="x" * 65))


def test_a_database_that_is_down_is_asked_again(kept):
    answers = [CatalogUnavailable("down"), kept[0]]

    def connect():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    library = DatasetLibrary(connect)
    with pytest.raises(CatalogUnavailable):
        asyncio.run(library.list())
    assert asyncio.run(library.list()).items == []
    library.close()
