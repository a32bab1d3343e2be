"""Train jobs through the real client: a service without an engine, a real table, and a worker that only pretends."""

import asyncio
import hashlib
import threading
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from darkroom import (
    AuthenticationFailed,
    Conflict,
    Darkroom,
    InvalidRequest,
    NotFound,
    PermissionDenied,
    TrainFailed,
    TrainRecipe,
    TrainRequest,
    Unavailable,
)
from darkroom.types import Dataset, DatasetPicture, Problem, SynthesizeRequest
from in_process import URL, Awaited
from lora_registry.errors import CatalogUnavailable
from service.api.app import create_app
from service.api.auth import KeyRing
from service.api.edge import Edge
from service.datasets.errors import DatasetNotFound
from service.errors import InvalidOption, ModelLoading
from service.metrics import Metrics
from service.settings import ApiKey
from service.train_jobs import TrainJobs
from service.training.recipes import TrainedModel
from work_store import clock, data, local, migrated_work  # noqa: F401

FOXES, MUTE, EMPTY = (f"sha256:{letter * 64}" for letter in "abc")
LAYERS = ("mid.attn.to_q", "mid.attn.to_k", "mid.attn.to_v", "mid.attn.to_out.0", "mid.ff.net.2")
MODEL = TrainedModel(
    name="stand-in",
    edge=64,
    bucket_px=8,
    device="cpu",
    small=True,
    unet_parameters=1_000_000,
    linear_layers=dict.fromkeys(LAYERS, (32, 32)),
    memory_bytes=2**28,
)


def dataset(id, *captions):
    pictures = [
        DatasetPicture(file=f"{place}.png", digest=id, width=64, height=64, caption=caption)
        for place, caption in enumerate(captions)
    ]
    return Dataset(
        id=id, name="", pictures=pictures, size_bytes=1, created_at=datetime(2024, 1, 1, tzinfo=UTC)
    )


class Site:
    """The app over a table, and clients of it."""

    def __init__(self, table):
        self.table, self.metrics, self.woken, self.loading = table, Metrics(), 0, False
        self.datasets = {
            FOXES: dataset(FOXES, "a photo of sks fox", "sks fox in the snow"),
            MUTE: dataset(MUTE, "a photo of sks fox", ""),
            EMPTY: dataset(EMPTY),
        }
        self.connect = lambda: self.table
        self.jobs = TrainJobs(
            lambda: self.connect(),
            model=self.model,
            dataset=self.dataset,
            synthesized=self.synthesized,
            wake=self.wake,
            metrics=self.metrics,
            poll_seconds=0.005,
        )
        self.app = create_app(lambda: SimpleNamespace(train_jobs=self.jobs))
        self.guard()

    def model(self):
        if self.loading:
            raise ModelLoading(retry_after_seconds=5)
        return MODEL

    def dataset(self, id):
        if id not in self.datasets:
            raise DatasetNotFound(id)
        return self.datasets[id]

    def synthesized(self, request):
        if request.prompts is not None:
            raise InvalidOption("too many pictures", pointer="/prompts")
        return 78

    def wake(self):
        self.woken += 1

    def guard(self, *keys):
        self.edge = Edge(self.app, keys=KeyRing(keys), metrics=self.metrics, max_body_bytes=1 << 20)

    @property
    def http(self):
        return TestClient(self.edge, base_url=URL)

    def sync(self, api_key=None):
        return Darkroom(http_client=self.http, api_key=api_key, max_retries=0).train

    def awaited(self, api_key=None):
        return Awaited("train", self.edge, api_key)

    def metric(self, state):
        return self.metrics.registry.get_sample_value("darkroom_train_jobs_total", {"state": state}) or 0

    def work(self, job_id, *, problem=None):
        """What a trainer does, in a thread."""

        def train():
            claim = self.table.claim(job_id, holder="test", lease_seconds=60)
            claim.stage("training")
            claim.progress(step=100, loss=0.25, learning_rate=1e-4, steps_per_second=2.0, eta_seconds=10.0)
            claim.put("samples/000100-0.png", b"\x89PNG of a fox", "image/png", step=100)
            if problem is None:
                claim.put("card.json", b"{}", "application/json", step=100)
                claim.succeeded("fox@1", FOXES)
            else:
                claim.failed(problem)

        threading.Thread(target=train).start()


