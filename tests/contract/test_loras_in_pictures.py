"""LoRAs of the registry in requests: named by ref, fetched by tier, told in the receipt, and refused with a pointer."""

import asyncio
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save

from adapters import a_lora, arranged, attention_layers, random_adapter
from darkroom import InvalidRequest, LoraUse, Unavailable
from darkroom.types import GenerateRequest, LoraVersion
from in_process import GOOD, Async, Caller, Served, Sync, pixels
from integration.test_hot_swap import pictures
from service.engine import models as loading
from service.engine import presets
from service.engine.loras.residency import HostResidency
from service.translation import order_from

BASE_ONLY = {"refiner": {"enabled": False}}


def peft_file(models, seed: int, component: str = "unet", **options) -> bytes:
    """A random LoRA as diffusers writes it."""
    adapter = random_adapter(models, seed, component=component, **options)
    tensors = {}
    for name, change in adapter.changes[component].items():
        up, down = change.pair
        tensors[f"{component}.{name}.lora_A.weight"] = down.contiguous()
        tensors[f"{component}.{name}.lora_B.weight"] = up.contiguous()
    return bytes(save(tensors))


@pytest.fixture
def studio(serve, tmp_path, models) -> Served:
    """A service with a registry of its own: two versions of `ink`, a text-encoder LoRA, an embedding."""
    service = serve(data=tmp_path, audit_seconds=0)
    registry = service.components.loras.registry()
    registry.publish("ink", io.BytesIO(peft_file(models, 1)), alias="prod")
    registry.publish("ink", io.BytesIO(peft_file(models, 2)))
    registry.publish("words", io.BytesIO(peft_file(models, 3, "text_encoder_2", size=0.3)))
    widths = [models.text_encoder.config.hidden_size, models.text_encoder_2.config.hidden_size]
    vectors = {name: torch.ones(2, width) for name, width in zip(("clip_l", "clip_g"), widths, strict=True)}
    registry.publish("bad-hands", io.BytesIO(save(vectors)))
    for name in ("ohwx-one", "ohwx-two"):
        named = {"ohwx": torch.full((1, widths[1]), float(len(name)) + (name == "ohwx-two"))}
        registry.publish(name, io.BytesIO(save(named)))
    return service


@pytest.fixture(params=[Sync, Async], ids=["sync", "async"])
def caller(request, studio) -> Caller:
    return studio.caller(request.param)


def test_a_ref_brings_its_lora_in_and_the_receipt_names_the_bytes(caller, studio):
    plain = caller.generate(refiner=None)
    inked = caller.generate(loras=["ink:prod"])
    version = studio.components.loras.registry().resolve("ink@1")
    assert abs(pixels(inked.image.data) - pixels(plain.image.data)).mean() > 2
    (receipt,) = inked.image.receipt.loras
    assert (receipt.ref, receipt.digest, receipt.weight, receipt.scope) == (
        "ink@1",
        version.digest,
        1.0,
        "both",
    )
    assert receipt.auto_v3 == version.auto_v3
    assert [lora.ref for lora in inked.loras] == ["ink@1"]
    assert plain.image.receipt.loras == []


def test_the_receipt_sent_again_by_digest_gives_the_same_picture(caller):
    use = LoraUse(ref="ink", weight=-0.5, scope="uncond", start=0.25, blocks={"mid_block": 0.0})
    first = caller.generate(loras=[use])
    (receipt,) = first.image.receipt.loras
    again = caller.generate(loras=[use.model_copy(update={"ref": receipt.digest})])
    assert np.array_equal(pixels(first.image.data), pixels(again.image.data))
    assert (receipt.ref, receipt.blocks) == ("ink@2", {"mid_block": 0.0})


def test_the_picture_of_a_service_is_the_one_of_its_engine_alone(caller, studio, models):
    answer = caller.generate(loras=[LoraUse(ref="ink@1", weight=0.7)])
    adapter = random_adapter(models, 1)
    order = order_from(GenerateRequest(**GOOD), models, first_seed=GOOD["seed"])
    order = replace(order, loras=(a_lora(adapter, 0.7),))
    (alone,) = pictures(studio.engine, order, arranged(models, adapter))
    assert np.abs(pixels(answer.image.data) - alone.astype(int)).max() <= 1


