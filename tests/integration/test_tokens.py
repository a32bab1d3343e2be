"""Textual inversion: learned tokens in a prompt, for that prompt alone."""

import contextlib

import pytest
import torch

from builders import an_order
from service.engine.conditioning import Conditioner
from service.engine.loras.arranged import Arranged
from service.engine.loras.stacks import NOTHING, Stacks, TextInForce
from service.engine.loras.tokens import TokenizerWithTokens, embedded
from service.engine.loras.words import is_said
from service.engine.orders import LoraOrder

PROMPT = "a red circle on a blue background"


def rows(models, count: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = {"text_encoder": 64, "text_encoder_2": 96}
    for component in widths:
        widths[component] = getattr(models, component).get_input_embeddings().weight.shape[1]
    return {name: torch.randn(count, width, generator=generator) for name, width in widths.items()}


def row_of(models, word: str) -> dict[str, torch.Tensor]:
    """The table's own vectors of a word."""
    return {
        component: getattr(models, component)
        .get_input_embeddings()
        .weight[tokenizer(word, add_special_tokens=False)["input_ids"]]
        for component, tokenizer in (
            ("text_encoder", models.tokenizer),
            ("text_encoder_2", models.tokenizer_2),
        )
    }


def in_force(token: str, vectors: dict[str, torch.Tensor]) -> TextInForce:
    lora = LoraOrder("it@1", "it", "sha256:it")
    return Stacks([lora], {"sha256:it": Arranged("sha256:it", {}, {token: vectors})}).text("cond", 0.0)


def encoded(models, prompt: str, text: TextInForce = NOTHING):
    return Conditioner(models).conditioning(an_order(prompt, "blurry"), text, text)


def test_a_token_with_the_vector_of_a_word_is_that_word(models):
    plain = encoded(models, PROMPT)
    learned = encoded(models, PROMPT.replace("circle", "<it>"), in_force("<it>", row_of(models, "circle")))
    for name in ("prompt_embeds", "pooled_prompt_embeds"):
        assert torch.equal(getattr(plain.cond["base"], name), getattr(learned.cond["base"], name))


def test_a_token_of_several_vectors_is_as_many_tokens(models):
    words = {
        name: torch.cat([row_of(models, w)[name] for w in ("big", "red")]) for name in row_of(models, "red")
    }
    plain = encoded(models, "a big red circle on a blue background")
    learned = encoded(models, "a it circle on a blue background", in_force("it", words))
    assert torch.equal(plain.cond["base"].prompt_embeds, learned.cond["base"].prompt_embeds)
    assert plain.tokens == learned.tokens


def test_a_weighted_token_is_weighted_as_the_word_would_be(models):
    for weight in ("++", "0.4"):
        plain = encoded(models, f"a (red){weight} circle on a blue background")
        learned = encoded(
            models, f"a (it){weight} circle on a blue background", in_force("it", row_of(models, "red"))
        )
        assert torch.equal(plain.cond["base"].prompt_embeds, learned.cond["base"].prompt_embeds)


def test_a_learned_vector_changes_the_conditioning_and_leaves_nothing_behind(models):
    before = encoded(models, PROMPT)
    text = in_force("circle", rows(models, 2))
    assert not torch.equal(
        before.cond["base"].prompt_embeds, encoded(models, PROMPT, text).cond["base"].prompt_embeds
    )
    after = encoded(models, PROMPT)
    assert torch.equal(before.cond["base"].prompt_embeds, after.cond["base"].prompt_embeds)
    assert torch.equal(before.cond["base"].pooled_prompt_embeds, after.cond["base"].pooled_prompt_embeds)


def test_the_refiner_reads_the_token_as_plain_text(models):
    order = an_order(PROMPT, hand_over=0.5)
    text = in_force("circle", rows(models, 1))
    plain, learned = (Conditioner(models).conditioning(order, t, t) for t in (NOTHING, text))
    assert torch.equal(plain.cond["refiner"].prompt_embeds, learned.cond["refiner"].prompt_embeds)
    assert not torch.equal(plain.cond["base"].prompt_embeds, learned.cond["base"].prompt_embeds)


def test_a_token_for_one_encoder_is_plain_text_to_the_other(models):
    vectors = {"text_encoder_2": rows(models, 1)["text_encoder_2"]}
    plain, learned = encoded(models, PROMPT), encoded(models, PROMPT, in_force("circle", vectors))
    width = models.text_encoder.get_input_embeddings().weight.shape[1]
    one, other = (c.cond["base"].prompt_embeds for c in (plain, learned))
    assert torch.equal(one[..., :width], other[..., :width])
    assert not torch.equal(one[..., width:], other[..., width:])


def test_a_long_prompt_with_tokens_is_chunked_as_the_words_would_be(models):
    long = "it " + ", ".join(["lovely old film of it"] * 30)
    text = in_force("it", row_of(models, "circle"))
    plain, learned = encoded(models, long.replace("it", "circle")), encoded(models, long, text)
    assert plain.tokens == learned.tokens
    torch.testing.assert_close(plain.cond["base"].prompt_embeds, learned.cond["base"].prompt_embeds)


def test_an_encoder_that_finds_the_end_as_its_highest_id_still_finds_it(models, monkeypatch):
    """As SDXL's second encoder does, whose config says 2 for the end."""
    monkeypatch.setattr(models.text_encoder_2.text_model, "eos_token_id", 2)
    plain = encoded(models, PROMPT)
    learned = encoded(models, PROMPT.replace("red", "it"), in_force("it", row_of(models, "red")))
    assert torch.equal(plain.cond["base"].pooled_prompt_embeds, learned.cond["base"].pooled_prompt_embeds)


def test_the_table_is_back_even_when_the_block_fails(models):
    table = models.text_encoder.get_input_embeddings()
    with (
        contextlib.suppress(ZeroDivisionError),
        embedded(models.text_encoder, [torch.zeros(1, table.weight.shape[1])]),
    ):
        assert models.text_encoder.get_input_embeddings() is not table
        raise ZeroDivisionError
    assert models.text_encoder.get_input_embeddings() is table


@pytest.mark.parametrize(
    ("token", "text", "said"),
    [
        ("it", "a it circle", True),
        ("it", "a white circle", False),
        ("IT", "a (it)++ circle", True),
        ("<it>", "a <it>, big", True),
        ("bad-hands", "no bad-hands, please", True),
        ("bad-hands", "bad-hands2", False),
        ("a.b", "axb", False),
    ],
)
def test_a_token_is_said_where_it_stands_as_a_word_of_its_own(models, token, text, said):
    assert is_said(token, text) is said
    ids = TokenizerWithTokens(models.tokenizer, {token: torch.zeros(1, 4)})([text], truncation=False)
    assert (min(ids["input_ids"][0]) < 0) is said


def test_the_longest_of_two_tokens_counts(models):
    tokenizer = TokenizerWithTokens(models.tokenizer, {"my": torch.zeros(1, 4), "my cat": torch.zeros(2, 4)})
    (ids,) = tokenizer(["my cat and my dog"], truncation=False)["input_ids"]
    assert [number for number in ids if number < 0] == [-2, -3, -1]
