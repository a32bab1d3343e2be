"""Prompts become embeddings: exactly diffusers' own where nothing is weighted, and steerable where something is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from builders import an_order, run
from service.engine import conditioning
from service.engine.conditioning import Conditioner
from service.engine.prompts import parse
from service.errors import InvalidPrompt

RED_ON_BLUE = "a big red circle on a blue background"


@pytest.fixture(scope="module")
def conditioner(models):
    return Conditioner(models)


def stock_embeddings(pipeline, prompt, negative):
    return pipeline.encode_prompt(
        prompt=prompt, negative_prompt=negative, do_classifier_free_guidance=True, device=torch.device("cpu")
    )


@pytest.mark.parametrize("negative", [None, "", "deformed, blurry"])
@pytest.mark.parametrize(
    "prompt",
    [RED_ON_BLUE, "a green star,white background", "  wolf   in Yosemite; 3.5 m, sci-fi! ", "größe 東京 🐱"],
)
@torch.inference_mode()
def test_an_unweighted_prompt_gives_exactly_what_diffusers_encodes(
    models, plain, conditioner, prompt, negative
):
    ours = conditioner.conditioning(an_order(prompt, negative, hand_over=0.8))
    for name, pipeline in (("base", plain.base), ("refiner", plain.refiner)):
        theirs = stock_embeddings(pipeline, prompt, negative)
        assert torch.equal(ours.cond[name].prompt_embeds, theirs[0])
        assert torch.equal(ours.uncond[name].prompt_embeds, theirs[1])
        assert torch.equal(ours.cond[name].pooled_prompt_embeds, theirs[2])
        assert torch.equal(ours.uncond[name].pooled_prompt_embeds, theirs[3])


def test_no_negative_prompt_and_an_empty_one_differ_on_the_base_only(conditioner):
    absent, empty = (
        conditioner.conditioning(an_order(negative=negative, hand_over=0.8)) for negative in (None, "")
    )
    assert not absent.uncond["base"].prompt_embeds.any()
    assert empty.uncond["base"].prompt_embeds.any()
    assert torch.equal(absent.uncond["refiner"].prompt_embeds, empty.uncond["refiner"].prompt_embeds)


def test_without_guidance_there_is_no_uncond_branch(conditioner):
    assert conditioner.conditioning(an_order(guidance_scale=1.0)).uncond is None


def test_markup_never_reaches_the_pooled_embedding(conditioner):
    weighted = conditioner.conditioning(an_order("a (big)++ red circle on a blue background"))
    unweighted = conditioner.conditioning(an_order(RED_ON_BLUE))
    assert torch.equal(
        weighted.cond["base"].pooled_prompt_embeds, unweighted.cond["base"].pooled_prompt_embeds
    )
    assert not torch.equal(weighted.cond["base"].prompt_embeds, unweighted.cond["base"].prompt_embeds)


def test_a_long_prompt_is_chunked_and_both_branches_are_equally_long(conditioner):
    long = ", ".join(["a red circle on a blue background"] * 40)
    result = conditioner.conditioning(an_order(long, "deformed", hand_over=0.8))
    for name in ("base", "refiner"):
        assert result.cond[name].prompt_embeds.shape[1] == result.uncond[name].prompt_embeds.shape[1]
        assert result.cond[name].prompt_embeds.shape[1] % 77 == 0
    report = result.tokens.prompt.text_encoder
    assert report.chunks == result.cond["base"].prompt_embeds.shape[1] // 77 > 3
    assert report.tokens > 300
    assert result.tokens.negative_prompt.text_encoder.chunks == 1


@pytest.mark.parametrize("awkward", [". " * 500, "." * 500, ", " * 550, "a" * 1000, "🐱" * 90, "。" * 250])
def test_an_awkward_long_prompt_is_encoded_and_not_cut(conditioner, awkward):
    result = conditioner.conditioning(an_order(awkward))
    assert torch.isfinite(result.cond["base"].prompt_embeds).all()
    assert result.tokens.prompt.text_encoder.chunks > 1


@pytest.mark.parametrize("endless", ["🐱" * 1000, "。" * 4000, ". " * 2000])
@pytest.mark.parametrize("field", ["prompt", "negative_prompt"])
def test_a_prompt_of_endless_tokens_is_refused_before_it_is_encoded(engine, endless, field):
    order = an_order(endless) if field == "prompt" else an_order(negative=endless)
    with pytest.raises(InvalidPrompt, match="are allowed; shorten it") as caught:
        run(engine, order)
    assert caught.value.field == field
    assert run(engine, an_order(num_inference_steps=1)).pictures


def test_many_lowered_weights_in_a_long_prompt_are_refused(engine):
    with pytest.raises(InvalidPrompt, match="90 lowered weights are too many"):
        run(engine, an_order(" ".join(f"cat (dog)0.{digit % 9 + 1} fish" for digit in range(90))))


def test_time_ids_are_the_stock_pipelines_own(plain):
    order = replace(
        an_order(hand_over=0.8),
        original_size=(128, 96),
        crops_coords_top_left=(8, 16),
        target_size=(64, 32),
        negative_original_size=(32, 40),
        negative_target_size=(16, 24),
        negative_crops_coords_top_left=(2, 4),
    )
    ids, negative = conditioning.base_time_ids(order)
    dim = plain.models.text_encoder_2.config.projection_dim
    stock = plain.base._get_add_time_ids((128, 96), (8, 16), (64, 32), torch.float32, dim)
    stock_negative = plain.base._get_add_time_ids((32, 40), (2, 4), (16, 24), torch.float32, dim)
    assert (ids, negative) == (stock[0].tolist(), stock_negative[0].tolist())
    refined = conditioning.refiner_time_ids(order, order.hand_over)
    stock = plain.refiner._get_add_time_ids(
        (128, 96), (8, 16), (64, 32), 6.0, 2.5, (32, 40), (2, 4), (16, 24), torch.float32, dim
    )
    assert refined == (stock[0][0].tolist(), stock[1][0].tolist())


def test_encodings_are_kept_up_to_a_number_of_bytes(models):
    conditioner = Conditioner(models, cache_bytes=400_000)
    for number in range(20):
        conditioner.conditioning(an_order(f"a circle number {number}"))
    kept = [encoded.size_bytes for encoded in conditioner._cache.values()]
    assert 1 < len(kept) < 20
    assert sum(kept) <= 400_000
    again = conditioner.conditioning(an_order("a circle number 19"))
    assert torch.equal(
        again.cond["base"].prompt_embeds,
        Conditioner(models).conditioning(an_order("a circle number 19")).cond["base"].prompt_embeds,
    )


def figure_share(pixels_HWC: np.ndarray) -> float:
    """Share of the pixels that differ from the border's median colour."""
    border = np.concatenate([pixels_HWC[0], pixels_HWC[-1], pixels_HWC[:, 0], pixels_HWC[:, -1]])
    distance = np.linalg.norm(pixels_HWC.astype(float) - np.median(border, axis=0), axis=-1)
    return float((distance > 60).mean())


def test_weighting_a_word_moves_what_it_means(engine):
    """`small`, weighted up, shrinks the figure; the mean of six seeds falls with every weight."""
    shares = []
    for weight in (0.2, 1.0, 1.8):
        done = run(
            engine,
            an_order(
                f"a (small){weight} red circle on a white background",
                seeds=tuple(range(6)),
                num_inference_steps=12,
            ),
        )
        shares.append(float(np.mean([figure_share(picture.pixels_HWC) for picture in done.pictures])))
    assert shares[0] > shares[1] > shares[2] > 0


def test_the_parsed_prompt_is_what_is_cached(models):
    conditioner = Conditioner(models)
    assert conditioner._encode(parse("a (red)1.5 ring")) is conditioner._encode(parse("a (red)1.5 ring"))
