"""The loop learns, stops, goes on to the same weights, and leaves the models as they were."""

import math
from importlib.util import find_spec

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load

from service.engine import presets
from service.training import checkpoint
from service.training.errors import TrainingDiverged
from service.training.optimizers import rate_factor
from service.training.recipes import filled_in
from tests.trainings import POCKET, a_request, a_training, fresh_models, noise_examples

needs_bitsandbytes = pytest.mark.skipif(
    find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed here; `make test-slow` brings it"
)
EXAMPLES = noise_examples((64, 64), (64, 64), (96, 48), (64, 64))


@pytest.fixture(scope="module")
def loaded():
    return fresh_models()


def weights_of(training, learned) -> bytes:
    for _ in training.run():
        pass
    file = learned.file(training.best_values(), dtype=torch.float32)
    learned.remove()
    return file


@pytest.mark.parametrize(
    ("kind", "recipe"),
    [
        ("subject", {}),
        ("subject", {"use_dora": True, "targets": "all-linear", "ema_decay": 0.9}),
        ("subject", {"text_encoder_learning_rate": 1e-3, "lr_scheduler": "cosine", "lr_warmup_steps": 2}),
        ("embedding", {"num_vectors": 3, "initializer": "star"}),
        ("pivotal", {"gradient_accumulation_steps": 2, "snr_gamma": 5.0, "noise_offset": 0.03}),
        ("subject", {"gradient_checkpointing": True, "caption_dropout": 0.5, "random_flip": True}),
        ("pivotal", {"optimizer": "prodigy", "learning_rate": 1.0, "lr_warmup_steps": 2}),
        # Of a rank whose factors are large enough to be kept in eight bits.
        pytest.param(
            "subject",
            {"optimizer": "adamw8bit", "rank": 48, "targets": "all-linear"},
            marks=needs_bitsandbytes,
            id="adamw8bit",
        ),
    ],
)
def test_a_training_that_was_interrupted_ends_in_the_very_same_file(loaded, kind, recipe):
    request = a_request(kind, recipe=recipe)
    whole = weights_of(*a_training(loaded, request, EXAMPLES))

    training, learned = a_training(loaded, request, EXAMPLES)
    for done in training.run():
        if done.step == 3:
            break
    kept = checkpoint.to_bytes(training.checkpoint())
    learned.remove()
    training, learned = a_training(loaded, request, EXAMPLES)
    training.go_on_from(checkpoint.from_bytes(kept))
    assert training.step == 3
    assert weights_of(training, learned) == whole


def test_the_models_are_as_they_were_when_what_was_learnt_is_removed(loaded):
    before = {name: value.clone() for name, value in loaded.unets["base"].state_dict().items()}
    weights_of(*a_training(loaded, a_request(recipe={"text_encoder_learning_rate": 1e-3}), EXAMPLES))
    after = loaded.unets["base"].state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_loss_falls_on_a_picture_that_is_shown_again_and_again(loaded):
    request = a_request(recipe={"max_train_steps": 60, "learning_rate": 1e-2})
    training, learned = a_training(loaded, request, EXAMPLES[:1])
    losses = [done.loss for done in training.run()]
    learned.remove()
    assert sum(losses[-20:]) < 0.8 * sum(losses[:20])


@needs_bitsandbytes
def test_adamw8bit_goes_nearly_the_way_of_adamw(loaded):
    learnt = {}
    for optimizer in ("adamw", "adamw8bit"):
        recipe = {"optimizer": optimizer, "rank": 48, "max_train_steps": 20}
        training, learned = a_training(loaded, a_request(recipe=recipe), EXAMPLES)
        first = torch.cat([value.flatten() for value in learned.first_values.values()])
        for _ in training.run():
            pass
        learnt[optimizer] = torch.cat([value.flatten() for value in learned.values().values()]) - first
        learned.remove()
    alike = torch.cosine_similarity(learnt["adamw"], learnt["adamw8bit"], dim=0)
    assert 0.98 < float(alike) < 1.0


def test_a_loss_that_is_no_number_ends_the_training_and_is_not_learnt_from(loaded):
    training, learned = a_training(loaded, a_request(), EXAMPLES)
    steps = training.run()
    next(steps)
    good = {name: value.clone() for name, value in learned.values().items()}
    spoilt = {name: torch.full_like(value, math.nan) for name, value in good.items()}
    with learned.wearing(spoilt), pytest.raises(TrainingDiverged, match="learning rate") as ended:
        next(steps)
    assert ended.value.step == 2
    assert training.step == 1
    learned.remove()


def test_a_checkpoint_of_another_training_is_not_gone_on_with(loaded):
    training, learned = a_training(loaded, a_request(), EXAMPLES)
    next(training.run())
    other = checkpoint.to_bytes(training.checkpoint())
    training._fingerprint = "another"
    with pytest.raises(ValueError, match="another training"):
        training.go_on_from(checkpoint.from_bytes(other))
    learned.remove()


@pytest.mark.parametrize("damage", [lambda d: d[:100], lambda d: b"", lambda d: d[:-50], lambda d: b"x" * 64])
def test_a_damaged_checkpoint_is_told_apart(loaded, damage):
    training, learned = a_training(loaded, a_request(), EXAMPLES)
    next(training.run())
    data = checkpoint.to_bytes(training.checkpoint())
    learned.remove()
    with pytest.raises(ValueError, match=r"damaged|no checkpoint"):
        checkpoint.from_bytes(damage(data))


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"alpha": 2.0},
        {"use_dora": True},
        {"targets": "all-linear"},
        {"text_encoder_learning_rate": 2e-2},
    ],
)
def test_the_file_draws_the_same_picture_in_stock_diffusers(loaded, recipe):
    request = a_request(recipe={"learning_rate": 2e-2, **recipe})
    training, learned = a_training(loaded, request, EXAMPLES)
    for _ in training.run():
        pass
    file = learned.file(training.best_values(), dtype=torch.float32)
    ours, stock, untouched = (_stock() for _ in range(3))
    ours.unet = loaded.unets["base"].eval()
    ours.text_encoder, ours.text_encoder_2 = loaded.text_encoder.eval(), loaded.text_encoder_2.eval()
    stock.load_lora_weights(load(file))
    drawn = [
        pipeline(
            "a red star on a blue background",
            num_inference_steps=3,
            generator=torch.Generator().manual_seed(1),
            output_type="latent",
        ).images
        for pipeline in (ours, stock, untouched)
    ]
    learned.remove()
    torch.testing.assert_close(drawn[0], drawn[1], atol=1e-4, rtol=0)
    assert (drawn[2] - drawn[0]).abs().max() > 1e-2


def _stock() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline.from_pretrained(presets.POCKET.base, variant="fp16", dtype=torch.float32)


def test_the_rate_rises_and_falls_as_the_recipe_says():
    recipe = filled_in(
        a_request(recipe={"max_train_steps": 100, "lr_scheduler": "cosine", "lr_warmup_steps": 10}), POCKET
    ).recipe
    factors = [rate_factor(recipe, step) for step in range(100)]
    assert factors[:10] == sorted(factors[:10])
    assert factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] < 0.01
