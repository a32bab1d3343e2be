"""The world: what is drawn, what captions say of it, and what is kept from training."""

import math
import random
from dataclasses import replace

import torch

from service.pocket.render import DISTANCES, render
from service.pocket.tokenizers import vocabulary_words
from service.pocket.world import (
    DEFECTS,
    PAIR_GAP_PX,
    PAIR_RADIUS_PX,
    SHAPES,
    SPARE_WORDS,
    SYNONYMS,
    UNSEEN_SHAPES,
    Scene,
    Thing,
    caption,
    held_out_combinations,
    is_held_out,
    sample_scene,
)


def scenes(count: int, seed: int = 0, **shares: float) -> list[Scene]:
    rng = random.Random(seed)
    return [sample_scene(rng, **shares) for _ in range(count)]


def test_held_out_combinations_are_never_trained():
    for scene in scenes(2000):
        for thing in scene.things:
            assert not is_held_out(thing.shape, thing.colour, scene.background)
    assert 40 < len(held_out_combinations()) < 80


def test_every_shape_and_colour_is_among_the_held_out_and_among_the_trained():
    held_out = held_out_combinations()
    assert {shape for shape, _, _ in held_out} == set(SHAPES)
    assert {thing.shape for scene in scenes(500) for thing in scene.things} == set(SHAPES)


def test_a_third_of_the_pictures_hide_a_defect_that_the_caption_does_not_name():
    drawn = scenes(2000)
    hidden = [scene for scene in drawn if scene.hidden]
    uncaptioned = [scene for scene in drawn if scene.hidden or not scene.defects]
    assert 0.30 <= len(hidden) / len(uncaptioned) <= 0.40
    rng = random.Random(1)
    assert not any(name in caption(scene, rng) for scene in hidden for name in DEFECTS)


def test_aesthetic_score_falls_with_the_worst_defect():
    clean = scenes(1, hidden=0, captioned=0)[0]
    mild, bad = (
        replace(clean, defects={"blurry": 0.3}),
        replace(clean, defects={"blurry": 0.3, "blocky": 1.0}),
    )
    assert clean.aesthetic_score > mild.aesthetic_score > bad.aesthetic_score


def test_caption_names_the_things_in_some_wording():
    rng = random.Random(3)
    for scene in scenes(300, hidden=0, captioned=0):
        words = caption(scene, rng, noise=0, drop=0)
        for thing in scene.things:
            assert any(name in words for name in SYNONYMS.get(thing.shape, (thing.shape,)))
            assert any(name in words for name in SYNONYMS.get(thing.colour, (thing.colour,)))


def test_captions_of_one_scene_vary_in_wording_and_order():
    rng = random.Random(4)
    scene = scenes(1, seed=9)[0]
    assert len({caption(scene, rng) for _ in range(40)}) > 10


def test_spare_words_stand_in_no_caption_but_are_in_the_vocabulary():
    rng = random.Random(5)
    said = {word for scene in scenes(3000) for word in caption(scene, rng).replace(",", "").split()}
    assert said.isdisjoint(SPARE_WORDS)
    assert set(SPARE_WORDS) <= set(vocabulary_words())


def test_a_scene_always_gives_the_same_pixels_alone_or_in_company():
    drawn = scenes(12)
    together = render(drawn)
    assert together.shape == (12, 3, 64, 64)
    assert together.aminmax() == (together.clamp(0, 1).min(), together.clamp(0, 1).max())
    torch.testing.assert_close(render(drawn[7:8])[0], together[7], atol=1e-5, rtol=0)


def test_each_defect_changes_the_picture():
    clean = scenes(1, seed=2, hidden=0, captioned=0)[0]
    before = render([clean])
    for name in DEFECTS:
        assert (render([replace(clean, defects={name: 1.0})]) - before).abs().mean() > 0.005


def test_unseen_shapes_can_be_drawn_for_later_lessons():
    assert set(DISTANCES) == {*SHAPES, *UNSEEN_SHAPES}
    for shape in UNSEEN_SHAPES:
        scene = Scene((Thing(shape, "red", (0.9, 0.1, 0.1)),), "white", (1.0, 1.0, 1.0))
        inside = (render([scene])[0, 1] < 0.5).float().mean()
        assert 0.03 < inside < 0.3


def test_two_things_lie_apart_and_inside_the_picture():
    rng = random.Random(7)
    scenes = [sample_scene(rng, pairs=1) for _ in range(500)]
    for one, other in (scene.things for scene in scenes):
        reach = one.radius + other.radius
        assert math.hypot(one.x - other.x, one.y - other.y) >= reach + PAIR_GAP_PX[0] - 1e-9
        for thing in (one, other):
            assert PAIR_RADIUS_PX[0] <= thing.radius <= PAIR_RADIUS_PX[1]
            assert 0.95 * thing.radius - 1 <= min(thing.x, thing.y)
            assert max(thing.x, thing.y) <= 64 - 0.95 * thing.radius + 1
