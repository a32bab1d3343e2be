"""What a request for a comparison comes to: arms, prompts, seeds."""

import re

import pytest
from pydantic import ValidationError

from darkroom.types import Arm, CompareRequest, LoraUse, PictureSettings, Refiner, SeedCount
from service.compare.expansion import expanded, merged, request_of
from service.errors import InvalidOption

FOX = ("a fox",)


def arms_of(**fields) -> dict[str, dict]:
    """Each arm of a request with what its settings name."""
    request = CompareRequest(**{"prompts": FOX, **fields})
    return {arm.name: arm.settings.model_dump(exclude_unset=True) for arm in expanded(request).arms}


def refusal_of(**fields) -> InvalidOption:
    with pytest.raises(InvalidOption) as refused:
        arms_of(**fields)
    return refused.value


def test_an_arm_changes_what_it_names_and_keeps_the_rest_of_the_base():
    base = PictureSettings(guidance_scale=9, negative_prompt="blurry")
    arms = (
        Arm(name="as it is"),
        Arm(name="calm", set=PictureSettings(guidance_scale=3)),
        Arm(name="nothing said", set=PictureSettings(negative_prompt=None)),
    )
    assert arms_of(base=base, arms=arms) == {
        "as it is": {"guidance_scale": 9, "negative_prompt": "blurry"},
        "calm": {"guidance_scale": 3, "negative_prompt": "blurry"},
        "nothing said": {"guidance_scale": 9, "negative_prompt": None},
    }


def test_of_the_refiner_an_arm_changes_only_what_it_names():
    base = PictureSettings(refiner=Refiner(aesthetic_score=8))
    late = merged(base, PictureSettings(refiner=Refiner(denoising_end=0.9)))
    assert late.refiner == Refiner(aesthetic_score=8, denoising_end=0.9)
    assert merged(late, PictureSettings(refiner=None)).refiner is None


def test_an_arm_may_say_the_prompt_in_other_words():
    arm = Arm(name="louder", prompt="({prompt})1.4, sharp")
    request = CompareRequest(prompts=("a fox", "a crow"), seeds=(7,), arms=(Arm(name="plain"), arm))
    found = expanded(request)
    said = [request_of(*cell).prompt for cell in found.cells()]
    assert said == ["a fox", "(a fox)1.4, sharp", "a crow", "(a crow)1.4, sharp"]


def test_an_arm_whose_words_make_a_prompt_too_long_is_named():
    arms = (Arm(name="echo", prompt="{prompt}" * 300),)
    arm = expanded(CompareRequest(prompts=("a fox in the snow",), arms=arms)).arms[0]
    with pytest.raises(InvalidOption, match="4000") as refused:
        request_of(arm, "a fox in the snow", 1)
    assert refused.value.pointer == "/arms/0/prompt"


def test_a_misspelt_place_for_the_prompt_is_refused():
    refused = refusal_of(arms=(Arm(name="a"), Arm(name="b", prompt="a photo of {promt}")))
    assert (refused.pointer, "'{promt}' stands for nothing" in refused.message) == ("/arms/1/prompt", True)


def test_the_article_has_three_arms():
    assert arms_of(preset="article", lora=LoraUse(ref="wrong@1")) == {
        "base": {},
        "word": {"negative_prompt": "wrong"},
        "LoRA + word": {"negative_prompt": "wrong", "loras": ({"ref": "wrong@1"},)},
    }


def test_controlled_tells_apart_what_the_article_leaves_open():
    arms = arms_of(preset="controlled", lora=LoraUse(ref="w", weight=0.8), word="bad", placebo="table")
    use = {"ref": "w", "weight": 0.8}
    assert list(arms)[:3] == ["base", "word", "LoRA + word"]
    assert {name: arms[name] for name in list(arms)[3:]} == {
        "empty negative": {"negative_prompt": ""},
        "placebo word": {"negative_prompt": "table"},
        "LoRA": {"loras": (use,)},
        "sham LoRA + word": {"negative_prompt": "bad", "loras": ({**use, "sham": 0},)},
        "LoRA on uncond + word": {"negative_prompt": "bad", "loras": ({**use, "scope": "uncond"},)},
        "LoRA on cond + word": {"negative_prompt": "bad", "loras": ({**use, "scope": "cond"},)},
    }


def test_a_preset_adds_its_word_and_its_lora_to_those_of_the_base():
    base = PictureSettings(negative_prompt="blurry", loras=(LoraUse(ref="ink"),))
    arm = arms_of(preset="article", lora=LoraUse(ref="wrong"), base=base)["LoRA + word"]
    assert arm["negative_prompt"] == "blurry, wrong"
    assert [use["ref"] for use in arm["loras"]] == ["ink", "wrong"]


def test_axes_are_crossed():
    arms = arms_of(axes={"guidance_scale": [5, 9], "refiner.denoising_end": [0.6, 0.8]})
    assert arms["guidance_scale=5, refiner.denoising_end=0.8"] == {
        "guidance_scale": 5,
        "refiner": {"denoising_end": 0.8},
    }
    assert len(arms) == 4


