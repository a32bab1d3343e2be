"""The registry's routes: what is answered, to whom, and what is never said."""

import asyncio
import hashlib
import json
from urllib.parse import urlsplit

import pytest

from lora_files import PICKLE, lora_file, registry_in_memory, sd15_file
from lora_registry import Registry
from lora_registry.database import Database
from lora_registry.errors import BlobMissing, CatalogUnavailable, StorageFull, StorageUnavailable
from service.api import uploads
from service.api.auth import SCOPES, KeyRing
from service.api.edge import Edge
from service.loras import Loras
from service.settings import ApiKey
from unit.lora_registry.makers import layers, lokr, peft, pocket, safetensors

FILE = lora_file()
DIGEST = f"sha256:{hashlib.sha256(FILE).hexdigest()}"
VERSIONS = "/v1/loras/ink/versions"
PROD = "/v1/loras/ink/aliases/prod"


@pytest.fixture
def kept():
    with registry_in_memory() as kept:
        yield kept


@pytest.fixture
def registry(kept):
    return kept[0]


@pytest.fixture
def leftovers(kept):
    """Temporary files of uploads."""
    return lambda: list(kept[1].rglob("*.part"))


@pytest.fixture
def site(service, registry, build_call):
    """The service with a registry, asked in few words."""
    service.components.loras = Loras(lambda: registry, service.components.metrics)

    def ask(method, path, body=None, **headers):
        parts = urlsplit(path)
        if body is not None and method == "POST":
            headers = {"content_type": "application/octet-stream"} | headers
        call = WithQuery(build_call(method, parts.path, body=body, **headers), parts.query)
        return asyncio.run(call.on(service.edge))

    service.say = ask
    return service


class WithQuery:
    """A call whose path has a query."""

    def __init__(self, call, query):
        self._call, self._query = call, query.encode()

    def on(self, app):
        async def with_query(scope, receive, send):
            await app({**scope, "query_string": self._query}, receive, send)

        return self._call.on(with_query)


def body(reply):
    return json.loads(reply.body)


def test_a_publish_is_created_once_and_found_again(site):
    created = site.say(
        "POST", f"{VERSIONS}?alias=prod&trigger=ink&trigger=wash&tag=art&description=Grey", FILE
    )
    assert (created.status, created.headers["location"]) == (201, f"{VERSIONS}/1")
    version = body(created)
    assert (version["ref"], version["digest"], version["triggers"]) == ("ink@1", DIGEST, ["ink", "wash"])
    again = site.say("POST", VERSIONS, FILE)
    assert (again.status, body(again)) == (200, version | {"existing": True})
    for path in (f"{VERSIONS}/1", "/v1/lora-versions/ink:prod", f"/v1/lora-versions/{DIGEST}"):
        assert body(site.say("GET", path)) == version
    assert body(site.say("GET", "/v1/loras/ink"))["latest"] == version
    assert body(site.say("GET", VERSIONS))["items"] == [version]
    assert [lora["name"] for lora in body(site.say("GET", "/v1/loras?trigger=WASH"))["items"]] == ["ink"]
    assert body(site.say("GET", "/v1/loras?tag=photo"))["items"] == []


def test_pages_follow_one_another(site):
    for seed in range(3):
        site.say("POST", f"/v1/loras/ink-{seed}/versions", lora_file(seed))
    first = body(site.say("GET", "/v1/loras?limit=2"))
    rest = body(site.say("GET", f"/v1/loras?limit=2&cursor={first['next_cursor']}"))
    assert [lora["name"] for lora in first["items"] + rest["items"]] == ["ink-0", "ink-1", "ink-2"]
    assert rest["next_cursor"] == ""


def test_a_number_that_is_taken_names_the_winner(site):
    site.say("POST", f"{VERSIONS}?version=3", FILE)
    reply = site.say("POST", f"{VERSIONS}?version=3", lora_file(1))
    assert (reply.status, reply.problem["code"]) == (409, "version_exists")
    assert DIGEST in reply.problem["detail"]


