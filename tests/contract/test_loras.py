"""The registry through the real client: a service without an engine, and a real registry behind it."""

import hashlib
import io
import threading
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from darkroom import (
    AuthenticationFailed,
    BadResponse,
    Conflict,
    Darkroom,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    Unavailable,
)
from in_process import URL, Awaited
from lora_files import PICKLE, lora_file, registry_in_memory, sd15_file
from lora_registry.errors import CatalogUnavailable
from service.api.app import create_app
from service.api.auth import KeyRing
from service.api.edge import Edge
from service.loras import Loras
from service.metrics import Metrics
from service.settings import ApiKey

FILE = lora_file(count=30)
DIGEST = f"sha256:{hashlib.sha256(FILE).hexdigest()}"


class Site:
    """The app over a registry, and clients of it."""

    def __init__(self, registry, folder):
        self.registry, self.folder, self.metrics = registry, folder, Metrics()
        self.loras = Loras(lambda: self.registry, self.metrics)
        self.app = create_app(lambda: SimpleNamespace(loras=self.loras))
        self.guard()

    def guard(self, *keys, **limits):
        limits = {"max_body_bytes": 1 << 20} | limits
        self.edge = Edge(self.app, keys=KeyRing(keys), metrics=self.metrics, **limits)

    def sync(self, api_key=None):
        http = TestClient(self.edge, base_url=URL)
        return Darkroom(http_client=http, api_key=api_key, max_retries=0).loras

    def awaited(self, api_key=None):
        return Awaited("loras", self.edge, api_key)

    def leftovers(self):
        return list(self.folder.rglob("*.part"))


@pytest.fixture
def site():
    with registry_in_memory() as kept:
        site = Site(*kept)
        yield site
        assert site.leftovers() == []


@pytest.fixture(params=["sync", "awaited"])
def enter(request, site):
    """Makes a client of this kind, as the site is then."""
    return lambda **more: getattr(site, request.param)(**more)


@pytest.fixture
def loras(enter):
    return enter()


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "ink.safetensors"
    path.write_bytes(FILE)
    return path


def test_a_lora_is_published_found_moved_fetched_and_deleted(loras, path, tmp_path):
    told = []
    version = loras.publish(
        "ink",
        path,
        alias="prod",
        triggers=["ink wash"],
        tags=["art"],
        description="Grey, wet.",
        progress=lambda *now: told.append(now),
    )
    assert (version.ref, version.digest, version.size_bytes) == ("ink@1", DIGEST, len(FILE))
    assert (version.kind, version.family, version.description) == ("lora", "pocket SDXL", "Grey, wet.")
    assert told[-1] == (len(FILE), len(FILE))
    assert loras.publish("ink", path).existing
    second = loras.publish("ink", io.BytesIO(lora_file(2)))
    assert [one.version for one in loras.versions("ink")] == [2, 1]
    assert [loras.version(ref) for ref in ("ink", "ink:prod", "ink@1", DIGEST)] == [second, *[version] * 3]
    assert [lora.name for lora in loras.list(hash=version.auto_v3, tag="ART")] == ["ink"]
    assert list(loras.list(name="oil")) == []
    moved = loras.set_alias("ink", "prod", 2, if_match=loras.alias("ink", "prod").etag)
    assert [alias.alias for alias in loras.get("ink").aliases] == ["latest", "prod"]
    assert loras.download("ink@1", tmp_path / "copy.safetensors").read_bytes() == FILE
    kohya = loras.download("ink@1", tmp_path, form="kohya")
    assert (kohya.name, b"lora_down.weight" in kohya.read_bytes()) == ("ink-1.kohya.safetensors", True)
    with pytest.raises(Conflict, match="'prod'"):
        loras.delete("ink", 2)
    loras.delete_alias("ink", "prod", if_match=moved.etag)
    loras.delete("ink", 2)
    loras.delete("ink", 1)
    with pytest.raises(NotFound):
        loras.get("ink")
    assert list(loras.list()) == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (PICKLE, "file.pickle"),
        (FILE[:-1], "file.truncated"),
        (sd15_file(), "family.sd1"),
        (b"", "file.empty"),
    ],
    ids=["pickle", "truncated", "another model", "empty"],
)
def test_a_file_that_is_refused_says_why_and_is_not_there(loras, data, code):
    with pytest.raises(InvalidRequest) as caught:
        loras.publish("ink", io.BytesIO(data))
    assert caught.value.code == "invalid_lora"
    assert [fault.code for fault in caught.value.errors] == [code]
    found = loras.inspect(io.BytesIO(data))
    assert (found.verdict, [reason.code for reason in found.reasons]) == ("refused", [code])
    assert list(loras.list()) == []


