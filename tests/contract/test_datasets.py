"""Datasets through the real client: a service without an engine, and real storage behind it."""

import asyncio
import io
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.testclient import TestClient

import dataset_files as files
from darkroom import (
    Darkroom,
    DarkroomError,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    Unavailable,
)
from dataset_files import form, jpeg, png, webp, zipped
from in_process import URL, Awaited
from lora_registry.errors import CatalogUnavailable
from service.api.app import create_app
from service.api.auth import KeyRing
from service.api.edge import Edge
from service.dataset_library import DatasetLibrary
from service.errors import DeadlineExceeded
from service.metrics import Metrics
from service.settings import ApiKey
from service.synthesis import Synthesis

POST = {"Content-Type": "application/zip"}


class Generation:
    """Draws noise of the request's seed."""

    def __init__(self):
        self.asked = 0
        self.fails_after = 10_000

    async def generate(self, request):
        self.asked += 1
        if self.asked > self.fails_after:
            raise DeadlineExceeded("the picture was not made in time")
        return SimpleNamespace(images=[SimpleNamespace(data=png(request.seed))])


class Site:
    """The app over datasets, and clients of it."""

    def __init__(self, datasets, folder):
        self.folder, self.generation = folder, Generation()
        self.failure = None
        self.library = DatasetLibrary(lambda: self.connected(datasets))
        models = SimpleNamespace(name="pocket", fingerprint="f" * 64)
        synthesis = Synthesis(self.generation, self.library, lambda: SimpleNamespace(models=models))
        self.app = create_app(lambda: SimpleNamespace(dataset_library=self.library, synthesis=synthesis))
        self.guard()

    def connected(self, datasets):
        if self.failure is not None:
            raise self.failure
        return datasets

    def guard(self, *keys, **limits):
        limits = {"max_body_bytes": 1 << 20} | limits
        self.edge = Edge(self.app, keys=KeyRing(keys), metrics=Metrics(), **limits)

    def http(self):
        return TestClient(self.edge, base_url=URL)

    def post(self, body, query="", **headers):
        return self.http().post(f"/v1/datasets{query}", content=body, headers=POST | headers)

    def sync(self, api_key=None):
        return Darkroom(http_client=self.http(), api_key=api_key, max_retries=0).datasets

    def awaited(self, api_key=None):
        return Awaited("datasets", self.edge, api_key)

    def stored(self):
        return [path for path in (self.folder / "training").rglob("*") if path.is_file()]


@pytest.fixture
def site():
    with files.datasets_in_memory() as kept:
        site = Site(*kept)
        yield site
        site.library.close()


@pytest.fixture(params=["sync", "awaited"])
def enter(request, site):
    """Makes a client of this kind, as the site is then."""
    return lambda **more: getattr(site, request.param)(**more)


@pytest.fixture
def datasets(enter):
    return enter()


@pytest.fixture
def folder(tmp_path):
    """Pictures on somebody's disk."""
    folder = tmp_path / "foxes"
    (folder / "more").mkdir(parents=True)
    (folder / "1.png").write_bytes(png(1))
    (folder / "1.txt").write_text("a fox", encoding="utf-8")
    (folder / "2.jpg").write_bytes(jpeg(2))
    (folder / "more" / "3.webp").write_bytes(webp(3))
    (folder / ".hidden").write_bytes(b"x")
    return folder


def test_a_folder_is_uploaded_found_looked_at_and_deleted(datasets, folder):
    told = []
    made = datasets.upload(
        folder, prompt="a photo of sks fox", name="foxes", progress=lambda *now: told.append(now)
    )
    assert [(picture.file, picture.caption) for picture in made.pictures] == [
        ("1.png", "a fox"),
        ("2.jpg", "a photo of sks fox"),
        ("more/3.webp", "a photo of sks fox"),
    ]
    assert told[-1][0] == told[-1][1] > 0
    assert datasets.upload(folder, prompt="a photo of sks fox").existing
    assert datasets.get(made.id) == made
    (item,) = datasets.list()
    assert (item.id, item.name, item.picture_count) == (made.id, "foxes", 3)
    assert np.array_equal(np.asarray(datasets.picture(item, 0).pil()), files.pixels(1))
    with pytest.raises(NotFound, match="has no picture 3"):
        datasets.picture(made, 3)
    datasets.delete(made)
    assert list(datasets.list()) == []
    for gone in (datasets.get, datasets.delete):
        with pytest.raises(NotFound):
            gone(made.id)
    assert not datasets.upload(folder, prompt="a photo of sks fox").existing