def test_a_refused_file_gives_every_reason_with_its_code(site):
    data = safetensors(peft(layers(pocket())), {"a": "b"})[:-1]
    reply = site.say("POST", VERSIONS, data)
    assert (reply.status, reply.problem["code"]) == (422, "invalid_lora")
    assert [(fault["pointer"], fault["code"]) for fault in reply.problem["errors"]] == [
        ("", "file.truncated")
    ]
    assert site.metric("lora_refusals_total", reason="file.truncated") == 1
    assert body(site.say("GET", "/v1/loras"))["items"] == []


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (PICKLE, "file.pickle"),
        (b"", "file.empty"),
        (sd15_file(), "family.sd1"),
        (b"{" * 5000, "file.foreign"),
    ],
)
def test_what_is_no_lora_for_this_model_is_refused(site, data, code):
    reply = site.say("POST", VERSIONS, data, content_length=str(len(data)))
    assert [fault["code"] for fault in reply.problem["errors"]] == [code]


def test_a_dry_run_says_what_would_happen_and_publishes_nothing(site):
    good = site.say("POST", f"{VERSIONS}?dry_run=true", FILE)
    bad = site.say("POST", f"{VERSIONS}?dry_run=true", PICKLE)
    assert (good.status, body(good)["verdict"]) == (200, "accepted")
    assert (bad.status, body(bad)["verdict"], body(bad)["reasons"][0]["code"]) == (
        200,
        "refused",
        "file.pickle",
    )
    assert site.say("GET", "/v1/loras/ink").problem["code"] == "lora_not_found"


def test_what_a_file_says_of_itself_is_not_passed_on(site):
    secret = "/home/eve/<script>hunter2</script>"
    data = lora_file(
        ss_output_name=secret, ss_tag_frequency=secret, ss_network_dim=secret, **{secret: secret}
    )
    replies = [site.say("POST", f"{VERSIONS}{query}", data) for query in ("?dry_run=true", "")]
    replies += [site.say("GET", path) for path in ("/v1/loras", "/v1/loras/ink", VERSIONS)]
    replies.append(site.say("POST", VERSIONS, data[:-1]))
    assert [reply.status for reply in replies] == [200, 201, 200, 200, 200, 422]
    assert not any(b"hunter2" in reply.body for reply in replies)


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("?version=-1", "invalid_request"),
        ("?version=1000000000", "invalid_request"),
        ("?version=latest", "invalid_request"),
        ("?alias=latest", "invalid_name"),
        ("?alias=../x", "invalid_name"),
        ("?trigger=a/b", "invalid_label"),
        ("?trigger=%00", "invalid_label"),
        ("?tag=" + "a" * 101, "invalid_label"),
        ("?description=%1b%5b31m", "invalid_label"),
        ("?dry_run=perhaps", "invalid_request"),
    ],
)
def test_arguments_that_cannot_be_are_invalid(site, query, code):
    reply = site.say("POST", VERSIONS + query, FILE)
    assert (reply.status, reply.problem["code"]) == (422, code)
    assert body(site.say("GET", "/v1/loras"))["items"] == []


@pytest.mark.parametrize("name", ["Ink", "ink wash", "..", "-ink", "a" * 65, "sha256", "ïnk", "ink\0"])
def test_a_name_that_cannot_be_is_refused(site, name):
    reply = site.say("POST", f"/v1/loras/{name}/versions", FILE)
    assert reply.problem["code"] == ("not_found" if "\0" in name else "invalid_name")
    assert site.say("GET", f"/v1/loras/{name}").status == 404


@pytest.mark.parametrize("query", ["?limit=0", "?limit=201", "?cursor=x", "?cursor=" + "a" * 401])
def test_pages_that_cannot_be_are_invalid(site, query):
    assert site.say("GET", f"/v1/loras{query}").status == 422


def test_an_announced_digest_is_checked(site):
    good = site.say("POST", VERSIONS, FILE, x_darkroom_digest=DIGEST)
    wrong = site.say("POST", VERSIONS, lora_file(1), x_darkroom_digest=DIGEST)
    garbled = site.say("POST", VERSIONS, lora_file(1), x_darkroom_digest="md5:1")
    assert good.status == 201
    assert (wrong.status, wrong.problem["code"]) == (422, "digest_mismatch")
    assert (garbled.status, garbled.problem["code"]) == (422, "invalid_request")


