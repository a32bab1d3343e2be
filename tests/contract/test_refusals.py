"""Bad input: the same typed error whoever finds it, and nothing broken afterwards."""

import json

import pytest

from darkroom import GenerateRequest, InvalidRequest, PayloadTooLarge, Refiner, UnsupportedMedia
from in_process import GOOD

FOUND_BY_BOTH = {
    "unknown field": ({"refiner": {"enabeld": True}}, "/refiner/enabeld"),
    "width not a multiple of 8": ({"width": 100}, "/width"),
    "height too large": ({"height": 4096}, "/height"),
    "steps 0": ({"num_inference_steps": 0}, "/num_inference_steps"),
    "hand-over above 1": ({"refiner": {"denoising_end": 1.5}}, "/refiner/denoising_end"),
    "hand-over below 0": ({"refiner": {"denoising_end": -0.1}}, "/refiner/denoising_end"),
    "unknown scheduler": ({"scheduler": "heun"}, "/scheduler"),
    "10 000 characters": ({"prompt": "a" * 10_000}, "/prompt"),
    "empty prompt": ({"prompt": ""}, "/prompt"),
    "half a character": ({"prompt": "\ud83e"}, "/prompt"),
    "guidance not a number": ({"guidance_scale": float("nan")}, "/guidance_scale"),
    "guidance infinite": ({"guidance_scale": float("inf")}, "/guidance_scale"),
    "seed of 65 bits": ({"seed": 2**64}, "/seed"),
    "negative crop": ({"crops_coords_top_left": (0, -1)}, "/crops_coords_top_left/1"),
    "three numbers in a size": ({"target_size": (1, 2, 3)}, "/target_size"),
    "no time at all": ({"timeout_seconds": 0}, "/timeout_seconds"),
    "several": ({"num_images": 9, "width": 100, "output": {"quality": 0}}, "/width"),
}
FOUND_BY_THE_SERVICE = {
    "unbalanced weighting": ({"prompt": "a ((red) circle"}, "invalid_prompt", "/prompt", 2),
    "nested weighting": ({"prompt": "(" * 9 + "a" + ")" * 9}, "invalid_prompt", "/prompt", 8),
    "weighting that costs compel half a minute": ({"prompt": "(" * 19}, "invalid_prompt", "/prompt", 8),
    "weight too high": ({"prompt": "a (circle)9"}, "invalid_prompt", "/prompt", 2),
    "negative prompt unbalanced": ({"negative_prompt": "blurry)"}, "invalid_prompt", "/negative_prompt", 6),
    "too many steps for LCM": (
        {"scheduler": "lcm", "num_inference_steps": 80},
        "invalid_option",
        "/num_inference_steps",
        None,
    ),
}


@pytest.fixture(autouse=True)
def _nothing_is_broken_afterwards(service, reference):
    yield
    assert service.caller().generate().image.data == reference
    assert service.metric("queue_depth") == 0
    assert service.http.get("/readyz").status_code == 200


@pytest.mark.parametrize(("changes", "pointer"), FOUND_BY_BOTH.values(), ids=FOUND_BY_BOTH)
def test_client_and_service_refuse_alike(client, changes, pointer):
    with pytest.raises(InvalidRequest) as by_client:
        client.generate(**changes)
    with pytest.raises(InvalidRequest) as by_service:
        client.post(json.dumps(GOOD | changes).encode())
    said = by_service.value.problem
    assert said.instance == "/v1/generate"
    assert said.request_id
    assert by_client.value.problem == said.model_copy(update={"instance": None, "request_id": None})
    assert by_client.value.status == by_service.value.status == 422
    assert (said.code, said.errors[0].pointer) == ("invalid_request", pointer)
    assert said.detail.startswith(f"{pointer}: {said.errors[0].message}")


@pytest.mark.parametrize(
    ("changes", "code", "pointer", "position"), FOUND_BY_THE_SERVICE.values(), ids=FOUND_BY_THE_SERVICE
)
def test_what_only_the_service_knows_is_the_same_class_of_error(client, changes, code, pointer, position):
    with pytest.raises(InvalidRequest) as caught:
        client.generate(**changes)
    (fault,) = caught.value.errors
    assert (caught.value.status, caught.value.code) == (422, code)
    assert (fault.pointer, fault.position) == (pointer, position)
    assert caught.value.problem.detail == fault.message


def test_an_unknown_field_is_named_and_the_known_one_suggested(client):
    with pytest.raises(InvalidRequest, match="/guidence_scale: no such field; did you mean 'guidance_scale'"):
        client.post(json.dumps(GOOD | {"guidence_scale": 3}).encode())
    with pytest.raises(TypeError, match="guidence_scale"):
        client.generate(guidence_scale=3)


def test_a_change_that_nobody_checked_is_refused_by_the_service(client):
    order = GenerateRequest(**GOOD).model_copy(update={"width": 100, "refiner": Refiner(enabled=False)})
    with pytest.raises(InvalidRequest) as caught:
        client.generate_request(order)
    assert [fault.pointer for fault in caught.value.errors] == ["/width"]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b'{"prompt": "\xff"}', b'{"seed": 1e999}x'])
def test_a_body_that_is_not_json_is_an_invalid_request(client, body):
    with pytest.raises(InvalidRequest) as caught:
        client.post(body)
    assert caught.value.code == ("malformed_json" if body else "invalid_request")


@pytest.mark.parametrize("body", [b"[]", b"null", b'"a red circle"', b"{}"])
def test_json_that_is_no_request_is_an_invalid_request(client, body):
    with pytest.raises(InvalidRequest) as caught:
        client.post(body)
    assert (caught.value.status, caught.value.code) == (422, "invalid_request")


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "image/png"])
def test_a_body_of_another_type_is_unsupported(client, media_type):
    with pytest.raises(UnsupportedMedia, match="application/json"):
        client.post(json.dumps(GOOD).encode(), content_type=media_type)


def test_a_body_over_the_limit_is_too_large(client):
    limit = client.info().limits.max_body_bytes
    with pytest.raises(PayloadTooLarge, match=str(limit)):
        client.post(b" " * limit + json.dumps(GOOD).encode())


def test_twenty_thousand_faults_are_counted_and_few_are_told(client):
    body = GOOD | {f"field_{number}": number for number in range(20_000)}
    with pytest.raises(InvalidRequest, match="and 19999 more") as caught:
        client.post(json.dumps(body).encode())
    assert len(caught.value.errors) == 20


def test_a_field_name_that_is_half_a_character_is_no_failure_of_ours(client):
    with pytest.raises(InvalidRequest):
        client.post(b'{"prompt": "a", "\\ud83e": 1}')
