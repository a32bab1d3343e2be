"""`FakeDarkroom`, which other people's tests stand on."""

import asyncio
import io

import httpx
import PIL.Image
import pytest

from darkroom import (
    AuthenticationFailed,
    BlendSource,
    ConnectionFailed,
    GenerateRequest,
    InvalidRequest,
    LoraUse,
    NotFound,
    Output,
    Problem,
    Refiner,
    ServerError,
    Timeout,
    Unavailable,
)
from darkroom.testing import FakeDarkroom


def test_the_same_order_gives_the_same_picture_and_another_gives_another(client):
    fox = client.generate("a fox", seed=7).image.data
    assert client.generate("a fox", seed=7).image.data == fox
    assert client.generate("a fox", seed=8).image.data != fox
    assert client.generate("a cat", seed=7).image.data != fox
    assert client.generate("a fox", seed=7, negative_prompt="").image.data != fox


def test_image_i_uses_seed_plus_i(client):
    pair = client.generate("a fox", seed=7, num_images=2)
    assert client.generate("a fox", seed=8).image.data == pair[1].data


def test_an_absent_seed_is_drawn_and_repeatable(client):
    drawn = client.generate("a fox").image
    assert client.generate("a fox").image.seed != drawn.seed
    assert client.generate("a fox", seed=drawn.seed).image.data == drawn.data
    assert FakeDarkroom().client().generate("a fox").image.seed == drawn.seed


def test_pictures_are_real_files_of_the_size_that_was_asked_for(client, tmp_path):
    for format in ("png", "jpeg", "webp"):
        picture = client.generate("a fox", width=128, height=72, output=Output(format=format)).image
        with PIL.Image.open(picture.save(tmp_path / "fox")) as opened:
            opened.load()
            assert (opened.size, opened.format) == ((128, 72), format.upper())


def test_the_receipt_tells_what_was_ordered(client):
    receipt = client.generate(
        "a fox", num_inference_steps=20, refiner=Refiner(denoising_end=0.5)
    ).image.receipt
    assert (receipt.prompt, receipt.base_steps, receipt.refiner.num_inference_steps) == ("a fox", 10, 10)
    assert client.generate("a fox", refiner=Refiner(enabled=False)).image.receipt.refiner is None


def test_requests_are_recorded_failed_ones_included(fake, client):
    fake.fail_next(503)
    client.generate("a fox", seed=7)
    client.info()
    assert [(received.method, received.path) for received in fake.requests] == [
        ("POST", "/v1/generate"),
        ("POST", "/v1/generate"),
        ("GET", "/v1/info"),
    ]
    assert fake.requests[1].generate == GenerateRequest(prompt="a fox", seed=7)
    assert fake.requests[2].generate is None


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (500, ServerError),
        (503, Unavailable),
        (ConnectionError("refused"), ConnectionFailed),
        (TimeoutError("late"), Timeout),
        (httpx.ReadError("gone"), ConnectionFailed),
    ],
)
def test_faults_on_order_come_as_they_do_in_life(fake, failure, error):
    fake.fail_next(failure)
    with fake.client(max_retries=0) as client:
        with pytest.raises(error):
            client.generate("a fox")
        client.generate("a fox")


def test_a_fault_can_have_a_code_and_a_time_to_come_back(fake, client):
    fake.fail_next(503, code="model_loading", retry_after_seconds=3600)
    with pytest.raises(Unavailable) as caught:
        client.generate("a fox")
    assert (caught.value.code, caught.value.retry_after_seconds) == ("model_loading", 3600)


def test_retries_take_no_time_and_are_counted(fake, client):
    fake.fail_next(503, times=2, retry_after_seconds=30)
    client.generate("a fox")
    assert fake.sleeps == [30.25, 30.5]


def test_readiness_can_be_late(fake, client):
    heard = []
    fake.fail_next(503, times=3, code="model_loading")
    client.wait_until_ready(on_wait=heard.append)
    assert [reason.code for reason in heard] == ["model_loading"] * 3


def test_only_the_holder_of_the_key_gets_in():
    fake = FakeDarkroom(api_key="right")
    assert fake.client(api_key="right").info().ready
    with pytest.raises(AuthenticationFailed):
        fake.client(api_key="wrong").info()


def test_the_fake_judges_requests_that_did_not_come_through_this_client(fake):
    http = httpx.Client(transport=httpx.MockTransport(fake._answer), base_url="http://fake")
    for body in (b'{"prompt": "a fox", "guidence_scale": 3}', b"{"):
        answer = http.post("/v1/generate", content=body)
        assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        assert Problem.model_validate_json(answer.content).errors
    assert http.get("/v1/teapots").status_code == 404


def test_a_wrong_address_is_not_found(fake):
    fake.fail_next(404)
    with fake.client() as client, pytest.raises(NotFound):
        client.info()


def test_formats_that_need_pillow_are_refused_without_it(client, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InvalidRequest, match="the fake draws webp only where Pillow is installed"):
        client.generate("a fox", output=Output(format="webp"))


def test_many_calls_at_once(fake):
    async def scenario():
        async with fake.async_client() as client:
            return await asyncio.gather(*(client.generate("a fox", seed=seed) for seed in range(5)))

    assert [generation.image.seed for generation in asyncio.run(scenario())] == [0, 1, 2, 3, 4]


def test_loras_of_a_request_are_looked_up_in_the_fakes_registry():
    fake = FakeDarkroom()
    with fake.client() as client:
        ink = client.loras.publish("ink", io.BytesIO(b"\x02\0\0\0\0\0\0\0{}"))
        plain = client.generate("a fox", seed=1)
        inked = client.generate("a fox", seed=1, loras=[LoraUse(ref="ink:latest", weight=0.5)])
        assert inked.image.data != plain.image.data
        assert [(lora.ref, lora.digest) for lora in inked.image.receipt.loras] == [("ink@1", ink.digest)]
        with pytest.raises(InvalidRequest) as caught:
            client.generate("a fox", loras=["ink", "nobody"])
    assert (caught.value.code, caught.value.errors[0].pointer) == ("unknown_lora", "/loras/1/ref")


def test_a_blend_of_the_fake_is_a_version_like_any_other():
    with FakeDarkroom().client() as client:
        client.loras.publish("ink", io.BytesIO(b"\x02\0\0\0\0\0\0\0{}"))
        mixed = client.loras.blend("mixed", ["ink", BlendSource(ref="ink", weight=-0.5)], alias="prod")
        again = client.loras.blend("mixed", ["ink", BlendSource(ref="ink", weight=-0.5)])
        assert (mixed.ref, again.existing) == ("mixed@1", True)
        assert client.loras.pin("mixed", 1).digest == mixed.digest
        client.loras.unpin("mixed", 1)
        with pytest.raises(InvalidRequest):
            client.loras.blend("mixed", ["nobody"])
