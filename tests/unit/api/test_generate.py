"""POST /v1/generate, with a stand-in for the use case."""

import asyncio
import json

import pytest

from service import errors

OVERLOADED = errors.Overloaded(backlog_seconds=130, limit_seconds=120, retry_after_seconds=10)


def test_json_is_the_default(service):
    reply = service.generate()
    assert reply.status == 200
    assert reply.headers["content-type"] == "application/json"
    assert json.loads(reply.body)["images"][0]["seed"] == 7


def test_accept_gives_the_bytes_of_the_image_and_its_facts_in_headers(service):
    reply = service.generate(accept="image/webp")
    assert reply.headers["content-type"] == "image/webp"
    assert reply.body == b"bytes of a webp"
    assert reply.headers["x-darkroom-id"] == "gen_1"
    assert reply.headers["x-darkroom-seed"] == "7"
    assert reply.headers["x-darkroom-model"] == "stand-in"
    assert "base;dur=250.0" in reply.headers["server-timing"]
    assert reply.headers["vary"] == "Accept"


def test_what_cannot_be_given_is_refused_before_any_work(service):
    reply = service.generate('{"prompt": "a", "num_images": 2}', accept="image/png")
    assert (reply.status, reply.problem["code"]) == (406, "not_acceptable")
    assert not service.components.generation.started.is_set()


@pytest.mark.parametrize(
    ("body", "pointer", "message"),
    [
        ('{"prompt": "a", "guidence_scale": 3}', "/guidence_scale", "did you mean 'guidance_scale'"),
        ('{"prompt": "a", "width": 100}', "/width", "multiple of 8"),
        ('{"prompt": "a", "width": 4096}', "/width", "less than or equal to 2048"),
        ('{"prompt": "a", "width": 2048, "height": 2056}', "/height", "less than or equal to 2048"),
        ('{"prompt": "a", "width": 2048, "height": 2048.5}', "/height", "integer"),
        ('{"prompt": "a", "num_inference_steps": 0}', "/num_inference_steps", "greater than or equal to 1"),
        (
            '{"prompt": "a", "refiner": {"denoising_end": 1.5}}',
            "/refiner/denoising_end",
            "less than or equal",
        ),
        ('{"prompt": "a", "refiner": {"denoising_end": -1}}', "/refiner/denoising_end", "greater than"),
        ('{"prompt": "a", "scheduler": "plms"}', "/scheduler", "'euler'"),
        ('{"prompt": "a", "guidance_scale": NaN}', "/guidance_scale", "finite"),
        ('{"prompt": "a", "guidance_scale": Infinity}', "/guidance_scale", "finite"),
        ('{"prompt": "a", "seed": 18446744073709551616}', "/seed", "less than or equal"),
        ('{"prompt": "a", "output": {"a/b~c": 1}}', "/output/a~1b~0c", "no such field"),
        (json.dumps({"prompt": "x" * 10_000}), "/prompt", "at most 4000"),
        ('{"prompt": ""}', "/prompt", "at least 1"),
        ("{}", "/prompt", "required"),
        ("[]", "", "object"),
        ("null", "", "object"),
    ],
)
def test_a_bad_field_is_named_by_pointer(service, body, pointer, message):
    reply = service.generate(body)
    assert (reply.status, reply.problem["code"]) == (422, "invalid_request")
    (found,) = reply.problem["errors"]
    assert found["pointer"] == pointer
    assert message in found["message"]


@pytest.mark.parametrize("body", ["{", "", '{"prompt": "a"', "{'prompt': 'a'}", "[" * 100_000, "nope"])
def test_what_is_not_json_is_a_400_or_a_missing_body(service, body):
    reply = service.generate(body)
    expected = (400, "malformed_json") if body else (422, "invalid_request")
    assert (reply.status, reply.problem["code"]) == expected


def test_bytes_that_are_not_text_are_a_400(service):
    assert service.generate(b"\xff\xfe\x00").problem["code"] == "malformed_json"