def test_a_file_comes_back_as_it_was_and_in_other_forms(site):
    site.say("POST", VERSIONS, FILE)
    original = site.say("GET", f"{VERSIONS}/1/file")
    assert original.body == FILE
    assert original.headers["etag"] == f'"{DIGEST}"'
    assert original.headers["content-length"] == str(len(FILE))
    assert original.headers["content-disposition"] == 'attachment; filename="ink-1.safetensors"'
    kohya = site.say("GET", f"{VERSIONS}/1/file?form=kohya")
    assert (kohya.status, b"lora_down.weight" in kohya.body) == (200, True)
    assert kohya.headers["content-length"] == str(len(kohya.body))
    assert kohya.headers["etag"] != original.headers["etag"]
    assert site.say("GET", f"{VERSIONS}/1/file?form=ckpt").problem["code"] == "invalid_request"


def test_a_form_that_cannot_hold_the_lora_is_refused(site):
    site.say("POST", VERSIONS, safetensors(lokr(pocket(), layers(pocket(), count=1))))
    assert site.say("GET", f"{VERSIONS}/1/file?form=diffusers").problem["code"] == "not_exportable"


def test_an_alias_is_moved_by_those_who_saw_where_it_was(site):
    for seed in range(2):
        site.say("POST", VERSIONS, lora_file(seed))
    made = site.say("PUT", PROD, '{"version": 1}', if_none_match="*")
    assert (made.status, body(made)["ref"], body(made)["version"]) == (200, "ink:prod", 1)
    assert site.say("GET", PROD).headers["etag"] == made.headers["etag"]
    twice = site.say("PUT", PROD, '{"version": 2}', if_none_match="*")
    assert (twice.status, twice.problem["code"]) == (412, "alias_conflict")
    assert twice.headers["etag"] == made.headers["etag"]
    moved = site.say("PUT", PROD, '{"version": 2}', if_match=made.headers["etag"])
    assert body(moved)["version"] == 2
    assert site.say("DELETE", PROD, if_match=made.headers["etag"]).status == 412
    assert site.say("DELETE", f"{VERSIONS}/2").problem["code"] == "version_in_use"
    assert site.say("DELETE", PROD, if_match=moved.headers["etag"]).status == 204
    assert site.say("PUT", PROD, '{"version": 2}', if_match="*").status == 412
    deleted = site.say("DELETE", f"{VERSIONS}/2")
    assert (deleted.status, deleted.body) == (204, b"")
    assert site.say("PUT", PROD, '{"version": 2}').problem["code"] == "lora_not_found"


@pytest.mark.parametrize(
    "conditions",
    [
        {"if_match": "3"},
        {"if_match": 'W/"3"'},
        {"if_match": '"1", "2"'},
        {"if_match": ""},
        {"if_none_match": '"3"'},
        {"if_match": "*", "if_none_match": "*"},
    ],
    ids=str,
)
def test_a_condition_that_cannot_be_decided_is_not_taken_for_none(site, conditions):
    site.say("POST", VERSIONS, FILE)
    reply = site.say("PUT", PROD, '{"version": 1}', **conditions)
    assert (reply.status, reply.problem["code"]) == (400, "invalid_condition")
    assert site.say("GET", PROD).status == 404


@pytest.mark.parametrize(
    "move", ["{}", '{"version": 0}', '{"version": 1, "to": 2}', "[]", '{"version": "x"}']
)
def test_a_move_that_cannot_be_is_invalid(site, move):
    site.say("POST", VERSIONS, FILE)
    assert site.say("PUT", PROD, move).problem["code"] == "invalid_request"
    assert site.say("PUT", "/v1/loras/ink/aliases/latest", '{"version": 1}').problem["code"] == "invalid_name"


@pytest.mark.parametrize(
    "path",
    [
        "/v1/loras/no",
        "/v1/loras/no/versions",
        "/v1/loras/no/versions/1",
        "/v1/loras/no/versions/1/file",
        "/v1/loras/no/aliases/prod",
        "/v1/lora-versions/no:prod",
        "/v1/lora-versions/sha256:" + "0" * 64,
    ],
)
def test_what_is_not_there_is_not_found(site, path):
    assert site.say("GET", path).problem["code"] == "lora_not_found"


def test_a_reference_that_is_none_is_invalid(site):
    assert site.say("GET", "/v1/lora-versions/a@b@c").problem["code"] == "invalid_ref"


