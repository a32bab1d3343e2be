"""Errors as answers."""

import inspect
import json

import pytest

from lora_registry import errors as lora_errors
from service import errors
from service.api import problems, refusals
from service.api.problems import describe, respond
from service.compare import errors as compare_errors
from service.datasets import errors as dataset_errors
from service.jobs import errors as job_errors
from service.store import errors as store_errors
from service.training import errors as training_errors

STARTUP_ONLY = {errors.ModelNotFound, errors.InvalidSettings}
WORKERS_ONLY = {job_errors.NotClaimable, store_errors.LeaseLost}
OVERLOADED = errors.Overloaded(backlog_seconds=130, limit_seconds=120, retry_after_seconds=10.2)


def errors_of(module, base=errors.DarkroomError):
    return {
        kind
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, base) and kind is not base
    }


def answer(error, path="/v1/generate"):
    return respond(error, {"type": "http", "path": path, "headers": []})


def test_every_error_that_a_request_can_meet_has_a_status():
    raisable = (errors_of(errors) | errors_of(refusals)) - STARTUP_ONLY - {refusals.Answered}
    raisable |= errors_of(lora_errors, lora_errors.RegistryError) - {lora_errors.StorageError}
    raisable |= (errors_of(job_errors) | errors_of(store_errors)) - WORKERS_ONLY
    raisable |= errors_of(dataset_errors) | errors_of(training_errors) | errors_of(compare_errors)
    assert raisable == set(problems.TABLE)


def test_codes_tell_errors_apart():
    codes = [row.code for row in problems.TABLE.values()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize("row", problems.TABLE.values(), ids=lambda row: row.code)
def test_every_503_says_when_to_try_again(row):
    assert (row.status == 503) == (row.retry_after_seconds is not None)


def test_overload_is_a_503_with_whole_seconds_to_wait():
    response = answer(OVERLOADED)
    assert response.status_code == 503
    assert response.headers["retry-after"] == "11"
    assert response.headers["content-type"] == "application/problem+json"
    problem = json.loads(response.body)
    assert problem["code"] == "overloaded"
    assert "130.0 s of work are queued" in problem["detail"]
    assert problem["instance"] == "/v1/generate"


def test_a_fault_in_a_prompt_points_at_the_character():
    fault = describe(errors.InvalidPrompt("this ( is never closed", position=5, field="negative_prompt"))
    (found,) = fault.errors
    assert (fault.row.status, found.pointer, found.position) == (422, "/negative_prompt", 5)


def test_an_error_that_nobody_foresaw_tells_the_caller_nothing(caplog):
    response = answer(ValueError("/secret/path"))
    assert response.status_code == 500
    assert b"secret" not in response.body
    assert json.loads(response.body)["code"] == "internal"


def test_the_reason_of_a_dead_engine_stays_in_the_log():
    response = answer(errors.EngineStopped("the engine could not start: /models/base/unet is missing"))
    assert response.status_code == 503
    assert b"/models" not in response.body


def test_a_hostile_path_is_bounded_and_escaped():
    problem = json.loads(answer(refusals.Answered(404), path="/\n" + "x" * 10_000).body)
    assert problem["instance"].startswith("/%0A")
    assert len(problem["instance"]) <= 300


@pytest.mark.parametrize("status", [400, 404, 405, 418, 429, 451, 500, 502, 503, 504, 599])
def test_any_status_of_a_framework_becomes_a_problem(status):
    response = answer(refusals.Answered(status, {"allow": "POST", "x-internal": "1"}))
    assert response.status_code == status
    assert "x-internal" not in response.headers
    assert json.loads(response.body)["code"]
