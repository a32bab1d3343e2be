"""`python -m service serve` as a process: what callers, probes and operators see of it."""

import base64
import hashlib
import io
import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import bentoml
import httpx
import pytest
from PIL import Image

from processes import ROOT, STOP_SECONDS, Served, environment, serving, until, wait_until_ready

pytestmark = pytest.mark.e2e

SECRET = "dk_for_this_test_only"
KEYS = [{"name": "tester", "sha256": hashlib.sha256(SECRET.encode()).hexdigest(), "scopes": ["generate"]}]

QUICK = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 1, "width": 64, "height": 64}
SECONDS_OF_WORK = QUICK | {"num_inference_steps": 50, "num_images": 4}
MINUTES_OF_WORK = QUICK | {"num_inference_steps": 100, "num_images": 8, "width": 256, "height": 256}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("served")) as running:
        assert wait_until_ready(running) <= {"model_loading"}
        yield running


def test_a_picture_comes_as_json_and_as_bytes(served):
    reply = served.http.post("/v1/generate", json=QUICK)
    assert reply.status_code == 200, reply.text
    (image,) = reply.json()["images"]
    assert Image.open(io.BytesIO(base64.b64decode(image["b64"]))).size == (64, 64)

    reply = served.http.post("/v1/generate", json=QUICK, headers={"Accept": "image/webp"})
    assert reply.headers["content-type"] == "image/webp"
    assert reply.headers["x-darkroom-seed"] == "1"
    assert Image.open(io.BytesIO(reply.content)).format == "WEBP"


def test_the_native_door_gives_the_same_picture(served):
    rest, native = (served.http.post(path, json=QUICK) for path in ("/v1/generate", "/generate"))
    assert native.status_code == 200, native.text
    assert native.json()["images"] == rest.json()["images"]


