"""The registry in real processes: what survives a crash, what replicas share, and how they meet a stop, a full disk
and a database that is away."""

import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import httpx
import pytest

import servers
from darkroom import APIError, Conflict, ConnectionFailed, Darkroom, Generation, NotFound, Unavailable
from darkroom.types import LoraVersion
from in_process import pixels
from lora_files import lora_file
from lora_registry import Registry, faults
from processes import ROOT, STOP_SECONDS, Served, environment, serving, until, wait_until_ready
from unit.lora_registry import invariants
from unit.lora_registry.makers import peft, pocket, safetensors

pytestmark = pytest.mark.e2e

PATIENCE_SECONDS = 60
ORDER: dict[str, Any] = {"prompt": "a red circle on a blue background", "seed": 7, "num_inference_steps": 4}


@cache
def large_file(seed: int) -> bytes:
    """A LoRA of some megabytes, which is on its way for a while; another for each seed."""
    return safetensors(peft(dict(pocket().layers["unet"]), rank=32), {"seed": str(seed)})


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def client_of(served: Served) -> Darkroom:
    return Darkroom(served.url, max_retries=0, timeout=PATIENCE_SECONDS)


def picture(client: Darkroom, *refs: str) -> Generation:
    return client.generate(**ORDER, loras=list(refs))


def parts(data: Path) -> list[Path]:
    """The temporary files of uploads that the service has begun to write."""
    return [path for path in (data / "blobs" / "incoming").glob("*.part") if path.stat().st_size]


class Upload:
    """A publish by the real client, in a thread of its own. It stands still half-way until it is told to go on."""

    def __init__(self, served: Served, name: str, data: bytes) -> None:
        self._half, self._go_on = threading.Event(), threading.Event()
        thread = ThreadPoolExecutor(1)
        self._future: Future[LoraVersion] = thread.submit(self._publish, served, name, data)
        thread.shutdown(wait=False)
        assert self._half.wait(PATIENCE_SECONDS)

    def _publish(self, served: Served, name: str, data: bytes) -> LoraVersion:
        with client_of(served) as client:
            return client.loras.publish(name, io.BytesIO(data), progress=self._told)

    def _told(self, sent_bytes: int, size_bytes: int) -> None:
        if sent_bytes >= size_bytes // 2 and not self._half.is_set():
            self._half.set()
            assert self._go_on.wait(PATIENCE_SECONDS)

    def go_on(self) -> None:
        self._go_on.set()

    def result(self) -> LoraVersion:
        """The version. Raises what the client raised."""
        return self._future.result(PATIENCE_SECONDS)


