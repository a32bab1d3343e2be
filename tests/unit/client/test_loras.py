"""`client.loras`: files on their way, retries, conditions, and the fake that other people test with."""

import asyncio
import hashlib
import inspect
import io
import json

import httpx
import pytest

from darkroom import (
    AsyncLoraRegistry,
    BadResponse,
    Conflict,
    ConnectionFailed,
    Darkroom,
    InvalidRequest,
    LoraRegistry,
    NotFound,
    Unavailable,
)
from darkroom._transfers import PIECE_BYTES
from darkroom.testing import FakeDarkroom

FILE = b"\x02\0\0\0\0\0\0\0{}" + bytes(range(256)) * (PIECE_BYTES // 100)
OTHER = b"\x02\0\0\0\0\0\0\0{}other"
DIGEST = f"sha256:{hashlib.sha256(FILE).hexdigest()}"


@pytest.fixture
def lora_file(tmp_path):
    path = tmp_path / "ink.safetensors"
    path.write_bytes(FILE)
    return path


def answering(*answers, seen=None):
    """A client of a service that gives these answers in turn."""
    left = list(answers)

    def handle(request):
        if seen is not None:
            seen.append(request)
        return left.pop(0)

    http = httpx.Client(transport=httpx.MockTransport(handle))
    return Darkroom("http://test", http_client=http, max_retries=0)


def test_the_twins_have_the_same_methods_and_arguments():
    def public(kind):
        return {name: method for name, method in vars(kind).items() if not name.startswith("_")}

    assert public(LoraRegistry).keys() == public(AsyncLoraRegistry).keys()
    for name, method in public(LoraRegistry).items():
        twin = public(AsyncLoraRegistry)[name]
        ours, theirs = inspect.signature(method), inspect.signature(twin)
        assert ours.parameters == theirs.parameters, name
        if name in ("list", "versions"):
            assert inspect.isasyncgenfunction(twin)
        else:
            assert inspect.iscoroutinefunction(twin)
            assert ours == theirs, name


def test_a_published_file_is_found_and_comes_back(client, lora_file, tmp_path):
    sent, received = [], []
    version = client.loras.publish(
        "ink", lora_file, alias="prod", triggers=["ink wash"], progress=lambda *told: sent.append(told)
    )
    assert (version.ref, version.digest, version.triggers) == ("ink@1", DIGEST, ["ink wash"])
    for ref in ("ink", "ink@1", "ink:prod", DIGEST):
        assert client.loras.version(ref) == version
    assert [lora.name for lora in client.loras.list(trigger="ink")] == ["ink"]
    assert list(client.loras.list(trigger="oil")) == []
    assert client.loras.get("ink").latest == version
    assert list(client.loras.versions("ink")) == [version]
    path = client.loras.download("ink:prod", tmp_path / "copy", progress=lambda *told: received.append(told))
    assert path.read_bytes() == FILE
    assert sent[-1] == received[-1] == (len(FILE), len(FILE))
    assert [sent_bytes for sent_bytes, _ in sent] == sorted({sent_bytes for sent_bytes, _ in sent})


def test_the_same_bytes_again_are_the_same_version(client, lora_file):
    first = client.loras.publish("ink", lora_file)
    again = client.loras.publish("ink", lora_file)
    assert (again.version, first.existing, again.existing) == (1, False, True)
    assert client.loras.publish("ink", io.BytesIO(OTHER)).version == 2


def test_the_twins_do_the_same(fake, lora_file, tmp_path):
    async def story():
        async with fake.async_client() as client:
            version = await client.loras.publish("ink", lora_file, alias="prod")
            assert [lora.latest async for lora in client.loras.list()] == [version]
            assert [one async for one in client.loras.versions("ink")] == [version]
            assert (await client.loras.get("ink")).latest == await client.loras.version("ink:prod")
            assert (await client.loras.inspect(lora_file)).verdict == "accepted"
            moved = await client.loras.set_alias("ink", "other", 1, if_match="")
            assert await client.loras.alias("ink", "other") == moved
            for alias in ("prod", "other"):
                await client.loras.delete_alias("ink", alias)
            copy = await client.loras.download("ink", tmp_path / "copy")
            await client.loras.delete("ink", 1)
            return copy.read_bytes()

    assert asyncio.run(story()) == FILE


@pytest.mark.parametrize("failure", [503, 502, httpx.ReadError("gone"), ConnectionError("refused")])
def test_a_publish_that_fails_on_the_way_is_sent_again_whole(fake, lora_file, failure):
    told = []
    fake.fail_next(failure)
    with fake.client() as client:
        version = client.loras.publish("ink", lora_file, progress=lambda *now: told.append(now[0]))
    assert version.digest == DIGEST
    assert [received.method for received in fake.requests] == ["POST", "POST"]
    assert told.count(PIECE_BYTES) == 2


def test_a_download_that_fails_on_the_way_starts_anew(fake, lora_file, tmp_path):
    with fake.client() as client:
        client.loras.publish("ink", lora_file)
        fake.fail_next(502)
        assert client.loras.download("ink", tmp_path / "copy").read_bytes() == FILE


def test_a_download_that_fails_leaves_what_was_there(fake, lora_file, tmp_path):
    target = tmp_path / "folder" / "copy"
    target.parent.mkdir()
    target.write_bytes(b"old")
    with fake.client(max_retries=0) as client:
        client.loras.publish("ink", lora_file)
        version = client.loras.version("ink")
        wrong = answering(
            httpx.Response(200, json=version.model_dump(mode="json")),
            httpx.Response(200, content=b"other bytes"),
        )
        with pytest.raises(BadResponse, match="nothing was written"):
            wrong.loras.download("ink", target)
        away = answering(httpx.Response(200, json=version.model_dump(mode="json")), _away())
        with pytest.raises(Unavailable):
            away.loras.download("ink", target)
    assert target.read_bytes() == b"old"
    assert list(target.parent.iterdir()) == [target]


def _away():
    problem = {"title": "away", "status": 503, "detail": "away", "code": "blob_missing"}
    return httpx.Response(503, json=problem, headers={"Retry-After": "30"})


def test_a_download_into_a_folder_has_a_name_of_its_own(client, lora_file, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    client.loras.publish("ink", lora_file)
    assert client.loras.download("ink", folder) == folder / "ink-1.safetensors"


def test_a_file_that_is_open_is_sent_from_where_it_stands_and_stays_open(client):
    file = io.BytesIO(b"before" + OTHER)
    file.seek(6)
    version = client.loras.publish("ink", file)
    assert version.size_bytes == len(OTHER)
    assert not file.closed


def test_a_file_that_cannot_be_rewound_is_not_sent(fake, client):
    class Pipe(io.BytesIO):
        def seekable(self):
            return False

    with pytest.raises(ValueError, match="give a path"):
        client.loras.publish("ink", Pipe(FILE))
    assert fake.requests == []


def test_a_file_is_announced_and_never_whole_in_memory(fake, lora_file):
    version = fake.client().loras.publish("ink", lora_file).model_dump(mode="json")
    seen, sizes = [], []

    class Transport(httpx.BaseTransport):
        def handle_request(self, request):
            seen.append(request.headers)
            sizes.extend(len(piece) for piece in request.stream)
            return httpx.Response(201, json=version)

    with Darkroom("http://test", http_client=httpx.Client(transport=Transport())) as client:
        client.loras.publish("ink", lora_file)
    assert seen[0]["content-length"] == str(len(FILE)) == str(sum(sizes))
    assert "transfer-encoding" not in seen[0]
    assert seen[0]["x-darkroom-digest"] == DIGEST
    assert max(sizes) <= PIECE_BYTES


def test_an_answer_about_other_bytes_is_not_believed(fake, lora_file):
    other = fake.client().loras.publish("ink", io.BytesIO(OTHER)).model_dump(mode="json")
    with pytest.raises(BadResponse, match="was sent"):
        answering(httpx.Response(200, json=other)).loras.publish("ink", lora_file)


def test_a_list_goes_on_to_the_last_page(fake, lora_file):
    fake.client().loras.publish("ink", lora_file)
    lora = fake.client().loras.get("ink").model_dump(mode="json")
    seen = []
    pages = [{"items": [lora, lora], "next_cursor": "a b"}, {"items": [lora]}]
    client = answering(*(httpx.Response(200, json=page) for page in pages), seen=seen)
    found = client.loras.list(tag="art")
    assert seen == []
    assert len(list(found)) == 3
    assert [dict(request.url.params) for request in seen] == [{"tag": "art"}, {"tag": "art", "cursor": "a b"}]


@pytest.mark.parametrize("name", ["ink?x=1", "ink#1", "ïnk", "a b"])
def test_a_name_stays_one_part_of_the_path(name):
    seen = []
    refusal = {"title": "no", "status": 404, "detail": "no", "code": "lora_not_found"}
    with pytest.raises(NotFound):
        answering(httpx.Response(404, json=refusal), seen=seen).loras.get(name)
    assert seen[0].url.raw_path.count(b"/") == 3
    assert seen[0].url.path == f"/v1/loras/{name}"


def test_an_alias_is_moved_on_a_condition(client, lora_file):
    client.loras.publish("ink", lora_file)
    client.loras.publish("ink", io.BytesIO(OTHER))
    first = client.loras.set_alias("ink", "prod", 1, if_match="")
    with pytest.raises(Conflict):
        client.loras.set_alias("ink", "prod", 2, if_match="")
    moved = client.loras.set_alias("ink", "prod", 2, if_match=first.etag)
    with pytest.raises(Conflict) as caught:
        client.loras.set_alias("ink", "prod", 1, if_match=first.etag)
    assert (caught.value.status, caught.value.code) == (412, "alias_conflict")
    with pytest.raises(Conflict, match="in use"):
        client.loras.delete("ink", 2)
    client.loras.delete_alias("ink", "prod", if_match=moved.etag)
    client.loras.delete("ink", 2)
    assert client.loras.get("ink").version_count == 1


def test_a_move_that_may_have_happened_is_not_repeated_with_its_condition(fake, lora_file):
    with fake.client() as client:
        client.loras.publish("ink", lora_file)
        fake.fail_next(httpx.ReadError("gone"))
        with pytest.raises(ConnectionFailed):
            client.loras.set_alias("ink", "prod", 1, if_match="")
        fake.fail_next(httpx.ReadError("gone"))
        assert client.loras.set_alias("ink", "prod", 1).version == 1


def test_a_version_that_cannot_be_is_refused_before_it_is_sent(fake, client):
    with pytest.raises(InvalidRequest):
        client.loras.set_alias("ink", "prod", 0)
    assert fake.requests == []


def test_the_fake_refuses_what_the_service_would(client, lora_file):
    with pytest.raises(InvalidRequest) as refused:
        client.loras.publish("ink", io.BytesIO(b"\x80\x04pickle"))
    assert refused.value.code == "invalid_lora"
    assert refused.value.errors[0].code
    assert client.loras.inspect(io.BytesIO(b"\x80\x04pickle")).verdict == "refused"
    with pytest.raises(InvalidRequest):
        client.loras.publish("No Name", lora_file)
    client.loras.publish("ink", lora_file, version=3)
    with pytest.raises(Conflict, match=DIGEST):
        client.loras.publish("ink", io.BytesIO(OTHER), version=3)
    for nothing in ("none", "ink@2", "ink:prod", "sha256:" + "0" * 64):
        with pytest.raises(NotFound):
            client.loras.version(nothing)


def test_each_fake_has_loras_of_its_own(client, lora_file):
    client.loras.publish("ink", lora_file)
    assert list(FakeDarkroom().client().loras.list()) == []


def test_a_logged_call_tells_no_words(caplog, fake, lora_file):
    caplog.set_level("INFO", logger="darkroom")
    fake.fail_next(503)
    fake.client().loras.publish("ink", lora_file, description="for eyes only")
    assert "trying again" in caplog.text
    assert "eyes" not in caplog.text


def test_what_the_service_answers_is_what_the_fake_answers(client, lora_file):
    """Both are made of the same classes; this keeps the JSON of the fake one that the client can read."""
    version = client.loras.publish("ink", lora_file)
    assert json.loads(version.model_dump_json())["created_at"].startswith("2024-01-01")
