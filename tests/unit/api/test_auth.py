"""Who may call what."""

import hashlib
import json
import re

import pytest

from service.api.auth import OPEN_PATHS, SCOPES, KeyRing, check_bind, is_loopback
from service.errors import InvalidSettings
from service.settings import ApiKey, Settings


def key(name, *scopes, secret=None):
    digest = hashlib.sha256((secret or f"{name}-secret").encode()).hexdigest()
    return ApiKey(name=name, sha256=digest, scopes=frozenset(scopes))


READER = key("reader", "loras:read")
MAKER = key("maker", "generate")
ROOT = key("root", "admin")


@pytest.fixture
def guarded(service):
    service.guard(KeyRing([READER, MAKER, ROOT, key("nobody")]))
    return service


@pytest.mark.parametrize(
    "authorization", [None, "", "Bearer", "Bearer ", "Bearer wrong", "Basic maker-secret", "maker-secret"]
)
def test_without_a_valid_key_the_answer_is_401(guarded, authorization):
    headers = {} if authorization is None else {"authorization": authorization}
    reply = guarded.generate(**headers)
    assert (reply.status, reply.problem["code"]) == (401, "unauthenticated")
    assert reply.headers["www-authenticate"].startswith("Bearer")


def test_the_hash_of_a_key_is_not_a_key(guarded):
    assert guarded.generate(authorization=f"Bearer {MAKER.sha256}").status == 401


def test_a_key_without_the_scope_is_told_which_one_it_lacks(guarded):
    reply = guarded.generate(authorization="Bearer reader-secret")
    assert (reply.status, reply.problem["code"]) == (403, "forbidden")
    assert "'generate'" in reply.problem["detail"]


@pytest.mark.parametrize("secret", ["maker-secret", "root-secret"])
def test_a_key_with_the_scope_or_admin_may(guarded, secret):
    assert guarded.generate(authorization=f"bearer {secret}").status == 200


def test_a_refused_body_is_never_read(guarded):
    guarded.guard(KeyRing([MAKER]), max_body_bytes=1)
    assert guarded.generate(authorization="Bearer wrong").status == 401


@pytest.mark.parametrize("path", sorted(OPEN_PATHS))
def test_probes_and_metrics_need_no_key(guarded, path):
    assert guarded.get(path).status == 200


@pytest.mark.parametrize("path", ["/v1/info", "/v1/openapi.json", "/docs", "/nowhere", "/", "/schema.json"])
def test_everything_else_needs_one(guarded, path):
    assert guarded.get(path).status == 401
    assert guarded.get(path, authorization="Bearer reader-secret").status != 401


def test_the_route_of_every_operation_that_changes_something_names_a_scope(service):
    document = service.app.openapi()
    changing = {
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if method != "get"
    }
    assert changing <= set(SCOPES)


@pytest.mark.parametrize("name", ["ink", "a b", "ïnk", "ink@1", "..", "a%2Fb", "x" * 500])
def test_no_spelling_of_a_name_gets_around_the_scope(guarded, build_call, name):
    for method, path in SCOPES:
        filled = re.sub(r"\{[^}]*\}", lambda _: name, path.replace("{version}", "1"))
        assert guarded.ask(build_call(method, filled, authorization="Bearer nobody-secret")).status == 403


def test_keys_come_from_the_settings_and_from_a_file(tmp_path):
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([MAKER.model_dump(mode="json")]))
    ring = KeyRing.from_settings(Settings(api_keys=(ROOT,), api_keys_file=file))
    assert len(ring) == 2


@pytest.mark.parametrize("text", ["", "{}", '[{"name": "a"}]', "[1]", None])
def test_a_keys_file_that_cannot_be_used_stops_the_start(tmp_path, text):
    file = tmp_path / "keys.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InvalidSettings, match="DARKROOM_API_KEYS_FILE"):
        check_bind(Settings(api_keys_file=file), "127.0.0.1")


@pytest.mark.parametrize("twin", [key("maker", "train", secret="other"), key("other", secret="maker-secret")])
def test_keys_that_could_be_taken_for_one_another_stop_the_start(twin):
    with pytest.raises(InvalidSettings, match="two API keys share"):
        KeyRing.from_settings(Settings(api_keys=(MAKER, twin)))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.5", "?", "", "example.org"])
def test_an_address_that_others_reach_needs_keys(host):
    with pytest.raises(InvalidSettings, match="without API keys"):
        check_bind(Settings(), host)
    check_bind(Settings(api_keys=(MAKER,)), host)
    check_bind(Settings(auth="disabled"), host)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_a_loopback_address_needs_none(host):
    assert is_loopback(host)
    check_bind(Settings(), host)


def test_auth_disabled_lets_everybody_in_even_with_keys(service):
    service.guard(KeyRing.from_settings(Settings(auth="disabled", api_keys=(MAKER,))))
    assert service.generate().status == 200