def test_axes_are_zipped():
    arms = arms_of(axes={"guidance_scale": [5, 9], "num_inference_steps": [20, 40]}, combine="zip")
    assert list(arms) == [
        "guidance_scale=5, num_inference_steps=20",
        "guidance_scale=9, num_inference_steps=40",
    ]


def test_an_axis_of_loras_takes_refs_uses_and_lists_of_them():
    arms = arms_of(axes={"loras": [[], "ink@2", {"ref": "ink@2", "weight": 0.5}, ["a", "b"]]})
    assert list(arms) == ["no LoRA", "ink@2", "ink@2×0.5", "a + b"]
    assert [use["ref"] for use in arms["a + b"]["loras"]] == ["a", "b"]


def test_arms_come_from_preset_arms_and_axes_in_this_order():
    arms = arms_of(
        preset="article", lora=LoraUse(ref="w"), arms=(Arm(name="mine"),), axes={"scheduler": ["ddim"]}
    )
    assert list(arms) == ["base", "word", "LoRA + word", "mine", "scheduler=ddim"]


@pytest.mark.parametrize(
    ("fields", "pointer", "said"),
    [
        ({"axes": {"guidance": [5]}}, "/axes/guidance", "did you mean 'guidance_scale'"),
        ({"axes": {"guidance_scale": [5, "much"]}}, "/axes/guidance_scale/1", "number"),
        ({"axes": {"scheduler": ["euler", "magic"]}}, "/axes/scheduler/1", "euler"),
        ({"axes": {"refiner.denoising_end": [1.5]}}, "/axes/refiner.denoising_end/0", "less than or equal"),
        ({"axes": {"seed": [1]}}, "/axes/seed", "no axis 'seed'"),
        ({"axes": {"loras": [5]}}, "/axes/loras/0", "loras"),
        ({"axes": {"guidance_scale": [5, 5]}}, "/axes", "two arms are called"),
        (
            {"axes": {"guidance_scale": [5], "num_inference_steps": [1, 2]}, "combine": "zip"},
            "/axes",
            "as many values each",
        ),
        (
            {"axes": {"guidance_scale": list(range(1, 11)), "num_inference_steps": list(range(1, 11))}},
            "/axes",
            "100 arms",
        ),
        ({"arms": (Arm(name="a"), Arm(name="a"))}, "/arms/1/name", "two arms are called 'a'"),
        ({"arms": (Arm(name="plain"),), "baseline": "plane"}, "/baseline", "did you mean 'plain'"),
    ],
)
def test_what_cannot_be_compared_is_refused_where_it_stands(fields, pointer, said):
    refused = refusal_of(**fields)
    assert refused.pointer == pointer
    assert said in refused.message


def test_the_first_arm_is_the_baseline_where_none_is_named():
    arms = (Arm(name="one"), Arm(name="two"))
    assert expanded(CompareRequest(prompts=FOX, arms=arms)).baseline == "one"
    assert expanded(CompareRequest(prompts=FOX, arms=arms, baseline="two")).baseline == "two"


def test_more_seeds_of_a_root_begin_with_the_fewer():
    def seeds(count: int, root: int) -> tuple[int, ...]:
        return expanded(
            CompareRequest(prompts=FOX, seeds=SeedCount(count=count, root=root), arms=(Arm(name="a"),))
        ).seeds

    assert seeds(20, 0)[:8] == seeds(8, 0)
    assert len(set(seeds(200, 0))) == 200
    assert not set(seeds(50, 0)) & set(seeds(50, 1))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"arms": ()}, "nothing to compare"),
        ({"seeds": ()}, "at least 1 item"),
        ({"seeds": {"count": 0}}, "greater than or equal to 1"),
        ({"seeds": (1, 1)}, "`seeds` has the same one twice"),
        ({"prompts": ("a fox", "a fox")}, "`prompts` has the same one twice"),
        ({"prompts": ()}, "at least 1 item"),
        ({"preset": "article"}, "needs a `lora`"),
        ({"lora": LoraUse(ref="w")}, "are of a `preset`"),
        ({"word": "bad"}, "are of a `preset`"),
        ({"better": "higher"}, "is about the `metric`"),
        ({"combine": "zip"}, "is about `axes`"),
        ({"metric": "beauty"}, "prompt_adherence"),
        ({"name": "two\nlines"}, "String should match pattern"),
        ({"arms": ({"name": "a\0"},)}, "String should match pattern"),
        ({"arms": ({"name": "a", "set": {"guidence_scale": 5}},)}, "arms.0.set.guidence_scale"),
        ({"arms": ({"name": "a", "set": {"seed": 5}},)}, "arms.0.set.seed"),
    ],
)
def test_a_request_that_contradicts_itself_is_refused_by_the_contract(fields, said):
    good = {"prompts": FOX, "arms": (Arm(name="a"),)}
    CompareRequest.model_validate(good)
    with pytest.raises(ValidationError, match=re.escape(said)):
        CompareRequest.model_validate(good | fields)
