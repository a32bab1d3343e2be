"""What a caller gets for a good request: the picture that was asked for, and how to get it again."""

import asyncio
import inspect
from typing import get_args

import numpy as np
import pytest

from darkroom import AsyncDarkroom, Darkroom, GenerateRequest, LoraUse, Output, Receipt, Refiner
from darkroom.types import ImageFormat, MetadataLevel, SchedulerName
from in_process import GOOD, pixels
from service.images import read_receipt

ONLY_IN_A_STREAM = {"previews"}
EVERYTHING = {
    "prompt": "a (red)1.3 circle on a blue- background",
    "negative_prompt": "a green square",
    "width": 72,
    "height": 56,
    "num_inference_steps": 6,
    "guidance_scale": 4.5,
    "scheduler": "dpmpp_2m_karras",
    "seed": 2**63 + 5,
    "num_images": 2,
    "refiner": Refiner(enabled=True, denoising_end=0.5, aesthetic_score=7.0, negative_aesthetic_score=1.5),
    "loras": (
        LoraUse(
            ref="ink@1",
            weight=0.5,
            scope="cond",
            start=0.1,
            end=0.4,
            components={"unet": 0.75},
            blocks={"mid_block": -1.0, "up_blocks.0": 0.5},
        ),
    ),
    "original_size": (100, 90),
    "crops_coords_top_left": (3, 4),
    "target_size": (80, 70),
    "negative_original_size": (50, 40),
    "negative_crops_coords_top_left": (1, 2),
    "negative_target_size": (60, 30),
    "output": Output(format="webp", quality=70, metadata="full"),
    "tokens": True,
    "timeout_seconds": 250.0,
}


def replay(receipt: Receipt, output: Output | None = None) -> GenerateRequest:
    """The request that makes the picture of a receipt again."""
    told = receipt.model_dump(include=set(GenerateRequest.model_fields) - {"refiner", "loras"})
    loras = [LoraUse(**lora.model_dump(include=set(LoraUse.model_fields))) for lora in receipt.loras]
    if receipt.refiner is None:
        refiner = Refiner(enabled=False)
    else:
        refiner = Refiner(**receipt.refiner.model_dump(include=set(Refiner.model_fields)))
    return GenerateRequest(**told, refiner=refiner, loras=loras, output=output or Output())


def test_every_field_of_a_request_arrives(client, service, monkeypatch):
    arrived = []
    generate = service.components.generation.generate

    async def listen(request):
        arrived.append(request)
        return await generate(request)

    monkeypatch.setattr(service.components.generation, "generate", listen)
    assert set(EVERYTHING) == set(GenerateRequest.model_fields) - ONLY_IN_A_STREAM
    client.generate(**EVERYTHING)
    assert arrived == [GenerateRequest(**EVERYTHING)]


def test_every_field_of_a_request_has_its_effect(client):
    made = client.generate(**EVERYTHING)
    assert [image.seed for image in made] == [2**63 + 5, 2**63 + 6]
    assert made.tokens is not None
    for image in made:
        assert (image.media_type, image.width, image.height) == ("image/webp", 72, 56)
        assert image.pil().size == (72, 56)
        receipt = image.receipt.model_dump()
        for name in set(EVERYTHING) & set(receipt) - {"seed", "refiner", "loras"}:
            assert receipt[name] == EVERYTHING[name], name
        (lora,) = image.receipt.loras
        (use,) = EVERYTHING["loras"]
        assert lora.model_dump(include=set(LoraUse.model_fields)) == use.model_dump()
        assert image.receipt.refiner.model_dump(exclude={"num_inference_steps"}) == EVERYTHING[
            "refiner"
        ].model_dump(exclude={"enabled"})


@pytest.mark.parametrize("kind", [Darkroom, AsyncDarkroom])
def test_the_clients_defaults_are_the_services(kind):
    parameters = inspect.signature(kind.generate).parameters
    for name in set(GenerateRequest.model_fields) - ONLY_IN_A_STREAM - {"prompt"}:
        assert parameters[name].default == GenerateRequest.model_fields[name].default, name


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"negative_prompt": "", "scheduler": "euler_ancestral"},
        {"refiner": Refiner(enabled=False), "guidance_scale": 1.0},
        {"seed": None, "width": 72, "original_size": (10, 10), "scheduler": "unipc"},
        {k: v for k, v in EVERYTHING.items() if k not in ("num_images", "output", "tokens")},
    ],
    ids=["defaults", "empty-negative", "base-only", "drawn-seed", "everything"],
)
def test_a_receipt_makes_the_same_file_again(client, changes):
    image = client.generate(**changes).image
    again = client.generate_request(replay(image.receipt)).image
    assert again.data == image.data


def test_a_file_alone_is_enough_to_make_it_again(client):
    output = Output(format="jpeg")
    image = client.generate(seed=None, output=output).image
    assert client.generate_request(replay(read_receipt(image.data), output)).image.data == image.data