# What goes wrong behind the routes


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        (CatalogUnavailable("away"), 503, "catalog_unavailable"),
        (StorageUnavailable("away"), 503, "storage_unavailable"),
        (BlobMissing(DIGEST), 503, "blob_missing"),
        (StorageFull(), 507, "storage_full"),
    ],
)
def test_a_failure_behind_the_registry_is_told(site, registry, monkeypatch, error, status, code):
    def fail(*_arguments, **_more):
        raise error

    for method in ("publish", "export"):
        monkeypatch.setattr(registry, method, fail)
    replies = [site.say("POST", VERSIONS, FILE)]
    monkeypatch.undo()
    site.say("POST", VERSIONS, FILE)
    monkeypatch.setattr(registry, "export", fail)
    replies.append(site.say("GET", f"{VERSIONS}/1/file"))
    for reply in replies:
        assert (reply.status, reply.problem["code"]) == (status, code)
        assert ("retry-after" in reply.headers) == (status == 503)


def test_a_database_that_is_down_stops_only_the_registry(service, site):
    def connect():
        return Registry(Database("postgresql://u:hunter2@127.0.0.1:1/x"), None, [pocket()])

    service.components.loras = Loras(connect, service.components.metrics)
    for _ in range(2):
        reply = site.say("GET", "/v1/loras")
        assert (reply.status, reply.problem["code"]) == (503, "catalog_unavailable")
        assert int(reply.headers["retry-after"]) > 0
        assert b"hunter2" not in reply.body
    assert site.say("POST", VERSIONS, FILE).status == 503
    assert service.get("/livez").status == 200
    assert service.get("/v1/info").status == 200


# Who may


def key(*scopes):
    name = "-".join(scopes).replace(":", ".")
    return ApiKey(name=name, sha256=hashlib.sha256(name.encode()).hexdigest(), scopes=frozenset(scopes))


WRITES = [
    ("POST", VERSIONS),
    ("DELETE", f"{VERSIONS}/1"),
    ("PUT", PROD),
    ("DELETE", PROD),
    ("POST", "/v1/loras/%69nk/versions"),
    ("POST", "/v1/loras/ï n k/versions"),
]
READS = [
    ("GET", path)
    for path in ("/v1/loras", "/v1/loras/ink", VERSIONS, f"{VERSIONS}/1", f"{VERSIONS}/1/file", PROD)
]
READS += [("GET", "/v1/lora-versions/ink")]


@pytest.fixture
def guarded(site):
    site.guard(KeyRing([key("loras:read"), key("loras:write"), key("generate"), key("admin")]))
    return site


@pytest.mark.parametrize(("method", "path"), WRITES + READS)
def test_strangers_and_the_wrong_keys_stay_out(guarded, method, path):
    wrong = "loras.read" if (method, path) in WRITES else "loras.write"
    assert guarded.say(method, path).status == 401
    assert guarded.say(method, path, authorization="Bearer nobody").status == 401
    for name in (wrong, "generate"):
        assert guarded.say(method, path, authorization=f"Bearer {name}").problem["code"] == "forbidden"


@pytest.mark.parametrize(("method", "path"), WRITES + READS)
def test_the_right_key_and_admin_come_in(guarded, method, path):
    right = "loras.write" if (method, path) in WRITES else "loras.read"
    for name in (right, "admin"):
        reply = guarded.say(
            method, path, b"{}" if method in ("PUT", "POST") else None, authorization=f"Bearer {name}"
        )
        assert reply.status not in (401, 403)


def test_a_refused_upload_is_never_read(guarded, build_call):
    call = build_call("POST", VERSIONS, body=b"x", content_type="application/octet-stream")
    silent = type(call)(**{**vars(call), "never_sends": True})
    assert guarded.ask(silent).status == 401


def test_every_route_of_the_registry_has_a_scope(service):
    routes = {
        (method.upper(), path)
        for path, operations in service.app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/v1/lora")
    }
    assert routes
    assert routes <= set(SCOPES)
    for route in routes:
        assert SCOPES[route] == ("loras:read" if route[0] == "GET" else "loras:write"), route


# The body on its way


@pytest.mark.parametrize(
    "media_type",
    [
        "application/json",
        "multipart/form-data; boundary=x",
        "application/vnd.bentoml+pickle",
        "application/x-www-form-urlencoded",
        "application/zip",
        "text/plain",
    ],
)
def test_a_body_that_is_sent_as_something_else_is_refused(site, media_type):
    reply = site.say("POST", VERSIONS, FILE, content_type=media_type)
    assert (reply.status, reply.problem["code"]) == (415, "unsupported_media_type")


