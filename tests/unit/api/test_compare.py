"""The routes of comparisons, with a stand-in for the use case."""

import hashlib
import json
import re
import subprocess
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from chromium import CHROMIUM
from darkroom._sse import Parser
from darkroom.types import (
    CompareCell,
    CompareEvaluations,
    CompareEvent,
    CompareFile,
    ComparePlan,
    CompareRequest,
    Comparison,
    ComparisonPage,
    GenerateRequest,
)
from service.api.app import create_app
from service.api.auth import SCOPES, KeyRing
from service.api.edge import Edge
from service.compare.errors import CompareFileNotFound, ComparisonNotFound
from service.errors import CompareTooLarge, Draining, InvalidOption
from service.metrics import Metrics
from service.settings import ApiKey
from service.store.errors import KeyReused

WHEN = datetime(2024, 1, 1, tzinfo=UTC)
ORDER = {
    "prompts": ["a fox"],
    "seeds": [7],
    "arms": [{"name": "as it is"}, {"name": "stronger", "set": {"guidance_scale": 9.0}}],
}
PLAN = ComparePlan(
    arms=[],
    baseline="as it is",
    prompts=["a fox"],
    seeds=[7],
    cells=2,
    pictures=2,
    evaluations=CompareEvaluations(planned=200, naive=200),
    swaps=0,
    estimated_seconds=4.5,
    metrics=["sharpness"],
    fits=True,
)
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5E"
    "rkJggg=="
)
REPORT = f"""<!doctype html><title>report</title><style>p {{ width: 123px }}</style>
<p id="told">nothing ran</p><img id="dot" src="{DOT}">
<script>
addEventListener('load', async () => {{
  const asked = await fetch('/v1/info').then(() => 'answered', () => 'refused');
  const width = getComputedStyle(document.getElementById('told')).width;
  const dots = document.getElementById('dot').naturalWidth;
  let store = 'refused';
  try {{ localStorage.length; store = 'open' }} catch {{}}
  document.getElementById('told').textContent = `ran in ${{origin}}, ${{width}}, ${{dots}} dot, ${{asked}}, ${{store}}`;
}});
</script>"""


class Runs:
    """One comparison, `cmp_1`, and what it was asked. `error` is raised by all that begins something."""

    def __init__(self):
        self.begun, self.asked, self.closed, self.error = {}, {}, [], None
        self.stored = {
            "report.html": ("text/html", REPORT.encode()),
            "differences/1.png": ("image/png", b"heat"),
        }
        self.comparison = Comparison(
            id="cmp_1",
            state="queued",
            request=CompareRequest.model_validate(ORDER),
            plan=PLAN,
            cells=[
                CompareCell(
                    index=0, arm="as it is", prompt="a fox", seed=7, request=GenerateRequest(prompt="a fox")
                )
            ],
            created_at=WHEN,
        )

    async def plan(self, request):
        if self.error:
            raise self.error
        return PLAN

    async def create(self, request, *, key=""):
        if self.error:
            raise self.error
        replayed = key in self.begun
        self.begun.setdefault(key or len(self.begun), request)
        return self.comparison, replayed

    async def get(self, id):
        if id != "cmp_1":
            raise ComparisonNotFound(id)
        return self.comparison

    async def check(self, id):
        await self.get(id)

    async def list(self, **asked):
        self.asked = asked
        return ComparisonPage(items=[self.comparison], next_cursor="next")

    async def cancel(self, id):
        await self.get(id)
        self.comparison = self.comparison.model_copy(update={"state": "cancelled"})
        return self.comparison

    async def past_events(self, id, *, after=0):
        await self.get(id)
        return [
            CompareEvent(id=n, type="cell", at=WHEN, done=n, total=2, cell=n - 1) for n in (1, 2) if n > after
        ]

    async def events(self, id, *, after=0):
        for event in await self.past_events(id, after=after):
            yield event
        yield self.comparison

    async def image(self, id, cell):
        await self.get(id)
        if cell != 1:
            raise CompareFileNotFound(id, f"images/{cell}")
        return self._compared("images/1", "image/png", b"a picture")

    async def open(self, id, name):
        await self.get(id)
        if name not in self.stored:
            raise CompareFileNotFound(id, name)
        return self._compared(name, *self.stored[name])

    def _compared(self, name, media_type, data):
        async def pieces():
            try:
                yield data[:3]
                yield data[3:]
            finally:
                self.closed.append(name)

        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        file = CompareFile(name=name, media_type=media_type, size_bytes=len(data), digest=digest)
        return SimpleNamespace(file=file, pieces=pieces())