@pytest.fixture
def site(local):  # noqa: F811
    site = Site(local)
    yield site
    site.jobs.close()


@pytest.fixture(params=["sync", "awaited"])
def enter(request, site):
    """Makes a client of this kind, as the site is then."""
    return lambda **more: getattr(site, request.param)(**more)


@pytest.fixture
def train(enter):
    return enter()


def test_a_job_is_begun_heard_of_and_its_files_are_fetched(site, train, tmp_path):
    job = train.subject("fox", FOXES, recipe={"rank": 4}, tags=["fox"])
    assert (job.state, job.stage, job.dataset, site.woken) == ("queued", "waiting", FOXES, 1)
    assert job.request.recipe.model_copy(update={"rank": None}) != TrainRecipe(), "defaults are filled in"
    assert job.max_train_steps == job.request.recipe.max_train_steps > 0
    told = []
    site.work(job.id)
    done = train.wait(job, progress=told.append)
    assert (done.state, done.lora, done.step, done.loss) == ("succeeded", "fox@1", 100, 0.25)
    assert [event.id for event in told] == list(range(1, len(told) + 1))
    assert [event.state for event in told if event.type == "state"] == ["queued", "running", "succeeded"]
    assert [event.artifact for event in told if event.type == "artifact"] == [
        "samples/000100-0.png",
        "card.json",
    ]
    (progress,) = (event for event in told if event.type == "progress")
    assert (progress.step, progress.steps_per_second, progress.eta_seconds) == (100, 2.0, 10.0)
    assert list(train.events(job, after=told[2].id)) == told[3:]
    assert list(train.artifacts(job)) == done.artifacts
    assert train.artifact(job, "samples/000100-0.png") == b"\x89PNG of a fox"
    assert train.download(job, "card.json", tmp_path).read_bytes() == b"{}"
    assert train.get(job.id) == train.cancel(job) == done
    assert site.metric("queued") == 1


def test_a_job_that_fails_says_why(site, train):
    problem = Problem(
        title="Diverged", status=422, detail="the loss is not a number", code="training_diverged"
    )
    job = train.negative("wrong")
    site.work(job.id, problem=problem)
    with pytest.raises(TrainFailed, match="the loss is not a number") as failed:
        train.wait(job)
    assert (failed.value.problem, failed.value.job.step) == (problem, 100)
    assert train.retry(job).state == "queued"
    assert (site.woken, site.metric("queued")) == (2, 2)


def test_a_job_that_waits_is_cancelled_at_once_and_may_be_taken_up_again(site, train):
    job = train.negative("wrong")
    with pytest.raises(Conflict) as refused:
        train.retry(job)
    assert refused.value.code == "job_not_retryable"
    assert [train.cancel(job).state for _ in range(2)] == ["cancelled", "cancelled"]
    assert site.metric("cancelled") == 1
    with pytest.raises(TrainFailed, match="was cancelled at step 0"):
        train.wait(job)
    assert train.retry(job.id).state == "queued"
    assert [one.id for one in train.list(state="queued")] == [job.id]
    assert list(train.list(state="cancelled")) == []


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"recipe": {"targets": ["to_z"]}}, "/recipe/targets/0"),
        ({"recipe": {"rank": 512}}, "/recipe/rank"),
        (
            {"recipe": {"optimizer": "prodigy", "learning_rate": 1, "text_encoder_learning_rate": 0.1}},
            "/recipe/text_encoder_learning_rate",
        ),
        ({"dataset": MUTE}, "/instance_prompt"),
        ({"dataset": EMPTY}, "/dataset"),
        ({"kind": "embedding", "token": "<cat>"}, "/token"),
        ({"kind": "negative", "dataset": None, "synthesis": {"prompts": ["a"]}}, "/synthesis/prompts"),
    ],
)
def test_what_cannot_work_is_refused_before_there_is_a_job(site, train, changes, pointer):
    request = TrainRequest.model_validate({"kind": "subject", "name": "fox", "dataset": FOXES} | changes)
    for ask in (train.create, train.estimate):
        with pytest.raises(InvalidRequest) as refused:
            ask(request)
        assert refused.value.code == "invalid_option"
        assert [fault.pointer for fault in refused.value.errors] == [pointer]
    assert (list(train.list()), site.woken) == ([], 0)


