"""Tokenizers: CLIP's layout, whole words for the world, pieces for the rest."""

from pathlib import Path

import pytest
from transformers import CLIPTokenizer

from service.pocket.tokenizers import (
    load_tokenizers,
    padded_for_encoder_2,
    token_ids,
    vocabulary_words,
    write_tokenizers,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizers(folder)
    return folder


def test_layout_is_clips(folder: Path):
    first, second = load_tokenizers(folder)
    assert first.get_vocab()["!"] == 0
    assert first.bos_token_id == len(first) - 2
    assert first.eos_token_id == len(first) - 1
    assert first.pad_token_id == first.eos_token_id
    assert second.pad_token_id == 0


def test_every_word_of_the_world_is_one_token(folder: Path):
    tokenizer: CLIPTokenizer = load_tokenizers(folder)[0]
    assert [word for word in vocabulary_words() if len(tokenizer(word).input_ids) != 3] == []


def test_unknown_words_and_scripts_fall_back_to_pieces(folder: Path):
    ids = load_tokenizers(folder)[0]("Schrödinger's 猫, xyzzy!").input_ids
    assert len(ids) > 6
    assert load_tokenizers(folder)[0].unk_token_id not in ids[1:-1]


def test_second_padding_is_derived_from_the_first(folder: Path):
    first, second = load_tokenizers(folder)
    captions = ["a red circle", "", "wrong " * 90]
    derived = padded_for_encoder_2(token_ids(first, captions), first.eos_token_id)
    assert derived.equal(token_ids(second, captions))


def test_the_same_words_always_give_the_same_files(folder: Path, tmp_path: Path):
    write_tokenizers(tmp_path)
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / "tokenizer" / name).read_bytes() == (folder / "tokenizer" / name).read_bytes()