@pytest.fixture(scope="module")
def components():
    return SimpleNamespace(comparisons=None)


@pytest.fixture(scope="module")
def app(components):
    """The app, which takes a tenth of a second to build."""
    return create_app(lambda: components)


@pytest.fixture
def runs(components):
    components.comparisons = Runs()
    return components.comparisons


@pytest.fixture
def enter(app, runs):
    """Makes a caller of the app behind an edge that knows these keys."""
    return lambda *keys: TestClient(Edge(app, keys=KeyRing(keys), metrics=Metrics(), max_body_bytes=1 << 20))


@pytest.fixture
def http(enter):
    return enter()


def refused(answer):
    """Status, code and pointers of a problem."""
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    problem = answer.json()
    return answer.status_code, problem["code"], [fault["pointer"] for fault in problem.get("errors", ())]


def test_a_comparison_is_begun_and_says_where_it_is(http, runs):
    answer = http.post("/v1/compare", json=ORDER)
    assert (answer.status_code, answer.headers["location"]) == (202, "/v1/runs/cmp_1")
    assert "idempotent-replayed" not in answer.headers
    assert http.get(answer.headers["location"]).json() == answer.json()
    (order,) = runs.begun.values()
    assert [arm.set.model_fields_set for arm in order.arms] == [set(), {"guidance_scale"}]


def test_what_is_answered_is_what_the_clients_classes_read(http, runs):
    begun = http.post("/v1/compare", json=ORDER)
    assert Comparison.model_validate_json(begun.text) == runs.comparison
    assert Comparison.model_validate_json(http.get("/v1/runs/cmp_1").text) == runs.comparison
    assert ComparisonPage.model_validate_json(http.get("/v1/runs").text).items == [runs.comparison]
    done = Parser().feed(http.get("/v1/runs/cmp_1/events").content)[-1]
    assert Comparison.model_validate_json(done.data) == runs.comparison


def test_the_order_that_a_comparison_tells_can_be_sent_again(http, runs):
    told = http.get("/v1/runs/cmp_1").json()["request"]
    assert http.post("/v1/compare", json=told).status_code == 202
    (order,) = runs.begun.values()
    assert [arm.set.model_fields_set for arm in order.arms] == [set(), {"guidance_scale"}]


def test_a_dry_run_answers_the_plan_and_begins_nothing(http, runs):
    answer = http.post("/v1/compare", json=ORDER | {"dry_run": True}, headers={"Idempotency-Key": "k"})
    assert (answer.status_code, ComparePlan.model_validate_json(answer.text)) == (200, PLAN)
    assert runs.begun == {}


def test_a_request_sent_again_under_its_key_is_the_comparison_that_it_was(enter, runs):
    def keyed(name):
        return ApiKey(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), scopes={"generate"})

    def post(key, owner):
        headers = {"Idempotency-Key": key, "Authorization": f"Bearer {owner}"}
        return http.post("/v1/compare", json=ORDER, headers=headers)

    http = enter(keyed("ann"), keyed("bob"))
    replayed = [
        post(*sent).headers.get("idempotent-replayed") for sent in (("k", "ann"), ("k", "ann"), ("k", "bob"))
    ]
    assert replayed == [None, "true", None], "everybody has keys of their own"
    assert list(runs.begun) == ["ann/k", "bob/k"]
    assert refused(post("x" * 129, "ann")) == (422, "invalid_request", ["/header/idempotency-key"])


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        (
            {"arms": [{"name": "a"}, {"name": "b", "set": {"guidance_scale": 99}}]},
            "/arms/1/set/guidance_scale",
        ),
        ({"arms": [{"name": "a"}, {"name": "b", "set": {"guidance_scal": 9}}]}, "/arms/1/set/guidance_scal"),
        ({"arms": [{"name": "a"}, {"name": "b", "set": {"seed": 1}}]}, "/arms/1/set/seed"),
        ({"arms": [{"name": "a", "set": {"refiner": {"strength": 1}}}]}, "/arms/0/set/refiner/strength"),
        (
            {"arms": [{"name": "a", "set": {"loras": [{"ref": "ink", "wait": 1}]}}]},
            "/arms/0/set/loras/0/wait",
        ),
        ({"base": {"width": 100}}, "/base/width"),
        ({"prompts": []}, "/prompts"),
        ({"prompts": ["a", ""]}, "/prompts/1"),
        ({"axes": {"guidance_scale": []}}, "/axes/guidance_scale"),
        ({"metric": "beauty"}, "/metric"),
        ({"arms": []}, ""),
    ],
)
def test_what_is_wrong_with_an_order_is_pointed_at(http, runs, changes, pointer):
    assert refused(http.post("/v1/compare", json=ORDER | changes)) == (422, "invalid_request", [pointer])
    assert runs.begun == {}