def test_an_archive_a_picture_and_paths_can_be_sent_too(datasets, folder, tmp_path):
    members = {"1.png": png(1), "2.jpg": jpeg(2)}
    archive = tmp_path / "foxes.tar.gz"
    archive.write_bytes(files.tarred(members, "w:gz"))
    made = datasets.upload(archive)
    assert datasets.upload(io.BytesIO(zipped(members))).id == made.id
    assert datasets.upload([folder / "2.jpg", str(folder / "1.png")]).id == made.id
    assert [picture.file for picture in datasets.upload(folder / "1.png").pictures] == ["1.png"]
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", []):
        with pytest.raises(ValueError, match=r"no files|no paths"):
            datasets.upload(nothing)


def test_many_datasets_come_page_by_page(datasets, site, monkeypatch):
    for seed in range(60):
        site.library.datasets().add_pictures([("1.png", png(seed), "")])
    assert len({item.id for item in datasets.list()}) == 60


def test_a_bad_picture_is_named_and_may_be_left_out(datasets, folder, site):
    (folder / "4.png").write_bytes(b"\x80\x04\x95 a pickle")
    (folder / "5.jpg").write_bytes(jpeg(5)[:400])
    with pytest.raises(InvalidRequest) as refused:
        datasets.upload(folder)
    assert refused.value.code == "invalid_dataset"
    assert [(fault.code, fault.message[:7]) for fault in refused.value.errors] == [
        ("picture.unknown", "'4.png'"),
        ("picture.corrupt", "'5.jpg'"),
    ]
    assert site.stored() == []
    made = datasets.upload(folder, invalid="skip")
    assert len(made.pictures) == 3
    assert [fault.file for fault in made.faults] == ["4.png", "5.jpg"]


@pytest.mark.parametrize(
    ("body", "code", "fault"),
    [
        (zipped({"../1.png": png(1)}), "invalid_archive", "member.name"),
        (zipped({"1.png": bytes(5 << 20)}), "invalid_archive", "archive.bomb"),
        (zipped({"1.png": png(1)})[:-9], "invalid_archive", "archive.corrupt"),
        (b"hello", "invalid_archive", "archive.unknown"),
        (zipped({"1.txt": b"a fox"}), "empty_dataset", "caption.alone"),
    ],
    ids=["outside", "bomb", "cut off", "no archive", "captions only"],
)
def test_a_bad_archive_says_why_and_leaves_nothing(datasets, site, body, code, fault):
    with pytest.raises(InvalidRequest) as refused:
        datasets.upload(io.BytesIO(body), invalid="skip")
    assert refused.value.code == code
    assert [one.code for one in refused.value.errors] == [fault]
    assert site.stored() == []


def test_the_parts_of_a_form_are_an_upload(site):
    members = {"1.png": png(1), "1.txt": b"a fox"}
    body = form(members, "abc")
    for content_type in ("multipart/form-data; boundary=abc", 'Multipart/Form-Data; boundary="abc"'):
        reply = site.post(body, **{"Content-Type": content_type})
        assert reply.status_code in (200, 201)
    assert site.post(zipped(members)).json()["id"] == reply.json()["id"]
    for content_type in ("multipart/form-data", "image/png", "application/json", "text/plain"):
        assert site.post(body, **{"Content-Type": content_type}).status_code == 415
    assert site.post(body[:-9], **{"Content-Type": "multipart/form-data; boundary=abc"}).status_code == 422


def test_an_answer_says_where_the_dataset_is_and_whether_it_is_new(site):
    for status in (201, 200):
        reply = site.post(zipped({"1.png": png(1)}), "?prompt=a%20fox&name=foxes")
        assert reply.status_code == status
        assert reply.headers["location"] == f"/v1/datasets/{reply.json()['id']}"
    assert site.http().get(reply.headers["location"]).json()["pictures"][0]["caption"] == "a fox"
    picture = site.http().get(reply.headers["location"] + "/pictures/0")
    assert picture.headers["content-type"] == "image/png"


@pytest.mark.parametrize("query", ["?invalid=maybe", "?name=" + "x" * 65, "?prompt=" + "x" * 2001])
def test_options_that_cannot_be_are_refused(site, query):
    assert site.post(zipped({"1.png": png(1)}), query).json()["status"] == 422
    assert site.stored() == []


def test_an_upload_over_the_limit_is_refused_by_its_announcement_and_by_its_bytes(site, folder):
    site.guard(max_dataset_bytes=500)
    with pytest.raises(PayloadTooLarge):
        site.sync().upload(folder)

    def pieces():
        for _ in range(10):
            yield bytes(100)

    assert site.post(pieces()).status_code == 413
    assert site.stored() == []