def test_the_first_use_reads_from_the_disk_and_the_next_finds_it_in_memory(studio):
    caller = studio.caller()
    tiers = [caller.generate(loras=["ink@1"]).loras[0].tier for _ in range(2)]
    assert tiers == ["disk", "host"]
    reply = studio.http.post(
        "/v1/generate", json=GOOD | {"loras": [{"ref": "ink@1"}]}, headers={"Accept": "image/png"}
    )
    assert 'fetch;desc="host";dur=' in reply.headers["server-timing"]
    assert studio.metric("lora_activation_seconds_count", tier="disk") == 1
    assert studio.metric("lora_activation_seconds_count", tier="device") >= 1
    assert studio.metric("lora_resident_bytes", tier="host") > 0


def test_what_left_the_memory_is_read_back_as_it_was_arranged(studio, models, tmp_path):
    caller = studio.caller()
    first = caller.generate(loras=["ink@1"])
    registry = studio.components.loras.registry()
    digest = registry.resolve("ink@1").digest
    studio.components.adapters._residency().close()
    kept = next((tmp_path / "arranged").glob(f"{digest.removeprefix('sha256:')}-*"))
    fresh = HostResidency(
        lambda: registry,
        models.layout,
        dtype=models.dtype,
        budget_bytes=1 << 20,
        disk=studio.components.adapters._residency()._disk,
    )
    one, other = fresh.fetch(digest), studio.components.adapters._residency().fetch(digest)
    assert one.tier == "disk"
    for mine, theirs in zip(one.adapter._tensors(), other.adapter._tensors(), strict=True):
        assert torch.equal(mine, theirs)
    kept.write_bytes(kept.read_bytes()[:-9] + b"damaged!!")
    again = HostResidency(
        lambda: registry, models.layout, dtype=models.dtype, budget_bytes=0, disk=fresh._disk
    ).fetch(digest)
    assert torch.equal(next(again.adapter._tensors()), next(one.adapter._tensors()))
    assert first.loras[0].tier == "disk"


def test_an_embedding_counts_where_a_prompt_says_its_name(caller):
    plain = caller.generate(negative_prompt="no bad-hands, please")
    learned = caller.generate(negative_prompt="no bad-hands, please", loras=["bad-hands"])
    weighted = caller.generate(negative_prompt="no (bad-hands)++, please", loras=["bad-hands"])
    assert not np.array_equal(pixels(plain.image.data), pixels(learned.image.data))
    assert not np.array_equal(pixels(weighted.image.data), pixels(learned.image.data))


@pytest.mark.parametrize(
    ("fields", "pointer", "words"),
    [
        ({"loras": ["nobody"]}, "/loras/0/ref", "was not found"),
        ({"loras": ["ink", "ink@9"]}, "/loras/1/ref", "was not found"),
        ({"loras": ["in k"]}, "/loras/0/ref", "reference"),
        (
            {"loras": [LoraUse(ref="ink", blocks={"down_blocks.7": 1})]},
            "/loras/0/blocks/down_blocks.7",
            "did you mean",
        ),
        (
            {"loras": [LoraUse(ref="words", blocks={"mid_block": 1})]},
            "/loras/0/blocks",
            "does not touch the UNet",
        ),
        (
            {"loras": [LoraUse(ref="ink", components={"text_encoder": 0.5})]},
            "/loras/0/components/text_encoder",
            "unet",
        ),
        (
            {"loras": [LoraUse(ref="ink", scope="uncond")], "guidance_scale": 1.0},
            "/loras/0/scope",
            "no uncond branch",
        ),
        (
            {"loras": [LoraUse(ref="words", scope="uncond")], "negative_prompt": None},
            "/loras/0/scope",
            "without a negative prompt",
        ),
        (
            {"loras": ["ohwx-one", "ohwx-two"], "negative_prompt": "ohwx"},
            "/loras/1/ref",
            "both stand for 'ohwx'",
        ),
        ({"loras": [LoraUse(ref="ink", start=0.9)]}, "/loras/0/start", "none of the base's steps"),
        ({"loras": [LoraUse(ref="bad-hands", weight=0.5)]}, "/loras/0/weight", "is an embedding"),
        ({"loras": ["bad-hands"]}, "/loras/0/ref", "neither prompt says 'bad-hands'"),
    ],
)
def test_what_would_be_ignored_or_is_not_there_is_refused_with_a_pointer(caller, fields, pointer, words):
    with pytest.raises(InvalidRequest) as caught:
        caller.generate(**fields)
    (error,) = caught.value.errors
    assert error.pointer == pointer
    assert words in error.message