def test_a_prompt_stands_in_for_captions_that_are_missing(train):
    assert train.subject("fox", MUTE, instance_prompt="a photo of sks fox").state == "queued"
    assert train.embedding("fox", MUTE, token="<fox>").request.instance_prompt == "a photo of <fox>"
    assert train.pivotal("fox", FOXES, token="sks").state == "queued"


def test_a_dataset_that_is_not_there_is_not_found(train):
    with pytest.raises(NotFound) as refused:
        train.subject("fox", "sha256:" + "f" * 64)
    assert refused.value.code == "dataset_not_found"


def test_a_training_that_does_not_fit_is_refused_with_advice_and_estimated_without_a_fuss(train):
    large = TrainRecipe(train_batch_size=64, gradient_checkpointing=False, resolution=2048)
    request = TrainRequest(kind="subject", name="fox", dataset=FOXES, recipe=large)
    needed = train.estimate(request)
    assert (needed.fits, needed.pictures, needed.memory_available_bytes) == (False, 2, 2**28)
    with pytest.raises(InvalidRequest, match="set `gradient_checkpointing`") as refused:
        train.create(request)
    assert refused.value.code == "training_too_large"
    assert list(train.list()) == []
    small = train.estimate(TrainRequest(kind="negative", name="wrong"))
    assert (small.fits, small.pictures, small.advice) == (True, 78, [])


def test_a_model_that_loads_says_when_to_come_back(site, train):
    site.loading = True
    with pytest.raises(Unavailable) as refused:
        train.negative("wrong")
    assert (refused.value.code, refused.value.retry_after_seconds) == ("model_loading", 5)


def test_a_list_goes_from_the_newest_to_the_last_page(site, train):
    ids = [train.negative("wrong", synthesis=SynthesizeRequest(recipe="wrong", seed=n)).id for n in range(3)]
    site.table._clock.now += 1
    ids.append(train.negative("wrong").id)
    assert next(iter(train.list())).id == ids[-1]
    assert {job.id for job in train.list()} == set(ids)
    page = site.http.get("/v1/train-jobs?limit=3").json()
    rest = site.http.get(f"/v1/train-jobs?limit=3&cursor={page['next_cursor']}").json()
    assert {job["id"] for job in page["items"] + rest["items"]} == set(ids)
    assert site.http.get("/v1/train-jobs?cursor=nonsense").json()["code"] == "invalid_cursor"


def test_what_is_not_there_is_not_found(train, tmp_path):
    for ask in (train.get, train.cancel, train.retry, train.wait, train.artifacts):
        with pytest.raises(NotFound) as refused:
            ask("job-9")
        assert refused.value.code == "job_not_found"
    with pytest.raises(NotFound):
        list(train.events("job-9"))
    job = train.negative("wrong")
    with pytest.raises(NotFound) as refused:
        train.artifact(job, "none.png")
    assert refused.value.code == "artifact_not_found"


def keyed(name, *scopes):
    return ApiKey(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), scopes=frozenset(scopes))


def test_only_keys_with_the_scope_come_in(site, enter):
    site.guard(keyed("reader", "loras:read", "generate"), keyed("trainer", "train"), keyed("root", "admin"))
    with pytest.raises(AuthenticationFailed):
        enter().negative("wrong")
    with pytest.raises(PermissionDenied, match="train"):
        enter(api_key="reader").negative("wrong")
    job = enter(api_key="trainer").negative("wrong")
    with pytest.raises(PermissionDenied, match="train"):
        enter(api_key="reader").get(job)
    assert enter(api_key="root").cancel(job).state == "cancelled"