def test_no_negative_prompt_and_an_empty_one_are_told_apart(client):
    absent, empty = (client.generate(negative_prompt=negative).image for negative in (None, ""))
    assert (absent.receipt.negative_prompt, empty.receipt.negative_prompt) == (None, "")
    assert (read_receipt(absent.data).negative_prompt, read_receipt(empty.data).negative_prompt) == (None, "")
    assert np.abs(pixels(absent.data) - pixels(empty.data)).max() > 0


@pytest.mark.parametrize("format_", get_args(ImageFormat))
@pytest.mark.parametrize("metadata", get_args(MetadataLevel))
def test_a_file_is_of_the_format_and_says_as_much_as_was_asked(service, reference, format_, metadata):
    image = service.caller().generate(output=Output(format=format_, metadata=metadata, quality=95)).image
    picture = image.pil()
    assert (picture.format, image.media_type) == (format_.upper(), f"image/{format_}")
    written = picture.info.get("parameters") or picture.info.get("exif")
    assert (written is None) == (metadata == "none")
    assert read_receipt(image.data) == (image.receipt if metadata == "full" else None)
    tolerance = 0 if format_ == "png" else 12
    assert np.abs(pixels(image.data) - pixels(reference)).mean() <= tolerance


def test_each_image_has_the_seed_after_the_one_before(client):
    made = client.generate(seed=41, num_images=3)
    assert [(image.seed, image.receipt.seed) for image in made] == [(41, 41), (42, 42), (43, 43)]
    alone = client.generate(seed=43).image
    assert np.abs(pixels(made[2].data) - pixels(alone.data)).max() <= 1
    assert np.abs(pixels(made[0].data) - pixels(alone.data)).max() > 1


def test_seeds_go_on_at_zero_after_the_last(client):
    made = client.generate(seed=2**64 - 1, num_images=2)
    assert [image.seed for image in made] == [2**64 - 1, 0]
    assert np.abs(pixels(made[1].data) - pixels(client.generate(seed=0).image.data)).max() <= 1


def test_a_seed_that_is_not_given_is_drawn_and_told(client):
    one, other = (client.generate(seed=None).image for _ in range(2))
    assert one.seed != other.seed
    assert client.generate(seed=one.seed).image.data == one.data


def test_the_size_is_the_models_own_unless_told(client):
    model = client.info().model
    image = client.generate().image
    assert (image.width, image.height) == (model.width, model.height) == image.pil().size
    assert (image.receipt.model, image.receipt.model_fingerprint) == (model.name, model.fingerprint)


def test_tokens_are_counted_where_asked(client):
    assert client.generate().tokens is None
    short = client.generate(tokens=True).tokens
    assert short.prompt.text_encoder.chunks == 1
    assert short.prompt.text_encoder.tokens >= 7
    assert short.negative_prompt is None
    long = client.generate(
        "a red circle " * 60, negative_prompt="(blurry)1.2", tokens=True, num_inference_steps=1
    ).tokens
    assert long.prompt.text_encoder_2.chunks > 1
    assert long.prompt.text_encoder_2.tokens >= 180
    assert long.negative_prompt.text_encoder.chunks == 1


def test_timings_add_up_to_the_total(client):
    timings = client.generate().timings
    parts = timings.model_dump(exclude={"total"})
    assert all(seconds >= 0 for seconds in parts.values())
    assert min(timings.base, timings.refiner, timings.decode, timings.encode_image) > 0
    assert 0.5 * timings.total < sum(parts.values()) <= timings.total


def test_without_the_refiner_the_base_makes_all_steps(client):
    receipt = client.generate(refiner=Refiner(enabled=False)).image.receipt
    assert (receipt.refiner, receipt.base_steps) == (None, 4)
    receipt = client.generate(refiner=Refiner(denoising_end=0.5)).image.receipt
    assert (receipt.base_steps, receipt.refiner.num_inference_steps) == (2, 2)


@pytest.mark.parametrize("scheduler", get_args(SchedulerName))
@pytest.mark.parametrize("denoising_end", [0.0, 0.8, 1.0])
def test_every_scheduler_hands_over_anywhere(service, scheduler, denoising_end):
    made = service.caller().generate(
        scheduler=scheduler, num_inference_steps=3, refiner=Refiner(denoising_end=denoising_end)
    )
    receipt = made.image.receipt
    assert receipt.base_steps + receipt.refiner.num_inference_steps == 3


def test_parallel_requests_get_their_own_pictures(service):
    async def all_at_once(client):
        return await asyncio.gather(*(client.generate(**GOOD | {"seed": seed}) for seed in range(6)))

    for seed, made in enumerate(service.in_a_loop(all_at_once)):
        alone = service.caller().generate(seed=seed)
        assert made.image.seed == seed
        assert np.abs(pixels(made.image.data) - pixels(alone.image.data)).max() <= 1


def test_what_the_service_is_can_be_asked(client):
    info = client.info()
    assert (info.name, info.ready, info.model.refiner) == ("darkroom", True, True)
    assert set(info.schedulers) == set(get_args(SchedulerName))
    assert set(info.formats) == set(get_args(ImageFormat))