@pytest.mark.parametrize(
    "fault",
    [
        {"ref": "ink", "wieght": 1},
        {"ref": "ink", "weight": 99},
        {"ref": "ink", "start": 0.5, "end": 0.5},
        {"ref": "ink", "scope": "negative"},
        {"ref": "ink", "components": {"refiner": 1}},
        {"ref": "ink", "blocks": {}},
        {},
    ],
)
def test_a_malformed_use_is_refused_before_anything_is_asked(studio, fault):
    reply = studio.http.post("/v1/generate", json=GOOD | {"loras": [fault]})
    assert reply.status_code == 422
    assert reply.json()["code"] == "invalid_request"
    assert reply.json()["errors"][0]["pointer"].startswith("/loras/0")


def test_nine_loras_are_one_too_many(studio):
    reply = studio.http.post("/v1/generate", json=GOOD | {"loras": [{"ref": "ink"}] * 9})
    assert reply.status_code == 422


def test_a_version_that_is_deleted_after_it_was_resolved_still_serves_by_digest_until_it_is_collected(studio):
    caller, registry = studio.caller(), studio.components.loras.registry()
    before = caller.generate(loras=["ink@2"])
    registry.publish("ink", io.BytesIO(peft_file(studio.engine.models, 9)))
    registry.delete("ink", 2)
    with pytest.raises(InvalidRequest, match="was not found"):
        caller.generate(loras=["ink@2"])
    assert before.loras[0].ref == "ink@2"


def test_a_blob_that_is_gone_is_a_typed_503_and_pictures_without_it_go_on(studio, tmp_path):
    caller = studio.caller()
    digest = studio.components.loras.registry().resolve("ink@1").digest.removeprefix("sha256:")
    (tmp_path / "blobs" / "sha256" / digest[:2] / digest).unlink()
    with pytest.raises(Unavailable) as caught:
        caller.generate(loras=["ink@1"])
    assert caught.value.code == "blob_missing"
    assert caller.generate(loras=["ink@2"]).images
    assert caller.generate().images


def test_other_bytes_under_a_digest_are_never_used(studio, tmp_path, models):
    digest = studio.components.loras.registry().resolve("ink@1").digest.removeprefix("sha256:")
    path = tmp_path / "blobs" / "sha256" / digest[:2] / digest
    path.chmod(0o644)
    path.write_bytes(peft_file(models, 77))
    with pytest.raises(Unavailable):
        studio.caller().generate(loras=["ink@1"])


def test_requests_with_different_loras_at_once_give_their_solo_pictures(studio):
    uses = [
        [],
        ["ink@1"],
        [LoraUse(ref="ink@2", scope="uncond")],
        ["words"],
        [LoraUse(ref="ink@1", weight=-1)],
    ]
    caller = studio.caller()
    alone = [pixels(caller.generate(loras=loras).image.data) for loras in uses]

    async def at_once(client):
        return await asyncio.gather(*(client.generate(**GOOD, loras=loras) for loras in uses))

    for solo, answer in zip(alone, studio.in_a_loop(at_once), strict=True):
        assert np.abs(pixels(answer.image.data) - solo).max() <= 1