def test_the_value_of_a_bad_field_is_never_repeated(service):
    secret = "correct horse battery staple"
    body = json.dumps(
        {"prompt": "a", "seed": secret, "scheduler": secret, "output": secret, "width": [secret]}
    )
    assert secret.encode() not in service.generate(body).body


def test_many_faults_are_counted_but_not_all_listed(service):
    body = json.dumps({f"field{n}": "x" * 1000 for n in range(500)})
    reply = service.generate(body)
    assert len(reply.problem["errors"]) == 20
    assert "(and 500 more)" in reply.problem["detail"]
    assert len(reply.body) < 10_000


def test_a_hostile_field_name_is_cut(service):
    reply = service.generate(json.dumps({"prompt": "a", "x" * 100_000: 1}))
    assert len(reply.body) < 2_000


@pytest.mark.parametrize(
    ("error", "status", "code", "retry_after"),
    [
        (errors.ModelLoading(retry_after_seconds=4), 503, "model_loading", "4"),
        (errors.Draining(), 503, "draining", "5"),
        (OVERLOADED, 503, "overloaded", "10"),
        (errors.EngineStopped("dead"), 503, "engine_stopped", "30"),
        (errors.TooExpensive("too much"), 422, "too_expensive", None),
        (errors.InvalidPrompt("unclosed", position=3), 422, "invalid_prompt", None),
        (errors.InvalidOption("no refiner", pointer="/refiner"), 422, "invalid_option", None),
        (errors.DeadlineExceeded("late"), 504, "deadline_exceeded", None),
        (errors.UnusableImage("black", seed=3), 422, "unusable_image", None),
        (errors.OutOfDeviceMemory("no room"), 413, "out_of_device_memory", None),
        (ValueError("bug"), 500, "internal", None),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_the_use_case_raises_is_answered_by_the_table(service, error, status, code, retry_after):
    service.components.generation.error = error
    reply = service.generate()
    assert (reply.status, reply.problem["code"]) == (status, code)
    assert reply.headers.get("retry-after") == retry_after


def test_overload_is_counted(service):
    service.components.generation.error = OVERLOADED
    service.generate()
    assert service.metric("rejected_total", reason="overloaded") == 1


def test_a_caller_who_leaves_has_the_work_cancelled(service, build_call, change):
    generation = service.components.generation
    generation.slow = True
    call = build_call("POST", "/v1/generate", body='{"prompt": "a fox"}')
    service.ask(change(call, leaves_on=generation.started.wait))
    assert generation.cancelled
    assert service.metric("cancelled_total", reason="disconnected") == 1
    labels = {"route": "/v1/generate", "method": "POST", "status": "499"}
    assert service.metric("request_duration_seconds_count", **labels) == 1


def test_work_in_flight_finishes_within_the_patience(service, build_call):
    generation = service.components.generation
    generation.slow = True

    async def scenario():
        asking = asyncio.create_task(
            build_call("POST", "/v1/generate", body='{"prompt": "a"}').on(service.edge)
        )
        await generation.started.wait()
        finishing = asyncio.create_task(service.in_flight.finish(within_seconds=60))
        generation.release.set()
        return await finishing, await asking

    unfinished, reply = asyncio.run(scenario())
    assert (unfinished, reply.status) == (0, 200)


def test_work_beyond_the_patience_is_cut_and_its_caller_told(service, build_call):
    generation = service.components.generation
    generation.slow = True

    async def scenario():
        asking = asyncio.create_task(
            build_call("POST", "/v1/generate", body='{"prompt": "a"}').on(service.edge)
        )
        await generation.started.wait()
        return await service.in_flight.finish(within_seconds=0), await asking

    unfinished, reply = asyncio.run(scenario())
    assert (unfinished, reply.problem["code"]) == (1, "shutdown")
    assert reply.headers["retry-after"]
    assert generation.cancelled
    assert service.metric("cancelled_total", reason="shutdown") == 1