def test_a_body_that_breaks_off_leaves_nothing(site):
    body = zipped({"1.png": png(1)})
    messages = [
        {"type": "http.request", "body": body[:100], "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent = []

    async def receive():
        return messages.pop(0)

    async def send(message):
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/datasets",
        "raw_path": b"/v1/datasets",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"content-type", b"application/zip")],
    }
    asyncio.run(site.edge(scope, receive, send))
    assert sent == [] or sent[0]["status"] == 499
    assert site.stored() == []
    assert list(site.sync().list()) == []


def test_bad_pictures_are_made_by_one_call(datasets, site):
    told = []
    made = datasets.synthesize(
        "wrong", seed=1, images_per_prompt=1, name="bad", progress=lambda *what: told.append(what)
    )
    # Of steps that are made faster than they can be told, the newest is.
    assert told == sorted(told)
    assert told[-1] == (78, 78)
    assert (len(made.pictures), {picture.caption for picture in made.pictures}) == (78, {"wrong"})
    assert (made.name, made.synthesis.recipe, made.synthesis.seed) == ("bad", "wrong", 1)
    assert len(made.synthesis.prompts) == 39
    assert datasets.synthesize("wrong", seed=1).existing
    assert site.generation.asked == 78
    with pytest.raises(InvalidRequest):
        datasets.synthesize()
    with pytest.raises(InvalidRequest, match="never closed"):
        datasets.synthesize(prompts=["a (fox"])
    with pytest.raises(InvalidRequest, match="1280 pictures"):
        datasets.synthesize(prompts=["a fox"] * 20, images_per_prompt=64)


def test_a_synthesis_is_told_of_or_answered_as_the_caller_accepts(site):
    body = {"prompts": ["a fox", "a dog"]}
    with site.http() as http:
        plain = http.post("/v1/datasets/synthesize", json=body)
        assert (plain.status_code, plain.json()["existing"]) == (201, False)
        assert plain.headers["location"] == f"/v1/datasets/{plain.json()['id']}"
        other = {"prompts": ["a cat", "a cow", "an (owl"]}
        stream = {"Accept": "text/event-stream"}
        refused = http.post("/v1/datasets/synthesize", json=other, headers=stream)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_prompt")
        told = http.post("/v1/datasets/synthesize", json={"prompts": ["a cat", "a cow"]}, headers=stream)
        assert told.headers["content-type"].startswith("text/event-stream")
        names = [line[7:] for line in told.text.splitlines() if line.startswith("event: ")]
        assert (names[0], names[-1]) == ("progress", "result")
        nothing = http.post("/v1/datasets/synthesize", json=body, headers={"Accept": "image/png"})
        assert nothing.status_code == 406


def test_a_synthesis_that_breaks_off_says_why_and_keeps_nothing(site, datasets):
    site.generation.fails_after = 1
    with pytest.raises(DarkroomError, match="not made in time"):
        datasets.synthesize(prompts=["a fox", "a dog"])
    assert list(datasets.list()) == []


def test_a_key_needs_the_scope_train(enter, site, folder):
    site.guard(
        ApiKey.model_validate(key("reader", "loras:read")), ApiKey.model_validate(key("trainer", "train"))
    )
    made = enter(api_key="trainer").upload(folder)
    reader = enter(api_key="reader")
    for ask in (
        lambda: reader.upload(folder),
        lambda: list(reader.list()),
        lambda: reader.get(made),
        lambda: reader.picture(made, 0),
        lambda: reader.delete(made),
        lambda: reader.synthesize("wrong"),
    ):
        with pytest.raises(PermissionDenied):
            ask()


def key(secret, scope):
    import hashlib

    return {"name": secret, "sha256": hashlib.sha256(secret.encode()).hexdigest(), "scopes": [scope]}


def test_a_database_that_is_down_is_a_503(datasets, site, folder):
    site.failure = CatalogUnavailable("the database does not answer as it should; try again later")
    for ask in (lambda: datasets.upload(folder), lambda: list(datasets.list())):
        with pytest.raises(Unavailable) as away:
            ask()
        assert away.value.retry_after_seconds == 10


def test_an_id_that_would_lead_elsewhere_is_refused_before_it_is_sent(datasets):
    for id in ("", ".", "..", "a/b"):
        with pytest.raises(InvalidRequest):
            datasets.get(id)
    with pytest.raises(NotFound):
        datasets.get("foxes")
