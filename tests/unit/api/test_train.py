"""The routes of train jobs, as far as they need no job."""

import pytest

from service.api.auth import SCOPES


def test_every_route_of_train_jobs_needs_the_scope(service):
    routes = {
        (method.upper(), path)
        for path, operations in service.app.openapi()["paths"].items()
        for method in operations
        if path.startswith("/v1/train-jobs")
    }
    scopes = {(method, path.replace(":path", "")): scope for (method, path), scope in SCOPES.items()}
    assert len(routes) == 9
    assert {scopes[route] for route in routes} == {"train"}


@pytest.mark.parametrize("id", ["-1", "x", str(2**40)])
def test_a_last_event_that_cannot_be_is_refused(service, id):
    reply = service.get("/v1/train-jobs/job-1/events", **{"last-event-id": id})
    assert (reply.status, reply.problem["code"]) == (422, "invalid_request")