def test_an_inspection_of_a_good_file_publishes_nothing(loras, path):
    found = loras.inspect(path)
    assert (found.verdict, found.modules, found.components) == ("accepted", 30, ["unet"])
    assert list(loras.list()) == []


@pytest.mark.parametrize("name", ["Ink", "ink wash", "-ink", "a" * 65, "sha256", "ïnk", "ink:1"])
def test_a_name_that_cannot_be_is_refused(loras, path, name):
    with pytest.raises(InvalidRequest) as caught:
        loras.publish(name, path)
    assert caught.value.code == "invalid_name"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "../../etc/passwd"])
def test_a_name_that_is_a_path_is_refused_before_it_is_sent(loras, path, name):
    for ask in (
        lambda: loras.publish(name, path),
        lambda: loras.delete(name, 1),
        lambda: loras.version(name),
    ):
        with pytest.raises(InvalidRequest):
            ask()


@pytest.mark.parametrize(
    "words", [{"triggers": ["a/b"]}, {"tags": ["x" * 101]}, {"description": "\x1b[31m"}, {"alias": "latest"}]
)
def test_words_that_cannot_be_are_refused(loras, path, words):
    with pytest.raises(InvalidRequest):
        loras.publish("ink", path, **words)
    assert list(loras.list()) == []


def test_of_two_who_publish_one_number_one_wins_and_the_other_hears_of_it(site):
    results = [None, None]
    start = threading.Barrier(2)

    def publish(place):
        start.wait(10)
        try:
            results[place] = site.sync().publish("ink", io.BytesIO(lora_file(place)), version=7)
        except Conflict as exc:
            results[place] = exc

    threads = [threading.Thread(target=publish, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    lost, won = sorted(results, key=lambda result: not isinstance(result, Conflict))
    assert (won.version, lost.status, lost.code) == (7, 409, "version_exists")
    assert won.digest in lost.problem.detail


def test_who_did_not_see_the_last_move_does_not_move(loras, path):
    loras.publish("ink", path)
    made = loras.set_alias("ink", "prod", 1, if_match="")
    for stale in ("", "999"):
        with pytest.raises(Conflict) as caught:
            loras.set_alias("ink", "prod", 1, if_match=stale)
        assert (caught.value.status, caught.value.code) == (412, "alias_conflict")
    assert loras.alias("ink", "prod") == made


def test_a_file_over_the_limit_is_too_large(site, enter, path):
    site.guard(max_upload_bytes=len(FILE) - 1)
    with pytest.raises(PayloadTooLarge, match=str(len(FILE) - 1)):
        enter().publish("ink", path)
    site.guard(max_upload_bytes=len(FILE))
    assert enter().publish("ink", path).version == 1


def test_only_keys_with_the_scope_come_in(site, enter, path):
    scopes = {"reader": "loras:read", "writer": "loras:write", "root": "admin"}
    site.guard(
        *(
            ApiKey(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), scopes=frozenset({scope}))
            for name, scope in scopes.items()
        )
    )
    with pytest.raises(AuthenticationFailed):
        enter().publish("ink", path)
    with pytest.raises(PermissionDenied, match="loras:write"):
        enter(api_key="reader").publish("ink", path)
    with pytest.raises(PermissionDenied, match="loras:read"):
        enter(api_key="writer").get("ink")
    assert enter(api_key="writer").publish("ink", path).version == 1
    assert enter(api_key="reader").get("ink").version_count == 1
    enter(api_key="root").delete("ink", 1)


def test_a_registry_that_is_away_says_when_to_come_back_and_comes_back(site, enter, path):
    def connect():
        raise CatalogUnavailable("the registry's database does not answer as it should; try again later")

    site.loras, working = Loras(connect, site.metrics), site.loras
    for _ in range(2):
        with pytest.raises(Unavailable) as caught:
            enter().publish("ink", path)
        assert (caught.value.code, caught.value.retry_after_seconds) == ("catalog_unavailable", 10)
    site.loras = working
    assert enter().publish("ink", path).version == 1


def test_bytes_that_changed_in_the_store_are_not_written_down(site, loras, path, tmp_path):
    loras.publish("ink", path)
    (blob,) = [file for file in site.folder.rglob("*") if file.is_file() and file.stat().st_size == len(FILE)]
    blob.chmod(0o644)
    blob.write_bytes(FILE[:-1] + b"?")
    target = tmp_path / "copy"
    with pytest.raises(BadResponse, match=DIGEST):
        loras.download("ink", target)
    assert not target.exists()
    blob.unlink()
    with pytest.raises(Unavailable) as caught:
        loras.download("ink", target)
    assert caught.value.code == "blob_missing"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
