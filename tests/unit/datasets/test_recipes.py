"""What a synthesis will draw."""

import pytest

from darkroom.types import SynthesizeRequest
from service.datasets.recipes import KEYWORDS, filled_in, planned
from service.engine import prompts
from service.errors import InvalidOption, InvalidPrompt
from service.pocket import world

WRONG = SynthesizeRequest(recipe="wrong")


def drawn(request, *, pocket=False):
    return planned(filled_in(request, pocket=pocket))


def test_the_recipe_wrong_is_that_of_the_article():
    pictures = drawn(WRONG)
    assert len(pictures) == len({picture.request.prompt for picture in pictures}) * 6 == 78
    assert len(KEYWORDS) == 13
    first = pictures[0].request
    assert first.prompt.startswith(
        "(low quality)++++, bad hands, random text, error, missing or extra fingers, cropped"
    )
    assert [picture.request.guidance_scale for picture in pictures[:7]] == [8, 9, 10, 11, 12, 13, 8]
    assert (first.num_inference_steps, first.negative_prompt, first.refiner) == (50, None, None)
    assert (first.output.format, first.output.metadata) == ("png", "none")
    assert {picture.caption for picture in pictures} == {"wrong"}


def test_each_keyword_is_raised_once_among_all_the_others():
    for place, keyword in enumerate(KEYWORDS):
        parsed = prompts.parse(drawn(WRONG)[6 * place].request.prompt)
        raised = [fragment.text for fragment in parsed.fragments if fragment.weight != 1]
        assert raised == [keyword]
        assert parsed.plain.replace(" ,", ",") == ", ".join(KEYWORDS)


def test_the_pocket_model_gets_its_own_defects_in_scenes_that_it_knows():
    pictures = drawn(WRONG, pocket=True)
    assert len(pictures) == 78
    assert {picture.request.num_inference_steps for picture in pictures} == {20}
    texts = [picture.request.prompt for picture in pictures]
    assert len(set(texts)) == 39
    for word in (*world.DEFECTS, *world.VAGUE_DEFECTS):
        assert sum(f" {word} " in f" {text} " for text in texts) >= 6
    for text in texts:
        words = text.split(" photo of ")[1].split()
        assert not world.is_held_out(words[2], words[1], words[5]), text


def test_every_picture_has_a_seed_of_its_own_that_comes_back():
    seeds = [picture.request.seed for picture in drawn(WRONG)]
    assert len(set(seeds)) == 78
    assert seeds == [picture.request.seed for picture in drawn(WRONG)]
    assert seeds[0] == 1_427_366_890  # of sha256("0/0")
    other = drawn(WRONG.model_copy(update={"seed": 1}))
    assert set(seeds).isdisjoint(picture.request.seed for picture in other)


def test_a_recipe_can_be_overridden():
    request = SynthesizeRequest(
        recipe="wrong", guidance_scales=(3.0,), images_per_prompt=2, num_inference_steps=7, caption="bad"
    )
    pictures = drawn(request)
    assert len(pictures) == 26
    assert {picture.request.guidance_scale for picture in pictures} == {3.0}
    assert {picture.caption for picture in pictures} == {"bad"}
    assert pictures[0].request.prompt == pictures[1].request.prompt
    assert {picture.request.num_inference_steps for picture in pictures} == {7}


def test_prompts_without_a_recipe_are_their_own_captions_without_weights():
    request = SynthesizeRequest(prompts=("a (red)1.3 fox", "sky-blue (sea)--, calm"), guidance_scales=(5, 7))
    pictures = drawn(request)
    assert [picture.file for picture in pictures] == ["0000.png", "0001.png", "0002.png", "0003.png"]
    assert [picture.caption for picture in pictures] == ["a red fox"] * 2 + ["sky-blue sea, calm"] * 2
    assert drawn(SynthesizeRequest(prompts=("a fox",)))[0].request.guidance_scale == 7.5


def test_what_is_filled_in_says_all_and_fills_in_to_itself():
    for request in (WRONG, SynthesizeRequest(prompts=("a fox",), name="foxes")):
        for pocket in (True, False):
            filled = filled_in(request, pocket=pocket)
            assert filled.prompts
            assert filled.guidance_scales
            assert filled.num_inference_steps
            assert filled_in(filled, pocket=not pocket) == filled


def test_a_prompt_that_cannot_be_read_is_named_by_its_place():
    with pytest.raises(InvalidPrompt) as refused:
        drawn(SynthesizeRequest(prompts=("a fox", "a (fox")))
    assert (refused.value.field, refused.value.position) == ("prompts/1", 2)


def test_too_many_pictures_are_refused_before_one_is_made():
    request = SynthesizeRequest(prompts=("a fox",) * 20, images_per_prompt=64)
    with pytest.raises(InvalidOption, match="would be 1280 pictures and 1000 is the most"):
        filled_in(request, pocket=True)
