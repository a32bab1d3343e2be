"""Weights that change by themselves are found out."""

import numpy as np
import pytest
import torch

from adapters import a_lora, arranged, random_adapter
from builders import an_order
from integration.test_hot_swap import pictures
from service.engine import canary
from service.engine.audit import Auditor
from service.engine.engine import Engine
from service.engine.guard import Guard


def guard_of(engine: Engine, heard: list, canary_seconds: float = 1e9) -> Guard:
    first = canary.develop(engine).pixels_HWC
    return Guard(
        engine,
        first,
        audit_seconds=0,
        canary_seconds=canary_seconds,
        observe=lambda what, sound: heard.append((what, sound)),
    )


def flip(tensor: torch.Tensor) -> None:
    """The lowest bit of one number."""
    words = tensor.detach().view(-1).view(torch.int32)
    words[len(words) // 2] ^= 1


PLACES = {
    "a layer that loras bend": lambda m: m.unets["base"].mid_block.attentions[0].proj_in.weight,
    "a convolution": lambda m: m.unets["base"].conv_in.weight,
    "a bias": lambda m: m.unets["base"].conv_in.bias,
    "the refiner": lambda m: m.unets["refiner"].conv_out.weight,
    "the decoder": lambda m: m.vae.decoder.conv_out.weight,
    "a text encoder": lambda m: m.text_encoder_2.text_projection.weight,
    "a token": lambda m: m.text_encoder.get_input_embeddings().weight,
}


@pytest.mark.parametrize("place", PLACES)
def test_one_flipped_bit_is_found_at_the_next_look(own, place):
    heard = []
    guard = guard_of(own, heard)
    assert guard.look() is None
    flip(PLACES[place](own.models))
    assert "1 tensors" in guard.look()
    assert heard[-1] == ("weights", False)


def test_a_flip_in_the_pristine_copy_is_found_while_a_lora_is_in_force(own):
    adapter = random_adapter(own.models, 1)
    auditor = own.run(lambda: Auditor(own.models)).result()
    pictures(own, an_order(loras=(a_lora(adapter),)), arranged(own.models, adapter))
    assert own.models.weights["unet"].in_force
    assert own.run(auditor.inspect).result().sound
    name, pristine = next(
        (n, t) for n, t in own.models.weights["unet"].pristine() if n.endswith("attn1.to_q")
    )
    flip(pristine)
    assert f"unet.{name}.weight" in own.run(auditor.inspect).result().damaged


def test_two_rows_that_change_places_are_found(own):
    auditor = own.run(lambda: Auditor(own.models)).result()
    weight = own.models.unets["base"].conv_in.weight.data
    weight[[0, 1]] = weight[[1, 0]].clone()
    assert own.run(auditor.inspect).result().damaged == ("unet.conv_in.weight",)


def test_a_canary_that_looks_different_is_found_and_stays_found(own, monkeypatch):
    heard = []
    guard = guard_of(own, heard, canary_seconds=0)
    assert guard.look() is None
    real = canary.picture

    def other(engine):
        done = real(engine)
        done.pictures[0].pixels_HWC[:] = np.roll(done.pictures[0].pixels_HWC, 9, axis=0)
        return done

    monkeypatch.setattr(canary, "picture", other)
    assert "canary" in guard.look()
    monkeypatch.undo()
    assert "canary" in guard.look()
    assert heard[-1] == ("canary", False)


def test_a_look_during_a_long_step_answers_with_what_is_known(own, monkeypatch):
    import threading

    guard = guard_of(own, [])
    monkeypatch.setattr("service.engine.guard.PATIENCE_SECONDS", 0.05)
    release = threading.Event()
    own.run(release.wait)
    assert guard.look() is None
    release.set()