def both(work: Callable[[int], Any]) -> list[Any]:
    """What `work(0)` and `work(1)` give or raise, begun at the same moment."""
    start = threading.Barrier(2)

    def begin(place: int) -> Any:
        start.wait(PATIENCE_SECONDS)
        try:
            return work(place)
        except APIError as exc:
            return exc

    with ThreadPoolExecutor(2) as threads:
        return list(threads.map(begin, range(2)))


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on a disk of its own, which a test can fill, where this machine lets us make one; else a plain one."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(mount, capture_output=True).returncode == 0
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Write until the disk is full."""
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(bytes(4096)):
            pass


@dataclass
class Restarted:
    """A service that was started again on the folder of one that was killed, and what there was before."""

    served: Served
    client: Darkroom
    data: Path
    published: LoraVersion
    pictured: Generation
    acknowledged_last: LoraVersion
    interrupted: bytes
    left_over: list[Path]


@pytest.fixture(scope="module")
def restarted(tmp_path_factory: pytest.TempPathFactory, disk: Path) -> Iterator[Restarted]:
    """Killed with an upload half-way, at the moment at which another publish had been acknowledged."""
    data, half_sent = disk / "data", large_file(1)
    with serving(tmp_path_factory.mktemp("killed"), data=str(data)) as killed, client_of(killed) as client:
        wait_until_ready(killed)
        published = client.loras.publish("ink", io.BytesIO(large_file(0)), alias="prod")
        pictured = picture(client, "ink:prod")
        upload = Upload(killed, "wash", half_sent)
        until(lambda: parts(data), 30, "the half of the upload")
        last = client.loras.publish("last", io.BytesIO(lora_file(1)))
        killed.kill()
        upload.go_on()
        with pytest.raises(ConnectionFailed):
            upload.result()
    left_over = parts(data)
    with serving(tmp_path_factory.mktemp("again"), data=str(data)) as served, client_of(served) as client:
        wait_until_ready(served)
        yield Restarted(served, client, data, published, pictured, last, half_sent, left_over)


def test_a_restart_keeps_versions_aliases_and_pictures(restarted):
    assert restarted.client.loras.version("ink:prod") == restarted.published
    again = picture(restarted.client, "ink:prod")
    assert (pixels(again.image.data) == pixels(restarted.pictured.image.data)).all()
    assert again.image.receipt.loras == restarted.pictured.image.receipt.loras
    assert abs(pixels(again.image.data) - pixels(picture(restarted.client).image.data)).mean() > 2


def test_what_was_acknowledged_before_a_kill_is_there_byte_for_byte(restarted, tmp_path):
    last, loras = restarted.acknowledged_last, restarted.client.loras
    assert loras.version("last") == last
    assert digest_of(loras.download("last", tmp_path / "last").read_bytes()) == last.digest
    again = loras.publish("last", io.BytesIO(lora_file(1)))
    assert (again.existing, again.ref) == (True, "last@1")


def test_a_kill_during_an_upload_leaves_nothing_half_visible_and_nothing_that_stays(restarted):
    loras = restarted.client.loras
    assert len(restarted.left_over) == 1, "it was killed at some other moment"
    with pytest.raises(NotFound):
        loras.get("wash")
    with pytest.raises(NotFound):
        loras.version(digest_of(restarted.interrupted))
    retried = loras.publish("wash", io.BytesIO(restarted.interrupted))
    assert (retried.ref, retried.existing) == ("wash@1", False)
    assert [version.version for version in loras.versions("wash")] == [1]
    acknowledged = {
        version.ref: version.digest for version in (restarted.published, restarted.acknowledged_last, retried)
    }
    with Registry.connect([pocket()], data=restarted.data) as registry:
        invariants.check(registry, acknowledged, restarted.data / "blobs" / "incoming")
    loras.delete("wash", 1)


def test_a_full_disk_refuses_uploads_and_nothing_else_until_there_is_room(restarted, disk):
    if not disk.is_mount():
        pytest.skip("this machine does not let the tests mount a small disk")
    loras = restarted.client.loras
    filler = disk / "filler"
    loras.publish("unused", io.BytesIO(large_file(2)))
    fill(filler)
    try:
        with pytest.raises(APIError) as caught:
            loras.publish("more", io.BytesIO(large_file(3)))
        assert (caught.value.status, caught.value.code) == (507, "storage_full")
        assert parts(restarted.data) == []
        assert picture(restarted.client).images
        assert picture(restarted.client, "unused").loras[0].tier == "disk"
        assert restarted.served.http.get("/readyz").status_code == 200
    finally:
        filler.unlink()
    assert loras.publish("more", io.BytesIO(large_file(3))).ref == "more@1"


@pytest.mark.slow
def test_sigterm_lets_an_upload_finish_and_answers_one_that_does_not(tmp_path):
    data = tmp_path / "data"
    with serving(tmp_path, data=str(data), drain_seconds="4") as served:
        wait_until_ready(served)
        lively, stuck = (Upload(served, f"ink-{seed}", large_file(seed)) for seed in range(2))
        until(lambda: len(parts(data)) == 2, 30, "the halves of the uploads")
        served.process.send_signal(signal.SIGTERM)
        until(lambda: served.http.get("/readyz").status_code == 503, 10, "draining")
        lively.go_on()
        assert lively.result().digest == digest_of(large_file(0))
        until(lambda: len(parts(data)) == 0, 30, "the end of the patience")
        stuck.go_on()
        with pytest.raises(Unavailable) as caught:
            stuck.result()
        assert caught.value.code == "shutdown"
        assert served.process.wait(STOP_SECONDS) == 0
        assert "Traceback" not in served.log.read_text()
    with Registry.connect([pocket()], data=data) as registry:
        invariants.check(registry, {"ink-0@1": digest_of(large_file(0))}, data / "blobs" / "incoming")


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [["-m", "service", "serve"], ["-m", "bentoml", "serve", "service.bento:Darkroom", "--host", "127.0.0.1"]],
    ids=["ours", "bentoml"],
)
def test_a_service_whose_faults_are_armed_does_not_start_and_says_why(command):
    armed = environment() | {faults.VARIABLE: "publish.after_blob=kill"}
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=armed, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert f"darkroom: {faults.VARIABLE} is set" in done.stderr
    assert "Traceback" not in done.stderr


@dataclass
class Replicas:
    """Two services on one PostgreSQL and one bucket, and what the first said before the PostgreSQL was up."""

    database: servers.Postgres
    served: list[Served]
    clients: list[Darkroom]
    too_early: dict[str, httpx.Response]


@pytest.fixture(scope="module")
def replicas(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Replicas]:
    """Both were started while there was no database yet, and go on as they are."""
    with ExitStack() as stack:
        database = stack.enter_context(servers.postgres())
        bucket = stack.enter_context(servers.s3())
        folders = [tmp_path_factory.mktemp(name) for name in ("one", "other")]
        served = [
            stack.enter_context(
                serving(
                    folder,
                    data=str(folder / "data"),
                    database=database.url("postgres"),
                    blobs=f"{bucket}/shared",
                )
            )
            for folder in folders
        ]
        for one in served:
            wait_until_ready(one)
        http = served[0].http
        file = {"Content-Type": "application/octet-stream"}
        too_early = {
            "list": http.get("/v1/loras"),
            "publish": http.post("/v1/loras/ink/versions", content=lora_file(), headers=file),
            "use": http.post("/v1/generate", json=ORDER | {"loras": [{"ref": "ink"}]}),
            "picture": http.post("/v1/generate", json=ORDER),
            "ready": http.get("/readyz"),
        }
        database.start()
        clients = [stack.enter_context(client_of(one)) for one in served]
        yield Replicas(database, served, clients, too_early)


@pytest.mark.slow
def test_a_database_that_is_down_at_the_start_stops_no_picture_and_is_met_again(replicas):
    for asked in ("list", "publish", "use"):
        answer = replicas.too_early[asked]
        assert (answer.status_code, answer.json()["code"]) == (503, "catalog_unavailable"), asked
        assert int(answer.headers["retry-after"]) > 0
        assert answer.json()["request_id"]
    assert [replicas.too_early[asked].status_code for asked in ("picture", "ready")] == [200, 200]
    assert [one.http.get("/v1/loras").status_code for one in replicas.served] == [200, 200]


@pytest.mark.slow
def test_what_one_replica_publishes_the_other_draws_with(replicas):
    one, other = replicas.clients
    published = one.loras.publish("shared", io.BytesIO(large_file(0)), alias="prod")
    drawn = [picture(client, "shared:prod") for client in (one, other, other)]
    assert [answer.loras[0].tier for answer in drawn] == ["store", "store", "host"]
    assert {answer.loras[0].digest for answer in drawn} == {published.digest}
    first, *others = (pixels(answer.image.data) for answer in drawn)
    assert all((first == again).all() for again in others)
    second = other.loras.publish("shared", io.BytesIO(lora_file(2)), alias="prod")
    assert one.loras.version("shared:prod") == second


@pytest.mark.slow
def test_of_two_replicas_that_publish_one_number_one_wins_and_the_other_hears_of_it(replicas):
    files = [lora_file(seed) for seed in (11, 12)]
    results = both(
        lambda place: replicas.clients[place].loras.publish("race", io.BytesIO(files[place]), version=3)
    )
    (won,) = (result for result in results if isinstance(result, LoraVersion))
    (lost,) = (result for result in results if isinstance(result, Conflict))
    assert (lost.status, lost.code) == (409, "version_exists")
    assert won.digest in lost.problem.detail
    assert [client.loras.version("race@3").digest for client in replicas.clients] == [won.digest] * 2


@pytest.mark.slow
def test_two_replicas_that_publish_the_same_bytes_make_one_version(replicas):
    results = both(lambda place: replicas.clients[place].loras.publish("twin", io.BytesIO(lora_file(21))))
    assert [result.ref for result in results] == ["twin@1", "twin@1"]
    assert sorted(result.existing for result in results) == [False, True]


@pytest.mark.slow
def test_a_database_that_crashes_is_met_again_without_a_restart(replicas):
    for client in replicas.clients:
        client.loras.publish("kept", io.BytesIO(lora_file(31)))
    replicas.database.stop()
    try:
        for client in replicas.clients:
            with pytest.raises(Unavailable) as caught:
                client.loras.version("kept")
            assert caught.value.code == "catalog_unavailable"
            assert picture(client).images
    finally:
        replicas.database.start()
    for client in replicas.clients:
        assert client.loras.publish("kept", io.BytesIO(lora_file(31))).existing
