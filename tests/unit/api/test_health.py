"""How the service says that it is."""

import json

import pytest


def test_a_service_that_can_make_pictures_is_ready_and_alive(service):
    assert service.get("/readyz").status == 200
    assert service.get("/livez").status == 200


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("loading", "model_loading"),
        ("draining", "draining"),
        ("failed: /models/x is missing", "engine_stopped"),
    ],
)
def test_a_service_that_is_not_ready_says_why_and_when_to_ask_again(service, reason, code):
    service.components.reason = reason
    reply = service.get("/readyz")
    assert (reply.status, reply.problem["code"]) == (503, code)
    assert int(reply.headers["retry-after"]) > 0
    assert b"/models" not in reply.body
    assert service.get("/livez").status == 200


@pytest.mark.parametrize("path", ["/livez", "/healthz"])
def test_a_dead_engine_turns_liveness_red(service, path):
    service.components.living = False
    assert service.get(path).problem["code"] == "engine_stopped"


def test_probes_are_not_counted_as_refused_work(service):
    service.components.reason = "loading"
    service.get("/readyz")
    assert service.metric("rejected_total", reason="model_loading") == 0


@pytest.mark.parametrize(("reason", "value"), [("ready", "1.0"), ("loading", "0.0"), ("draining", "0.0")])
def test_metrics_tell_readiness_as_it_is_now(service, reason, value):
    service.components.reason = reason
    reply = service.get("/metrics")
    assert reply.headers["content-type"].startswith("text/plain; version=")
    assert f"darkroom_ready {value}" in reply.body.decode()


def test_info_is_the_services_own_account(service):
    assert json.loads(service.get("/v1/info").body)["name"] == "darkroom"
