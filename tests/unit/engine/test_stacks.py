"""What an order's LoRAs come to at each step and branch."""

import pytest
import torch

from service.engine.loras.arranged import Arranged, Changes
from service.engine.loras.stacks import EMPTY, NO_LORAS, Stacks, block_factor
from service.engine.orders import LoraOrder

NOTHING_IN_IT = Changes((), ())


def an_adapter(digest: str, *components: str, **tokens: int) -> Arranged:
    vectors = {token: {"text_encoder": torch.zeros(count, 4)} for token, count in tokens.items()}
    return Arranged(digest, dict.fromkeys(components or ("unet",), NOTHING_IN_IT), vectors)


def stacks_of(*loras: LoraOrder, **adapters: Arranged) -> Stacks:
    known = {lora.digest: an_adapter(lora.digest) for lora in loras}
    return Stacks(loras, known | adapters)


def a_lora(digest: str = "a", **fields) -> LoraOrder:
    return LoraOrder(f"{digest}@1", digest, digest, **fields)


def weights(stack) -> list[tuple[str, float]]:
    return [(part.digest, part.weight) for part in stack]


def test_without_loras_every_stack_is_empty():
    assert NO_LORAS.unet("cond", 0.0) == EMPTY
    assert not NO_LORAS.text("uncond", 0.5)


@pytest.mark.parametrize(
    ("scope", "cond", "uncond"), [("both", True, True), ("cond", True, False), ("uncond", False, True)]
)
def test_a_scope_bends_one_branch_or_both(scope, cond, uncond):
    stacks = stacks_of(a_lora(scope=scope))
    assert bool(stacks.unet("cond", 0.0)) is cond
    assert bool(stacks.unet("uncond", 0.0)) is uncond


def test_a_window_counts_from_its_start_to_before_its_end():
    stacks = stacks_of(a_lora(start=0.25, end=0.75))
    in_force = [done for done in (0.0, 0.2, 0.25, 0.5, 0.74, 0.75, 0.9) if stacks.unet("cond", done)]
    assert in_force == [0.25, 0.5, 0.74]


def test_a_stack_keeps_the_order_of_the_request_and_signed_weights():
    stacks = stacks_of(a_lora("b", weight=0.5), a_lora("a", weight=-1.5))
    assert weights(stacks.unet("cond", 0.0)) == [("b", 0.5), ("a", -1.5)]


def test_component_factors_multiply_the_weight_and_zero_leaves_a_component_alone():
    lora = a_lora(weight=2.0, components=(("text_encoder", 0.25), ("text_encoder_2", 0.0)))
    adapter = an_adapter("a", "unet", "text_encoder", "text_encoder_2")
    stacks = Stacks([lora], {"a": adapter})
    text = stacks.text("cond", 0.0)
    assert weights(stacks.unet("cond", 0.0)) == [("a", 2.0)]
    assert weights(text.text_encoder) == [("a", 0.5)]
    assert text.text_encoder_2 == EMPTY


def test_a_lora_is_in_no_stack_of_a_component_that_it_does_not_touch():
    stacks = Stacks([a_lora()], {"a": an_adapter("a", "text_encoder")})
    assert stacks.unet("cond", 0.0) == EMPTY
    assert stacks.text("cond", 0.0).text_encoder


def test_equal_stacks_of_different_requests_are_equal_and_share_passes():
    one, other = stacks_of(a_lora(weight=0.5)), stacks_of(a_lora(weight=0.5))
    assert one.unet("cond", 0.0) == other.unet("uncond", 0.3)
    assert hash(one.unet("cond", 0.0)) == hash(other.unet("uncond", 0.3))
    assert one.unet("cond", 0.0) != stacks_of(a_lora(weight=0.6)).unet("cond", 0.0)


def test_the_texts_to_encode_are_those_of_the_steps_without_doubles():
    lora = a_lora(start=0.5, scope="uncond")
    stacks = Stacks([lora], {"a": an_adapter("a", "text_encoder")})
    pairs = list(stacks.texts(8))
    assert [(bool(cond), bool(uncond)) for cond, uncond in pairs] == [(False, False), (False, True)]


def test_a_file_that_names_no_token_has_the_loras_name_for_one():
    lora = LoraOrder("bad-hands@2", "bad-hands", "a")
    stacks = Stacks([lora], {"a": an_adapter("a", **{"": 3})})
    text = stacks.text("uncond", 0.9)
    assert text.tokens == (("bad-hands", "a"),)
    assert text.vectors_for("text_encoder")["bad-hands"].shape == (3, 4)
    assert text.vectors_for("text_encoder_2") == {}


def test_what_is_kept_in_a_cache_is_equal_and_holds_no_adapter():
    text = Stacks([a_lora()], {"a": an_adapter("a", "text_encoder")}).text("cond", 0.0)
    kept = text.detached()
    assert kept == text
    assert hash(kept) == hash(text)
    assert kept.text_encoder[0].adapter.digest == ""


@pytest.mark.parametrize(
    ("layer", "factor"),
    [
        ("up_blocks.1.attentions.0.proj_in", 0.5),
        ("up_blocks.1.resnets.0.conv1", 0.25),
        ("up_blocks.10.resnets.0.conv1", 1.0),
        ("mid_block.resnets.0.conv1", 1.0),
        ("conv_in", -1.0),
    ],
)
def test_the_longest_block_name_that_a_layer_begins_with_counts(layer, factor):
    blocks = (("up_blocks.1", 0.25), ("up_blocks.1.attentions", 0.5), ("conv_in", -1.0))
    assert block_factor(blocks, layer) == factor