def test_bentomls_own_client_works(served):
    with bentoml.SyncHTTPClient(served.url) as client:
        assert client.generate(QUICK)["images"][0]["seed"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ('{"prompt": "a", "guidence_scale": 3}', 422, "invalid_request"),
        ('{"prompt": "a", "width": 100}', 422, "invalid_request"),
        ('{"prompt": "a", "num_inference_steps": 0}', 422, "invalid_request"),
        ('{"prompt": "a", "refiner": {"denoising_end": 2}}', 422, "invalid_request"),
        ('{"prompt": "a", "scheduler": "plms"}', 422, "invalid_request"),
        ('{"prompt": "a", "guidance_scale": NaN}', 422, "invalid_request"),
        (json.dumps({"prompt": "a" * 10_000}), 422, "invalid_request"),
        ('{"prompt": "((a fox"}', 422, "invalid_prompt"),
        (json.dumps({"prompt": "(" * 500 + ")" * 500}), 422, "invalid_prompt"),
        ("[]", 422, "invalid_request"),
        ("", 422, "invalid_request"),
        ("{", 400, "malformed_json"),
        (f'{{"prompt": "a", "seed": {"9" * 5000}}}', 400, "malformed_json"),
        (" " * (1 << 20) + "{}", 413, "body_too_large"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_bad_input_gets_the_same_problem_at_both_doors(served, body, status, code):
    for path in ("/v1/generate", "/generate"):
        reply = served.http.post(path, content=body, headers={"Content-Type": "application/json"})
        assert reply.headers["content-type"] == "application/problem+json"
        problem = reply.json()
        assert (reply.status_code, problem["code"], problem["instance"]) == (status, code, path)
        assert problem["request_id"] == reply.headers["x-request-id"]
    assert served.http.get("/readyz").status_code == 200


@pytest.mark.parametrize("path", ["/v1/generate", "/generate"])
@pytest.mark.parametrize(
    "media_type", ["text/plain", "application/vnd.bentoml+pickle", "multipart/form-data", ""]
)
def test_no_door_takes_a_body_that_is_not_json(served, path, media_type):
    reply = served.http.post(path, content=b"\x80\x05N.", headers={"Content-Type": media_type})
    assert (reply.status_code, reply.json()["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("GET", "/static_content/nowhere", 404),
        ("GET", "/readyz/", 404),
        ("POST", "/generate/", 404),
        ("GET", "/static_content/../../../pyproject.toml", 404),
        ("GET", "/generate", 405),
        ("DELETE", "/readyz", 405),
        ("POST", "/v1/generate%0A", 404),
    ],
)
def test_bentomls_own_errors_are_problems_too(served, method, path, status):
    reply = served.http.request(method, path)
    assert reply.status_code == status
    assert reply.json()["status"] == status
    assert reply.headers["content-type"] == "application/problem+json"
    assert "server" not in reply.headers


def test_what_bentoml_serves_itself_carries_our_headers(served):
    for path in (
        "/",
        "/docs.json",
        "/schema.json",
        "/docs",
        "/v1/openapi.json",
        "/static_content/swagger-ui.css",
    ):
        reply = served.http.get(path)
        assert reply.status_code == 200
        assert reply.headers["x-request-id"]
        assert "default-src 'self'" in reply.headers["content-security-policy"]


def test_metrics_are_by_route_template_and_include_the_process(served):
    served.http.get("/static_content/swagger-ui.css")
    text = served.http.get("/metrics").text
    assert 'route="/static_content"' in text
    assert "swagger-ui" not in text
    assert "process_resident_memory_bytes" in text


@pytest.mark.parametrize("path", ["/v1/generate", "/generate"])
def test_a_caller_who_is_gone_frees_the_engine(served, path):
    gone = 'darkroom_cancelled_total{reason="disconnected"}'
    before = served.metric(gone)
    body = json.dumps(MINUTES_OF_WORK)
    host, port = served.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as caller:
        caller.sendall(
            f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        until(served.working, 30, "the work's beginning")
    until(lambda: not served.working(), 30, "the work's end")
    assert served.metric(gone) == before + 1
    assert served.http.post("/v1/generate", json=QUICK).status_code == 200


def test_log_lines_hold_no_prompt_and_no_raw_path(served):
    served.http.post("/v1/generate", json=QUICK | {"prompt": "(zanzibar"})
    served.http.get("/zanzibar")
    assert "zanzibar" not in served.log.read_text()


@pytest.fixture
def open_and_locked(tmp_path: Path) -> Iterator[Served]:
    """A service on every address, with a key."""
    with serving(
        tmp_path, "0.0.0.0", api_keys=json.dumps(KEYS), drain_seconds="40", log_format="json"
    ) as running:
        wait_until_ready(running)
        yield running


def test_sigterm_lets_work_in_flight_finish_and_refuses_more(open_and_locked):
    served, replies = open_and_locked, []
    assert served.http.post("/generate", json=QUICK).status_code == 401
    key = {"Authorization": f"Bearer {SECRET}"}

    def work() -> None:
        replies.append(httpx.post(f"{served.url}/v1/generate", json=SECONDS_OF_WORK, headers=key, timeout=60))

    working = threading.Thread(target=work)
    working.start()
    until(served.working, 30, "the work's beginning")
    served.process.send_signal(signal.SIGTERM)
    until(lambda: served.http.get("/readyz").status_code == 503, 10, "draining")
    refused = served.http.post("/v1/generate", json=QUICK, headers=key)
    assert (refused.status_code, refused.json()["code"]) == (503, "draining")
    assert refused.headers["retry-after"]
    assert served.http.get("/livez").status_code == 200
    working.join(60)
    assert [reply.status_code for reply in replies] == [200]
    assert served.process.wait(STOP_SECONDS) == 0
    log = served.log.read_text()
    assert "shutdown_drained" in log
    assert SECRET not in log


@pytest.mark.parametrize(
    "command",
    [
        ["-m", "service", "serve", "--host", "0.0.0.0"],
        ["-m", "bentoml", "serve", "service.bento:Darkroom", "--host", "0.0.0.0"],
        ["-m", "bentoml", "serve", "service.bento:Darkroom"],
    ],
    ids=["ours", "bentoml", "bentoml-default"],
)
def test_an_open_address_without_keys_does_not_start_and_says_why(command):
    done = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1
    assert "refusing to listen on 0.0.0.0 without API keys" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_worker_that_is_handed_an_open_socket_refuses_too():
    with socket.socket() as listening:
        listening.bind(("0.0.0.0", 0))
        listening.listen()
        descriptor = listening.fileno()
        worker = ["-m", "_bentoml_impl.worker.service", "service.bento:Darkroom", "--fd", str(descriptor)]
        done = subprocess.run(
            [sys.executable, *worker, "--worker-id", "1"],
            cwd=ROOT,
            env=environment(),
            pass_fds=[descriptor],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert "refusing to listen on 0.0.0.0 without API keys" in done.stderr
