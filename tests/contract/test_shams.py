"""Shams in requests: drawn by seed, told in the receipt, repeatable from it, and refused where there is none."""

import io

import numpy as np
import pytest

from contract.test_loras_in_pictures import peft_file
from darkroom import InvalidRequest, LoraUse
from darkroom.types import LoraReceipt
from in_process import GOOD, Caller, Served, pixels
from unit.lora_registry.makers import clip_pair, kohya, layers, loha, lokr, peft_dora, pocket, safetensors

BASE = pocket()
PROMPT = {"prompt": "a red circle on a starburst background"}


@pytest.fixture
def studio(serve, tmp_path, models) -> Served:
    """A service with a LoRA, its kin of other algorithms, and an embedding."""
    service = serve(data=tmp_path, audit_seconds=0)
    registry = service.components.loras.registry()
    registry.publish("ink", io.BytesIO(peft_file(models, 1)))
    some = layers(BASE, count=20)
    louder = {
        key: value * 4 if "_w" in key else value
        for key, value in {**loha(BASE, some), **lokr(BASE, layers(BASE, "resnets", count=12))}.items()
    }
    for name, tensors in {
        "products": louder,
        "dora": peft_dora(some),
        "starburst": clip_pair(BASE),
        "both": {**kohya(BASE, some), **clip_pair(BASE, "bundle_emb.starburst.")},
    }.items():
        registry.publish(name, io.BytesIO(safetensors(tensors)))
    return service


@pytest.fixture
def caller(studio) -> Caller:
    return studio.caller()


def test_a_sham_draws_a_picture_of_its_own_and_the_receipt_says_so(caller, studio):
    uses = [[], ["ink"], [LoraUse(ref="ink", sham=1)], [LoraUse(ref="ink", sham=2)]]
    answers = [caller.generate(loras=loras) for loras in uses]
    for place, one in enumerate(answers):
        for other in answers[:place]:
            assert np.abs(pixels(one.image.data) - pixels(other.image.data)).mean() > 1
    (real,), (sham,) = (answer.image.receipt.loras for answer in answers[1:3])
    digest = studio.components.loras.registry().resolve("ink").digest
    assert (real.sham, sham.sham) == (None, 1)
    assert (sham.ref, sham.digest) == ("ink@1", digest)
    assert [served.digest for served in answers[2].loras] == [digest]


def test_the_receipt_sent_again_gives_the_same_file_though_the_sham_was_forgotten(caller, studio):
    first = caller.generate(loras=[LoraUse(ref="ink", weight=0.8, sham=2**32 - 1)])
    (receipt,) = first.image.receipt.loras
    studio.components.adapters._residency()._shelf._held.clear()
    again = caller.generate(loras=[use_of(receipt)])
    assert again.image.data == first.image.data


def use_of(receipt: LoraReceipt) -> LoraUse:
    return LoraUse(**receipt.model_dump(exclude={"ref", "digest", "auto_v3"}), ref=receipt.digest)


def test_a_sham_is_in_memory_after_its_first_use(caller):
    tiers = [caller.generate(loras=[LoraUse(ref="ink", sham=sham)]).loras[0].tier for sham in (1, 1, 2)]
    assert tiers == ["disk", "host", "host"]


def test_a_lora_and_its_sham_may_be_in_one_request(caller):
    pushed = [LoraUse(ref="ink", weight=0.5), LoraUse(ref="ink", weight=-0.5, sham=1)]
    answer = caller.generate(loras=pushed)
    assert [lora.sham for lora in answer.image.receipt.loras] == [None, 1]
    one_alone = caller.generate(loras=pushed[:1])
    assert not np.array_equal(pixels(answer.image.data), pixels(one_alone.image.data))


@pytest.mark.parametrize("ref", ["products", "starburst", "both"])
def test_every_form_but_a_dora_has_a_sham(caller, ref):
    plain, real, sham = (
        pixels(caller.generate(**PROMPT, loras=loras).image.data)
        for loras in ([], [ref], [LoraUse(ref=ref, sham=1)])
    )
    assert not np.array_equal(sham, plain)
    assert not np.array_equal(sham, real)


@pytest.mark.parametrize(
    ("loras", "pointer", "words"),
    [
        (["ink", LoraUse(ref="dora", sham=1)], "/loras/1/sham", "is a DoRA, which has no sham"),
        (
            ["starburst", LoraUse(ref="starburst", sham=1)],
            "/loras/1/sham",
            "the sham 1 of 'starburst@1' and 'starburst@1' both stand for 'starburst'",
        ),
        (
            [LoraUse(ref="starburst", sham=1), LoraUse(ref="both", sham=1)],
            "/loras/1/ref",
            "both stand for 'starburst'",
        ),
    ],
)
def test_a_sham_that_cannot_be_is_refused_with_a_pointer(caller, loras, pointer, words):
    with pytest.raises(InvalidRequest) as caught:
        caller.generate(**PROMPT, loras=loras)
    (error,) = caught.value.errors
    assert error.pointer == pointer
    assert words in error.message


@pytest.mark.parametrize("sham", [-1, 2**32, 0.5, "one"])
def test_a_malformed_seed_of_a_sham_is_refused_before_anything_is_asked(studio, sham):
    reply = studio.http.post("/v1/generate", json=GOOD | {"loras": [{"ref": "ink", "sham": sham}]})
    assert (reply.status_code, reply.json()["code"]) == (422, "invalid_request")
    assert reply.json()["errors"][0]["pointer"] == "/loras/0/sham"
