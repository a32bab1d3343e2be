"""What a recipe becomes for a kind of job and a model, and what it may not say."""

from dataclasses import replace

import pytest
from pydantic import ValidationError

from darkroom.types import TrainRequest
from service.errors import InvalidOption
from service.training import recipes
from service.training.estimates import estimate
from service.training.recipes import filled_in, targeted_layers
from tests.trainings import NO_DATASET, POCKET, SDXL, a_request


def test_nothing_is_left_to_default():
    recipe = filled_in(TrainRequest(kind="subject", name="x", dataset=NO_DATASET), SDXL).recipe
    unset = {name for name, value in recipe if value is None}
    assert unset == {
        "text_encoder_learning_rate",
        "snr_gamma",
        "ema_decay",
        "repeats",
    }  # none of it, or as fits


def test_a_negative_is_trained_as_in_the_article():
    request = filled_in(TrainRequest(kind="negative", name="wrong"), SDXL)
    assert request.instance_prompt == "wrong"
    assert (request.recipe.rank, request.recipe.alpha, request.recipe.max_train_steps) == (4, 4.0, 500)
    assert request.recipe.learning_rate == 1e-4
    assert request.recipe.targets == "attention"


def test_what_the_caller_says_is_kept():
    request = a_request(recipe={"rank": 7, "alpha": 3.5, "train_batch_size": 3, "sample_prompts": ()})
    recipe = filled_in(request, SDXL).recipe
    assert (recipe.rank, recipe.alpha, recipe.train_batch_size, recipe.sample_prompts) == (7, 3.5, 3, ())


def test_filling_in_twice_changes_nothing():
    once = filled_in(a_request(class_prompt="a shape"), POCKET)
    assert filled_in(once, POCKET) == once


def test_a_class_prompt_means_prior_preservation():
    assert filled_in(a_request(class_prompt="a shape"), POCKET).recipe.prior_preservation
    assert not filled_in(a_request(), POCKET).recipe.prior_preservation


@pytest.mark.parametrize(
    ("recipe", "pointer", "says"),
    [
        ({"targets": ("to_kk",)}, "/recipe/targets/0", "did you mean"),
        ({"rank": 512}, "/recipe/rank", "more than any of the trained layers"),
        ({"mixed_precision": "fp16"}, "/recipe/mixed_precision", "not trained on a CPU"),
        ({"resolution": 65}, "/recipe/resolution", "no multiple of 16"),
    ],
)
def test_what_cannot_be_is_refused_with_a_pointer(recipe, pointer, says):
    with pytest.raises(InvalidOption, match=says) as refused:
        filled_in(a_request(recipe=recipe), POCKET)
    assert refused.value.pointer == pointer


@pytest.mark.parametrize(("optimizer", "package"), [("adamw8bit", "bitsandbytes"), ("prodigy", "prodigyopt")])
def test_an_optimizer_whose_package_is_not_there_is_refused(monkeypatch, optimizer, package):
    monkeypatch.setattr(recipes, "find_spec", lambda name: None)
    with pytest.raises(InvalidOption, match=f"'{package}', which is not installed here") as refused:
        filled_in(a_request(recipe={"optimizer": optimizer}), POCKET)
    assert refused.value.pointer == "/recipe/optimizer"


def test_prodigy_finds_the_rate_so_that_the_recipes_is_a_factor_of_one():
    request = TrainRequest.model_validate(
        {
            "kind": "pivotal",
            "name": "x",
            "dataset": NO_DATASET,
            "token": "zorp",
            "recipe": {"optimizer": "prodigy"},
        }
    )
    recipe = filled_in(request, SDXL).recipe
    assert (recipe.learning_rate, recipe.embedding_learning_rate) == (1.0, 1.0)
    assert filled_in(filled_in(request, SDXL), SDXL).recipe == recipe


