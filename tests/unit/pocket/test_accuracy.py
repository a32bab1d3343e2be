"""Accuracy: prompts of the pocket world are understood in every wording, and pictures are held against them."""

import random
from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from service.pocket.accuracy import Asked, AskedThing, pocket_scores, understood
from service.pocket.render import render
from service.pocket.world import SHAPES, Scene, caption, sample_scene


def faultless(count: int, seed: int = 3, pairs: float = 0.5) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, hidden=0, captioned=0, pairs=pairs) for _ in range(count)]


def drawn(scenes: list[Scene]) -> np.ndarray:
    """uint8 RGB of (N, 64, 64, 3)."""
    return (render(scenes) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def truth(scene: Scene) -> Asked:
    things = [
        AskedThing(t.shape, t.colour, t.size, "" if t.style == "plain" else t.style) for t in scene.things
    ]
    things[0].place = scene.place
    return Asked(things, scene.background, {0: scene.relation} if scene.relation else {})


def mean_accuracy(pictures: np.ndarray, prompts: list[str]) -> float:
    scores = [pocket_scores(picture, prompt) for picture, prompt in zip(pictures, prompts, strict=True)]
    return sum(score["pocket_accuracy"] for score in scores) / len(scores)


def test_every_wording_of_a_scene_is_understood_as_that_scene():
    rng = random.Random(8)
    for scene in faultless(600):
        said = caption(scene, rng, noise=0.5, drop=0)
        told = understood(said)
        expected = truth(scene)
        if scene.relation and not told.relations:  # the caption said "next to", "beside" or "and"
            expected = replace(expected, relations={})
        assert told == expected, said


def test_what_a_caption_leaves_out_is_not_asked():
    rng = random.Random(9)
    for scene in faultless(300):
        said = caption(scene, rng, drop=0.4)
        told, all_of_it = understood(said), truth(scene)
        assert told.background in ("", all_of_it.background)
        for asked, drawn_thing in zip(told.things, all_of_it.things, strict=True):
            for name in ("shape", "colour", "size", "style", "place"):
                assert getattr(asked, name) in ("", getattr(drawn_thing, name)), said


def test_names_of_defects_and_idle_words_ask_for_nothing_that_can_be_read():
    assert understood("deformed, blurry") == Asked()
    assert understood("ugly, low quality, 4k the of wolf") == Asked()


@pytest.mark.parametrize(
    "weighted",
    [
        "a (small)1.3 red++ circle (on the left)0.8 on a (blue background)1.2",
        "a small red circle- on the left, (blue)+ background",
        '"a small red circle"1.1 on the left against a blue background',
    ],
)
def test_weights_of_compel_change_nothing_about_what_is_asked(weighted):
    assert understood(weighted) == understood("a small red circle on the left on a blue background")


def test_drawings_show_what_their_captions_say():
    scenes = faultless(150, seed=5)
    prompts = [caption(scene, random.Random(i), drop=0) for i, scene in enumerate(scenes)]
    assert mean_accuracy(drawn(scenes), prompts) > 0.96


def test_each_asked_property_counts_the_same():
    scene = next(s for s in faultless(50, pairs=0) if s.things[0].style == "plain" and not s.place)
    thing, picture = scene.things[0], drawn([scene])[0]
    other_shape = next(shape for shape in SHAPES if shape != thing.shape)
    other_colour = "red" if "red" not in (thing.colour, scene.background) else "green"

    def accuracy(colour: str, shape: str, ground: str) -> float:
        return pocket_scores(picture, f"a {colour} {shape} on a {ground} background")["pocket_accuracy"]

    assert accuracy(thing.colour, thing.shape, scene.background) == 1
    assert accuracy(other_colour, thing.shape, scene.background) == pytest.approx(2 / 3)
    assert accuracy(other_colour, other_shape, scene.background) == pytest.approx(1 / 3)
    assert accuracy(other_colour, other_shape, other_colour) == 0


def test_a_relation_the_other_way_round_is_wrong():
    scenes = [s for s in faultless(120, pairs=1) if s.relation == "left of"][:20]
    pictures = drawn(scenes)
    names = [[f"a {thing.colour} {thing.shape}" for thing in scene.things] for scene in scenes]
    right = mean_accuracy(pictures, [f"{a} left of {b}" for a, b in names])
    wrong = mean_accuracy(pictures, [f"{a} right of {b}" for a, b in names])
    assert right > 0.97
    assert right - wrong > 0.15  # one property of five


def test_a_thing_that_is_missing_has_no_property_right():
    (scene,) = [s for s in faultless(20, pairs=0) if s.things[0].style == "plain"][:1]
    thing = scene.things[0]
    only = f"a {thing.colour} {thing.shape}"
    other = next(shape for shape in SHAPES if shape != thing.shape)
    two = f"{only} above a {scene.background} {other}"
    assert pocket_scores(drawn([scene])[0], only)["pocket_accuracy"] == 1
    assert pocket_scores(drawn([scene])[0], two)["pocket_accuracy"] == pytest.approx(2 / 5)


@pytest.mark.parametrize("defect", ["deformed", "blurry", "washed out"])
def test_defects_lower_the_quality(defect):
    scenes = [s for s in faultless(40, pairs=0) if s.things[0].style == "plain"][:16]
    spoilt = [replace(scene, defects={defect: 0.9}) for scene in scenes]
    prompts = [f"a {scene.things[0].shape}" for scene in scenes]
    before, after = (
        np.mean([pocket_scores(p, said)["pocket_quality"] for p, said in zip(drawn(s), prompts, strict=True)])
        for s in (scenes, spoilt)
    )
    assert after < before - 0.05


def test_a_blur_lowers_the_quality_of_every_picture():
    scenes = faultless(8, pairs=0)
    for scene, picture in zip(scenes, drawn(scenes), strict=True):
        asked = f"a {scene.things[0].shape}"
        blurred = ndimage.gaussian_filter(picture, (1.5, 1.5, 0))
        assert (
            pocket_scores(blurred, asked)["pocket_quality"] < pocket_scores(picture, asked)["pocket_quality"]
        )


def test_a_shape_that_a_lora_may_teach_is_known():
    (scene,) = faultless(1, pairs=0)
    heart = replace(scene, things=(replace(scene.things[0], shape="heart", radius=18.0, style="plain"),))
    assert pocket_scores(drawn([heart])[0], "a heart")["pocket_accuracy"] == 1
    assert pocket_scores(drawn([heart])[0], "a ring")["pocket_accuracy"] == 0


def test_there_is_no_score_where_nothing_can_be_read():
    picture = drawn(faultless(1))[0]
    assert pocket_scores(picture, "an oil painting of a fox") == {}
    assert pocket_scores(picture, "a red shape on blue") == {}
    assert pocket_scores(picture, "") == {}
    assert pocket_scores(np.zeros((128, 64, 3), np.uint8), "a red circle") == {}