def test_a_field_that_an_arm_cannot_have_comes_with_the_one_that_was_meant(http):
    arms = [{"name": "a"}, {"name": "b", "set": {"guidance_scal": 9}}]
    (fault,) = http.post("/v1/compare", json=ORDER | {"arms": arms}).json()["errors"]
    assert fault["message"] == "no such field; did you mean 'guidance_scale'?"


@pytest.mark.parametrize("seeds", [[], {"count": 0}, [-1], "many"])
def test_seeds_that_cannot_be_are_refused(http, runs, seeds):
    status, code, pointers = refused(http.post("/v1/compare", json=ORDER | {"seeds": seeds}))
    assert (status, code, runs.begun) == (422, "invalid_request", {})
    assert all(pointer.startswith("/seeds") for pointer in pointers)


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            InvalidOption("no such scheduler here", pointer="/axes/scheduler/2"),
            (422, "invalid_option", ["/axes/scheduler/2"]),
        ),
        (
            CompareTooLarge("900 cells, about 5 h of the device; 2 h are allowed"),
            (422, "compare_too_large", []),
        ),
        (KeyReused("k"), (422, "idempotency_key_reused", [])),
        (Draining(), (503, "draining", [])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_the_service_refuses_has_a_code(http, runs, error, expected, dry_run):
    runs.error = error
    answer = http.post("/v1/compare", json=ORDER | {"dry_run": dry_run})
    assert refused(answer) == expected
    assert answer.json()["detail"] == str(error)


def test_a_list_goes_by_state_and_page(http, runs):
    assert http.get("/v1/runs").json()["next_cursor"] == "next"
    assert runs.asked == {"state": None, "limit": 50, "cursor": ""}
    http.get("/v1/runs?state=failed&limit=2&cursor=next")
    assert runs.asked == {"state": "failed", "limit": 2, "cursor": "next"}


@pytest.mark.parametrize(
    ("asked", "pointer"),
    [
        ("?state=lost", "/query/state"),
        ("?limit=0", "/query/limit"),
        ("?limit=100000", "/query/limit"),
        (f"?cursor={'x' * 401}", "/query/cursor"),
        (f"/{'x' * 101}", "/path/id"),
        ("/cmp_1/events?after=-1", "/query/after"),
        (f"/cmp_1/events?after={2**40}", "/query/after"),
        ("/cmp_1/images/-1", "/path/cell"),
        ("/cmp_1/images/fox", "/path/cell"),
        ("/cmp_1/images/1e3", "/path/cell"),
        (f"/cmp_1/images/{2**20}", "/path/cell"),
        (f"/cmp_1/images/{'9' * 60}", "/path/cell"),
        (f"/cmp_1/files/{'x' * 201}", "/path/name"),
    ],
)
def test_what_cannot_be_asked_for_is_pointed_at(http, asked, pointer):
    assert refused(http.get(f"/v1/runs{asked}")) == (422, "invalid_request", [pointer])


@pytest.mark.parametrize("id", ["cmp_2", "狐", "%00", "x" * 100])
def test_a_comparison_that_is_not_there_is_not_found(http, id):
    for what in ("", "/events", "/images/0", "/files/sheet.png"):
        status, code, _ = refused(http.get(f"/v1/runs/{id}{what}"))
        # What cannot be printed is no path of ours at all.
        assert (status, code) == (404, "not_found" if id == "%00" else "comparison_not_found")


def test_one_that_is_not_there_cannot_be_cancelled_and_its_id_is_told(http):
    answer = http.delete("/v1/runs/cmp_2")
    assert refused(answer) == (404, "comparison_not_found", [])
    assert "'cmp_2'" in answer.json()["detail"]


@pytest.mark.parametrize(
    "path", ["images/0", "images/1048575", "files/none.png", "files/%2E%2E/%2E%2E/x", "files/"]
)
def test_a_picture_or_file_that_is_not_there_is_not_found(http, path):
    assert refused(http.get(f"/v1/runs/cmp_1/{path}")) == (404, "compare_file_not_found", [])


def test_to_cancel_twice_is_to_cancel_once(http):
    answers = [http.delete("/v1/runs/cmp_1") for _ in range(2)]
    assert [(answer.status_code, answer.json()["state"]) for answer in answers] == [(200, "cancelled")] * 2


def test_events_are_a_stream_with_the_comparison_at_its_end(http):
    answer = http.get("/v1/runs/cmp_1/events")
    assert answer.headers["content-type"].startswith("text/event-stream")
    told = [(sent.event, sent.id) for sent in Parser().feed(answer.content)]
    assert told == [("cell", "1"), ("cell", "2"), ("done", "2")]


@pytest.mark.parametrize(
    ("asked", "headers"),
    [("?after=1", {}), ("", {"Last-Event-ID": "1"}), ("?after=0", {"Last-Event-ID": "1"})],
)
def test_a_reader_who_comes_back_hears_only_what_is_new(http, asked, headers):
    events = f"/v1/runs/cmp_1/events{asked}"
    told = Parser().feed(http.get(events, headers=headers).content)
    assert [(sent.event, sent.id) for sent in told[:1]] == [("cell", "2")]
    (event,) = http.get(events, headers=headers | {"Accept": "application/json"}).json()
    assert (event["id"], event["cell"], event["done"], event["total"]) == (2, 1, 2, 2)


def test_events_come_as_json_or_as_a_stream_and_as_nothing_else(http):
    answer = http.get("/v1/runs/cmp_1/events", headers={"Accept": "image/png"})
    assert refused(answer) == (406, "not_acceptable", [])


def test_a_picture_is_named_by_its_digest_and_may_be_kept(http, runs):
    answer = http.get("/v1/runs/cmp_1/images/1")
    assert (answer.content, answer.headers["content-type"]) == (b"a picture", "image/png")
    assert answer.headers["etag"] == f'"sha256:{hashlib.sha256(b"a picture").hexdigest()}"'
    assert answer.headers["content-length"] == "9"
    assert answer.headers.get_list("cache-control") == ["private, max-age=3600"]
    assert runs.closed == ["images/1"]


def test_a_file_is_of_its_own_type_and_not_kept_as_it_may_change(http):
    answer = http.get("/v1/runs/cmp_1/files/differences/1.png")
    assert (answer.content, answer.headers["content-type"]) == (b"heat", "image/png")
    assert answer.headers.get_list("cache-control") == ["no-store"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_report_is_shown_with_one_policy_and_that_is_its_own(http):
    answer = http.get("/v1/runs/cmp_1/files/report.html")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers.get_list("content-disposition") == ["inline"]
    (policy,) = answer.headers.get_list("content-security-policy")
    rules = dict(rule.strip().partition(" ")[::2] for rule in policy.split(";"))
    assert rules["sandbox"] == "allow-scripts"
    assert (rules["default-src"], rules["img-src"]) == ("'none'", "data:")
    assert "connect-src" not in rules


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on the path to open a report in")
def test_a_report_works_in_a_browser_and_reaches_nothing_of_the_service(http, tmp_path):
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            reached.append(self.path)
            answer = http.get(self.path)
            self.send_response(answer.status_code)
            for name, value in answer.headers.multi_items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.content)

        def log_message(self, *_):
            """Say nothing."""

    reached = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = f"http://127.0.0.1:{server.server_port}/v1/runs/cmp_1/files/report.html"
        quiet = (
            "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --disable-background-networking"
        )
        command = [CHROMIUM, *quiet.split(), "--no-first-run", f"--user-data-dir={tmp_path}"]
        command += ["--virtual-time-budget=5000", "--dump-dom", page]
        dom = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        server.shutdown()
    (told,) = re.findall(r'<p id="told">(.*?)</p>', dom)
    assert told == "ran in null, 123px, 1 dot, refused, refused"
    assert set(reached) - {"/favicon.ico"} == {"/v1/runs/cmp_1/files/report.html"}


def test_every_route_of_comparisons_needs_the_scope(app):
    routes = {
        (method.upper(), path)
        for path, operations in app.openapi()["paths"].items()
        for method in operations
        if path.startswith(("/v1/compare", "/v1/runs"))
    }
    scopes = {(method, path.replace(":path", "")): scope for (method, path), scope in SCOPES.items()}
    assert len(routes) == 7
    assert {scopes[route] for route in routes} == {"generate"}


def test_a_body_that_is_not_json_is_not_read(http, runs):
    answer = http.post("/v1/compare", content="{", headers={"Content-Type": "application/json"})
    assert refused(answer)[:2] == (400, "malformed_json")
    answer = http.post("/v1/compare", content=json.dumps(ORDER), headers={"Content-Type": "text/plain"})
    assert refused(answer)[:2] == (415, "unsupported_media_type")
    assert runs.begun == {}