def test_prodigy_takes_one_factor_for_all_that_is_learnt():
    half = {"optimizer": "prodigy", "learning_rate": 0.5}
    assert filled_in(a_request("pivotal", recipe=half), POCKET).recipe.embedding_learning_rate == 0.5
    with pytest.raises(InvalidOption, match=r"1 cannot stand beside 0\.5") as refused:
        filled_in(a_request("pivotal", recipe={**half, "embedding_learning_rate": 1.0}), POCKET)
    assert refused.value.pointer == "/recipe/embedding_learning_rate"


def test_a_card_that_is_large_enough_without_the_service_is_advised_to_be_lent():
    request = filled_in(a_request(), SDXL)
    advice = "have the service lend its memory (DARKROOM_GPU_SHARING=pause)"
    for held_gib, helps in ((0, False), (1, False), (12, True)):
        card = replace(SDXL, memory_bytes=4 << 30, held_bytes=held_gib << 30)
        assert (advice in estimate(request, card, picture_count=1).advice) == helps


def test_an_optimizer_that_cannot_be_had_is_not_advised(monkeypatch):
    small_card = replace(SDXL, memory_bytes=4 << 30)
    advised = {}
    for there in (True, False):
        monkeypatch.setattr(recipes, "find_spec", lambda name, there=there: there or None)
        advised[there] = estimate(filled_in(a_request(), small_card), small_card, picture_count=1).advice
    assert set(advised[True]) - set(advised[False]) == {"take the optimizer `adamw8bit`"}


@pytest.mark.parametrize(("optimizer", "bytes_kept"), [("adamw8bit", 2), ("adamw", 8), ("prodigy", 16)])
def test_the_estimate_counts_what_the_optimizer_keeps(monkeypatch, optimizer, bytes_kept):
    monkeypatch.setattr(recipes, "find_spec", lambda name: True)
    rank = {"rank": 64, "learning_rate": 1.0}
    learnt = sum(
        64 * sum(SDXL.linear_layers[name]) for name in targeted_layers("attention", SDXL.linear_layers)
    )
    needed = {
        name: estimate(
            filled_in(a_request(recipe={**rank, "optimizer": name}), SDXL), SDXL, picture_count=1
        ).memory_bytes
        for name in (optimizer, "adamw")
    }
    assert needed[optimizer] - needed["adamw"] == learnt * (bytes_kept - 8)


def test_a_token_that_the_instance_prompt_does_not_say_is_refused():
    with pytest.raises(InvalidOption, match="learn nothing"):
        filled_in(a_request("embedding", instance_prompt="a heart"), POCKET)


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "subject"},
        {"kind": "embedding", "dataset": NO_DATASET},
        {"kind": "subject", "dataset": NO_DATASET, "token": "zorp"},
        {"kind": "subject", "dataset": NO_DATASET, "recipe": {"learning_rate": float("nan")}},
        {"kind": "subject", "dataset": NO_DATASET, "recipe": {"rank": 0}},
        {"kind": "subject", "dataset": NO_DATASET, "recipe": {"prior_preservation": True}},
        {"kind": "subject", "dataset": NO_DATASET, "recipe": {"learnig_rate": 1e-4}},
        {"kind": "subject", "dataset": "../etc"},
    ],
)
def test_requests_that_make_no_sense_are_no_requests(wrong):
    with pytest.raises(ValidationError):
        TrainRequest.model_validate({"name": "x"} | wrong)


def test_targets_are_presets_or_ends_of_names():
    layers = tuple(SDXL.linear_layers)
    assert targeted_layers("attention", layers) == layers[:4]
    assert targeted_layers("all-linear", layers) == layers
    assert targeted_layers(("net.2",), layers) == ("down.0.ff.net.2",)


def test_sdxl_fits_a_24_gb_card_with_checkpointing():
    told = estimate(filled_in(a_request(), SDXL), SDXL, picture_count=16)
    assert told.recipe.gradient_checkpointing
    assert told.fits


def test_what_does_not_fit_is_told_with_advice():
    request = a_request(
        recipe={"train_batch_size": 8, "gradient_checkpointing": False, "mixed_precision": "no"}
    )
    told = estimate(filled_in(request, SDXL), SDXL, picture_count=16)
    assert not told.fits
    assert "set `gradient_checkpointing`" in told.advice
