"""CLIP scores are those of plain transformers, from a tiny CLIP model that the test makes up."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from service.clip_scores import ClipScorer
from service.errors import ModelNotFound

PICTURE = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A CLIP model of random weights, saved as transformers saves one."""
    made = tmp_path_factory.mktemp("clip")
    units = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (made / "vocab.json").write_text(json.dumps({unit: i for i, unit in enumerate(units)}))
    (made / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(
        vocab=str(made / "vocab.json"), merges=str(made / "merges.txt"), model_max_length=77
    )
    tower = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = tower | {"vocab_size": len(units), "bos_token_id": len(units) - 2, "eos_token_id": len(units) - 1}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=16
        )
    )
    model.save_pretrained(made)
    images = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(images, tokenizer).save_pretrained(made)
    return made


def plain_score(folder: Path, prompt: str) -> float:
    model, processor = CLIPModel.from_pretrained(folder), CLIPProcessor.from_pretrained(folder)
    inputs = processor(text=[prompt], images=Image.fromarray(PICTURE), return_tensors="pt", truncation=True)
    with torch.no_grad():
        return float(100 * model(**inputs).logits_per_image / model.logit_scale.exp())


def test_the_score_is_a_hundred_times_the_cosine_of_plain_transformers(folder):
    scorer = ClipScorer(folder, offline=True)
    for prompt in ("a fox", "a cat in a hat"):
        assert scorer(PICTURE, prompt) == {"clip_score": pytest.approx(plain_score(folder, prompt), abs=1e-4)}
    assert scorer(PICTURE, "a fox") != scorer(PICTURE, "a cat in a hat")


def test_a_long_prompt_is_cut_at_77_tokens(folder):
    scorer = ClipScorer(folder, offline=True)
    first = " ".join(["a"] * 75)
    assert scorer(PICTURE, f"{first} fox") == scorer(PICTURE, f"{first} cat") == scorer(PICTURE, first)


def test_nothing_is_read_before_the_first_picture(tmp_path, folder):
    scorer = ClipScorer(tmp_path / "model", offline=True)
    shutil.copytree(folder, tmp_path / "model")
    assert scorer(PICTURE, "a fox").keys() == {"clip_score"}


def test_callers_from_several_threads_get_the_same_score(folder):
    scorer = ClipScorer(folder, offline=True)
    with ThreadPoolExecutor(4) as pool:
        scores = list(pool.map(lambda _: scorer(PICTURE, "a fox")["clip_score"], range(8)))
    assert len(set(scores)) == 1


def test_a_folder_that_is_no_model_is_named(tmp_path):
    with pytest.raises(ModelNotFound, match=r"there is no CLIP model in .*must be a folder with config.json"):
        ClipScorer(tmp_path, offline=True)(PICTURE, "a fox")


def test_a_model_of_another_kind_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ModelNotFound, match="kind 'bert'"):
        ClipScorer(tmp_path, offline=True)(PICTURE, "a fox")


def test_a_model_that_lacks_weights_is_refused(tmp_path, folder):
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["text_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelNotFound, match="lacks weights, such as text_projection"):
        ClipScorer(tmp_path, offline=True)(PICTURE, "a fox")
