"""`client.datasets`: what is packed and sent, and the fake that other people test with."""

import asyncio
import hashlib
import inspect
import io
import zipfile

import httpx
import pytest

from darkroom import AsyncDatasetLibrary, Darkroom, DatasetLibrary, InvalidRequest, NotFound
from darkroom._packing import archive_of

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "foxes"
    (folder / "more").mkdir(parents=True)
    (folder / "2.png").write_bytes(PNG + b"two")
    (folder / "1.png").write_bytes(PNG + b"one")
    (folder / "1.txt").write_text("a fox", encoding="utf-8")
    (folder / "more" / "3.jpg").write_bytes(b"\xff\xd8\xffthree")
    for hidden in (".DS_Store", "more/.thumb.png"):
        (folder / hidden).write_bytes(b"hidden")
    return folder


def packed(pictures):
    with archive_of(pictures) as archive:
        return archive.read()


def names(data):
    return zipfile.ZipFile(io.BytesIO(data)).namelist()


def test_the_twins_have_the_same_methods_and_arguments():
    def public(kind):
        return {name: method for name, method in vars(kind).items() if not name.startswith("_")}

    assert public(DatasetLibrary).keys() == public(AsyncDatasetLibrary).keys()
    for name, method in public(DatasetLibrary).items():
        twin = public(AsyncDatasetLibrary)[name]
        ours, theirs = inspect.signature(method), inspect.signature(twin)
        assert ours.parameters == theirs.parameters, name
        if name == "list":
            assert inspect.isasyncgenfunction(twin)
        else:
            assert inspect.iscoroutinefunction(twin)
            assert ours == theirs, name


def test_a_folder_is_packed_in_one_order_without_what_is_hidden(folder):
    data = packed(folder)
    assert names(data) == ["1.png", "1.txt", "2.png", "more/3.jpg"]
    assert packed(str(folder)) == data
    (folder / "1.png").touch()
    assert packed(folder) == data


def test_paths_and_a_single_picture_are_packed_under_their_own_names(folder):
    assert names(packed([folder / "more" / "3.jpg", str(folder / "1.png")])) == ["1.png", "3.jpg"]
    assert names(packed(folder / "more" / "3.jpg")) == ["3.jpg"]


def test_an_archive_is_sent_as_it_is(tmp_path):
    path = tmp_path / "foxes.tar.gz"
    path.write_bytes(b"\x1f\x8b something")
    assert packed(path) == packed(io.BytesIO(b"\x1f\x8b something")) == b"\x1f\x8b something"


def test_nothing_to_pack_is_said_so(tmp_path):
    for nothing in (tmp_path, []):
        with pytest.raises(ValueError, match=r"no files|no paths"):
            packed(nothing)
    with pytest.raises(FileNotFoundError):
        packed(tmp_path / "nowhere.zip")


def test_an_upload_can_be_sent_again(folder):
    seen = []

    def handle(request):
        seen.append((str(request.url), request.read(), request.headers["content-length"]))
        if len(seen) == 1:
            raise httpx.ReadError("broken")
        return httpx.Response(503, json={"title": "t", "status": 503, "detail": "d", "code": "draining"})

    http = httpx.Client(transport=httpx.MockTransport(handle))
    client = Darkroom("http://test", http_client=http, max_retries=1)
    client._sleep = lambda seconds: None
    with pytest.raises(Exception, match="draining"):
        client.datasets.upload(folder, prompt="a fox & a dog", invalid="skip", name="foxes")
    assert seen[0] == seen[1]
    url, body, length = seen[0]
    assert url == "http://test/v1/datasets?prompt=a+fox+%26+a+dog&invalid=skip&name=foxes"
    assert length == str(len(body))


def test_the_fake_keeps_what_it_was_sent(client, folder):
    made = client.datasets.upload(folder, prompt="a photo of sks fox", name="foxes")
    assert [(picture.file, picture.caption) for picture in made.pictures] == [
        ("1.png", "a fox"),
        ("2.png", "a photo of sks fox"),
        ("more/3.jpg", "a photo of sks fox"),
    ]
    assert client.datasets.upload(folder, prompt="a photo of sks fox").existing
    assert client.datasets.get(made.id) == client.datasets.get(made) == made
    (item,) = client.datasets.list()
    assert (item.id, item.picture_count) == (made.id, 3)
    assert client.datasets.picture(item, 0).data == PNG + b"one"
    assert made.pictures[0].digest == f"sha256:{hashlib.sha256(PNG + b'one').hexdigest()}"
    client.datasets.delete(made)
    for gone in (client.datasets.get, client.datasets.delete, lambda one: client.datasets.picture(one, 0)):
        with pytest.raises(NotFound):
            gone(made)


def test_the_fake_refuses_what_is_no_picture_or_leaves_it_out(client, folder):
    (folder / "notes.md").write_bytes(b"hello")
    with pytest.raises(InvalidRequest) as refused:
        client.datasets.upload(folder)
    assert [fault.code for fault in refused.value.errors] == ["picture.unknown"]
    assert [fault.file for fault in client.datasets.upload(folder, invalid="skip").faults] == ["notes.md"]
    for archive in (b"no zip", b""):
        with pytest.raises(InvalidRequest):
            client.datasets.upload(io.BytesIO(archive))


def test_the_fake_makes_pictures(client):
    told = []
    bad = client.datasets.synthesize("wrong", name="bad", progress=lambda *what: told.append(what))
    assert told == [(0, len(bad.pictures)), (len(bad.pictures),) * 2]
    assert (len(bad.pictures), bad.pictures[0].caption, bad.name) == (78, "wrong", "bad")
    assert client.datasets.synthesize("wrong").existing
    foxes = client.datasets.synthesize(prompts=["a fox", "a dog"], images_per_prompt=2, seed=3)
    assert [picture.caption for picture in foxes.pictures] == ["a fox", "a fox", "a dog", "a dog"]
    assert foxes.synthesis.seed == 3
    assert client.datasets.picture(foxes, 3).data.startswith(PNG)


def test_what_cannot_be_is_refused_before_anything_is_sent(client, fake):
    for ask in (
        lambda: client.datasets.synthesize(),
        lambda: client.datasets.synthesize("worse"),
        lambda: client.datasets.synthesize("wrong", guidance_scale=(3.0,)),
        lambda: client.datasets.get("../loras"),
    ):
        with pytest.raises(InvalidRequest):
            ask()
    assert fake.requests == []


def test_the_async_twin_does_the_same(fake, folder):
    async def story():
        async with fake.async_client() as client:
            made = await client.datasets.upload(folder)
            assert await client.datasets.get(made) == made
            assert [item.id async for item in client.datasets.list()] == [made.id]
            assert (await client.datasets.picture(made, 0)).data == PNG + b"one"
            bad = await client.datasets.synthesize("wrong")
            await client.datasets.delete(bad)
            return len(bad.pictures)

    assert asyncio.run(story()) == 78