def test_readiness_turns_red_within_one_probe_of_a_flipped_weight(serve, tmp_path):
    own = loading.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)
    service = serve(over=own, data=tmp_path, audit_seconds=0)
    assert service.http.get("/readyz").status_code == 200
    assert service.metric("base_checksum_ok") == 1
    name = attention_layers(own)[0]
    layer = own.unets["base"].get_submodule(name)
    layer.weight.view(-1)[0] += 1e-3
    reply = service.http.get("/readyz")
    assert reply.status_code == 503
    assert service.metric("base_checksum_ok") == 0
    with pytest.raises(Unavailable):
        service.caller().generate()


def test_a_pinned_version_is_in_memory_until_it_is_let_go(serve, tmp_path, models):
    service = serve(data=tmp_path, lora_host_bytes=1)
    for seed, name in enumerate(("kept", "other")):
        service.components.loras.registry().publish(name, io.BytesIO(peft_file(models, seed)))
    caller = service.caller()
    pinned = service.http.put("/v1/loras/kept/versions/1/pin")
    assert (pinned.status_code, pinned.json()["tier"]) == (200, "disk")
    tiers = [caller.generate(loras=[ref]).loras[0].tier for ref in ("kept", "other", "kept", "other")]
    assert tiers == ["host", "disk", "host", "disk"]
    assert service.http.delete("/v1/loras/kept/versions/1/pin").status_code == 204
    assert caller.generate(loras=["kept"]).loras[0].tier == "disk"
    assert service.http.put("/v1/loras/nobody/versions/1/pin").status_code == 404
    assert service.metric("lora_evictions_total", tier="host") >= 2


def test_a_blend_draws_what_its_sources_draw_together(studio):
    caller = studio.caller()
    together = caller.generate(loras=[LoraUse(ref="ink@1", weight=0.6), LoraUse(ref="ink@2", weight=-0.4)])
    sources = [{"ref": "ink@1", "weight": 0.6}, {"ref": "ink@2", "weight": -0.4}]
    reply = studio.http.post("/v1/loras/mixed/blends", json={"sources": sources, "alias": "prod"})
    assert reply.status_code == 201
    assert reply.headers["location"] == "/v1/loras/mixed/versions/1"
    blended = caller.generate(loras=["mixed:prod"])
    assert np.abs(pixels(blended.image.data) - pixels(together.image.data)).max() <= 3
    again = studio.http.post("/v1/loras/mixed/blends", json={"sources": sources})
    assert (again.status_code, again.json()["existing"]) == (200, True)
    lineage = LoraVersion.model_validate(again.json()).lineage
    assert lineage is not None
    assert lineage.sources is not None
    assert (lineage.origin, lineage.job) == ("blend", None)
    assert [(one.ref, one.weight) for one in lineage.sources] == [("ink@1", 0.6), ("ink@2", -0.4)]
    assert lineage.request["method"] == reply.json()["lineage"]["request"]["method"]


@pytest.mark.parametrize(
    ("body", "code", "pointer"),
    [
        ({"sources": []}, "invalid_request", "/sources"),
        ({"sources": [{"ref": "nobody"}]}, "unknown_lora", "/sources/0/ref"),
        (
            {"sources": [{"ref": "ink"}], "method": "ties_svd", "density": 0.5, "rank": 600},
            "invalid_request",
            "/rank",
        ),
        ({"sources": [{"ref": "ink"}], "method": "cat", "density": 0.5}, "invalid_blend", "/density"),
        ({"sources": [{"ref": "ink"}], "method": "ties"}, "invalid_blend", "/density"),
        ({"sources": [{"ref": "ink"}, {"ref": "bad-hands"}]}, "invalid_blend", "/sources"),
        ({"sources": [{"ref": "ink"}], "method": "mean"}, "invalid_request", "/method"),
    ],
)
def test_a_blend_that_cannot_be_is_refused_and_nothing_is_published(studio, body, code, pointer):
    reply = studio.http.post("/v1/loras/mixed/blends", json=body)
    assert (reply.status_code, reply.json()["code"]) == (422, code)
    assert reply.json()["errors"][0]["pointer"] == pointer
    assert studio.http.get("/v1/loras/mixed").status_code == 404