def test_a_request_sent_again_under_its_key_is_the_job_that_it_was(site):
    def post(key, owner="trainer", **changes):
        headers = {"Idempotency-Key": key, "Authorization": f"Bearer {owner}"}
        return site.http.post(
            "/v1/train-jobs", json={"kind": "negative", "name": "wrong"} | changes, headers=headers
        )

    site.guard(keyed("trainer", "train"), keyed("other", "train"))
    first, again = post("k"), post("k", recipe={})
    assert (first.status_code, again.status_code) == (202, 202)
    assert again.json() == first.json()
    assert again.headers["location"] == first.headers["location"] == f"/v1/train-jobs/{first.json()['id']}"
    assert ("idempotent-replayed" in first.headers, again.headers["idempotent-replayed"]) == (False, "true")
    assert (site.woken, site.metric("queued")) == (1, 1)
    assert post("k", name="other").json()["code"] == "idempotency_key_reused"
    assert post("l").json()["id"] != first.json()["id"]
    assert post("k", owner="other").json()["id"] != first.json()["id"], "everybody has keys of their own"
    assert post("x" * 129).json()["errors"][0]["pointer"] == "/header/idempotency-key"


def test_fifty_at_once_under_one_key_make_one_job(site):
    def post(_):
        answer = site.http.post(
            "/v1/train-jobs", json={"kind": "negative", "name": "wrong"}, headers={"Idempotency-Key": "k"}
        )
        return answer.json()["id"]

    async def all_at_once():
        return await asyncio.gather(*(asyncio.to_thread(post, n) for n in range(50)))

    assert len(set(asyncio.run(all_at_once()))) == 1
    assert site.metric("queued") == 1


def test_a_service_that_shuts_down_ends_streams_and_begins_nothing(site, train):
    job = train.negative("wrong")
    site.jobs.drain()
    for ask in (lambda: train.wait(job), lambda: train.negative("wrong"), lambda: train.retry(job)):
        with pytest.raises(Unavailable) as refused:
            ask()
        assert refused.value.code == "draining"
    assert train.get(job).state == "queued"


def test_readers_beyond_the_limit_are_asked_to_come_back(site, train, monkeypatch):
    job = train.negative("wrong")
    train.cancel(job)
    monkeypatch.setattr("service.following.MAX_READERS", 1)
    for _ in range(3):
        assert list(train.events(job)), "a reader who has left makes room"
    monkeypatch.setattr("service.following.MAX_READERS", 0)
    with pytest.raises(Unavailable) as refused:
        list(train.events(job))
    assert refused.value.code == "too_many_readers"


def test_a_database_that_is_away_says_when_to_come_back_and_comes_back(site, train):
    def away():
        raise CatalogUnavailable("the database does not answer as it should; try again later")

    site.connect = away
    with pytest.raises(Unavailable) as refused:
        train.negative("wrong")
    assert refused.value.retry_after_seconds == 10
    site.connect = lambda: site.table
    assert train.negative("wrong").state == "queued"


def test_a_file_says_what_it_is_and_is_never_guessed_at(site):
    job = site.sync().negative("wrong")
    site.work(job.id)
    site.sync().wait(job)
    answer = site.http.get(f"/v1/train-jobs/{job.id}/artifacts/samples/000100-0.png")
    (sample,) = (one for one in site.table.get(job.id).artifacts if one.media_type == "image/png")
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["etag"] == f'"{sample.digest}"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["content-length"] == str(sample.size_bytes)


def test_events_are_a_list_for_those_who_want_json(site):
    job = site.sync().negative("wrong")
    events = f"/v1/train-jobs/{job.id}/events"
    (queued,) = site.http.get(events, headers={"Accept": "application/json"}).json()
    assert (queued["id"], queued["type"], queued["state"]) == (1, "state", "queued")
    assert site.http.get(f"{events}?after=1", headers={"Accept": "application/json"}).json() == []
    assert site.http.get(events, headers={"Accept": "image/png"}).json()["code"] == "not_acceptable"
    assert site.http.get("/v1/train-jobs/job-9/events").json()["code"] == "job_not_found"