@pytest.mark.parametrize("media_type", ["application/octet-stream", "application/x-safetensors", ""])
def test_a_file_is_taken_as_such_or_without_a_type(site, media_type):
    assert site.say("POST", VERSIONS, FILE, content_type=media_type).status == 201


def test_a_compressed_body_is_refused(site):
    assert site.say("POST", VERSIONS, FILE, content_encoding="gzip").status == 415


def test_other_bodies_keep_their_small_limit(site):
    site.guard(KeyRing(()), max_body_bytes=100)
    assert site.say("POST", VERSIONS, FILE).status == 201
    assert site.say("PUT", PROD, b" " * 101).problem["code"] == "body_too_large"


def limited(site, max_bytes):
    site.edge = Edge(
        site.app,
        keys=KeyRing(()),
        metrics=site.components.metrics,
        max_body_bytes=100,
        max_upload_bytes=max_bytes,
    )


def test_an_upload_over_the_limit_is_refused_by_its_own_account_or_once_it_is(
    site, leftovers, build_call, change
):
    limited(site, len(FILE) - 1)
    announced = site.say("POST", VERSIONS, FILE)
    counted = change(build_call("POST", VERSIONS, transfer_encoding="chunked"), chunks=(FILE[:-1], FILE[-1:]))
    for reply in (announced, site.ask(counted)):
        assert (reply.status, reply.problem["code"]) == (413, "body_too_large")
    assert leftovers() == []
    limited(site, len(FILE))
    assert site.ask(counted).status == 201


def test_the_registrys_own_limit_holds_too(site, registry):
    registry._max_lora_bytes = 1000
    reply = site.say("POST", VERSIONS, FILE)
    assert (reply.status, reply.problem["code"]) == (413, "lora_too_large")


def test_an_upload_may_have_more_pieces_than_memory(site, build_call, change):
    pieces = tuple(FILE[start : start + 7] for start in range(0, len(FILE), 7))
    assert site.ask(change(build_call("POST", VERSIONS), chunks=pieces)).status == 201


def test_an_upload_whose_sender_leaves_publishes_nothing(site, leftovers, build_call):
    sent = []

    async def receive():
        if not sent:
            sent.append(None)
            return {"type": "http.request", "body": FILE[:3000], "more_body": True}
        return {"type": "http.disconnect"}

    async def send(message):
        sent.append(message)

    asyncio.run(site.edge(build_call("POST", VERSIONS).scope, receive, send))
    assert sent[1]["status"] == 499
    assert leftovers() == []
    assert body(site.say("GET", "/v1/loras"))["items"] == []
    assert site.metric("cancelled_total", reason="disconnected") == 1


def test_an_upload_that_hardly_gets_on_is_given_up(site, leftovers, build_call, change, monkeypatch):
    monkeypatch.setattr(uploads, "PATIENCE_SECONDS", 0.05)
    silent = change(build_call("POST", VERSIONS), never_sends=True)
    assert site.ask(silent).problem["code"] == "upload_too_slow"

    async def drip():
        await asyncio.sleep(0.001)
        return {"type": "http.request", "body": FILE[:1], "more_body": True}

    replies = []

    async def send(message):
        replies.append(message)

    asyncio.run(site.edge(build_call("POST", VERSIONS).scope, drip, send))
    assert replies[0]["status"] == 408
    assert leftovers() == []


def test_the_time_of_our_own_disk_is_not_the_callers(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(uploads.time, "monotonic", lambda: clock[0])

    async def receive():
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def story():
        take = uploads.passed_on({"headers": []}, receive, max_bytes=100)
        for _ in range(50):
            await take()
            clock[0] += uploads.PATIENCE_SECONDS

    asyncio.run(story())


def test_no_name_becomes_a_label(site):
    for n in range(20):
        site.say("POST", f"/v1/loras/hostile-{n}/versions", PICKLE)
        site.say("GET", f"/v1/loras/hostile-{n}")
    text = site.components.metrics.render().decode()
    assert "hostile" not in text
    assert 'route="/v1/loras/{name}/versions"' in text
