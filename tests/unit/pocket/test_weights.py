"""The committed weights: what the model card promises, on a smaller sample."""

import pytest
import torch

from service.pocket import WEIGHTS
from service.pocket.config import Config
from service.pocket.drawing import Pocket
from service.pocket.evaluate import binding, obedience
from service.pocket.folders import load_base, load_refiner
from service.pocket.intervals import read_figures
from service.pocket.measure import read
from service.pocket.questions import pair_questions, plain_questions, single_questions


@pytest.fixture(scope="module")
def pocket() -> Pocket:
    return Pocket(load_base(WEIGHTS / "base"), load_refiner(WEIGHTS / "refiner"), Config())


def test_both_folders_fit_in_25_megabytes():
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) <= 25e6


def test_prompts_are_obeyed_as_the_card_says(pocket: Pocket):
    """No figure of a small fresh sample lies beyond doubt below the committed evaluation's."""
    promised = {figure.name: figure for figure in read_figures(WEIGHTS.parent / "evaluation.json")}
    singles, pairs = single_questions(32, seed=71), pair_questions(16, seed=72)
    for figure in [*obedience(pocket.draw, singles), *binding(pocket.draw, pairs)]:
        assert figure.high >= promised[figure.name].low - 0.05, str(figure)


def test_a_seed_gives_the_same_picture_alone_and_in_a_batch(pocket: Pocket):
    prompts = ["a red circle on a white background", "a blue star on a yellow background"]
    together = pocket.draw(prompts, [1, 2])
    torch.testing.assert_close(pocket.draw(prompts[1:], [2])[0], together[1], atol=2e-3, rtol=0)


def test_seeds_differ(pocket: Pocket):
    one, two = pocket.draw(["a green ring on a black background"] * 2, [1, 2])
    assert (one - two).abs().mean() > 0.02


def test_unknown_words_after_the_prompt_do_no_harm(pocket: Pocket):
    prompts = [f"a red circle on a blue background, {words}" for words in ("xyzzy 猫", "Taylor Swift (live)")]
    for picture in pocket.draw(prompts, [3, 4]):
        assert read(picture).background == "blue"
        assert read(picture).things[0].colour == "red"


def test_unweighted_compel_equals_diffusers(pocket: Pocket):
    assert pocket.compel_error("a big red circle left of a blue square on a white background") == 0.0


def test_refiner_finishes_what_the_base_began(pocket: Pocket):
    questions, seeds = plain_questions(8, seed=73), list(range(8))
    prompts = [question.prompt for question in questions]
    latents = pocket.draw_unfinished(prompts, seeds)
    begun, finished = pocket.decode(latents), pocket.refine(latents, prompts, seeds)
    purity = [sum(read(picture).purity for picture in pictures) / 8 for pictures in (begun, finished)]
    assert purity[1] > purity[0] + 0.05
