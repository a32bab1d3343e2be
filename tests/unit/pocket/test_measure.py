"""Measurements: drawings whose truth is known are read back."""

import random
from dataclasses import replace

import torch

from service.pocket.measure import is_place_right, is_relation_right, nearest_colour, read
from service.pocket.render import render
from service.pocket.world import PALETTE, Scene, sample_scene


def faultless(count: int, pairs: float) -> list[Scene]:
    rng = random.Random(6)
    return [sample_scene(rng, hidden=0, captioned=0, pairs=pairs) for _ in range(count)]


def test_shape_colour_size_and_place_of_a_drawing_are_read_back():
    scenes = faultless(100, pairs=0)
    right = {"shape": 0, "colour": 0, "size": 0, "ground": 0}
    for scene, picture in zip(scenes, render(scenes), strict=True):
        reading = read(picture)
        (found,), (drawn,) = reading.things, scene.things
        right["shape"] += found.shape == drawn.shape
        right["colour"] += found.colour == drawn.colour
        right["size"] += found.size == drawn.size
        right["ground"] += reading.background == scene.background
        assert not scene.place or is_place_right(scene.place, found)
    assert min(right.values()) >= 97, right


def test_two_things_are_told_apart_and_their_relation_is_read():
    scenes = faultless(40, pairs=1)
    right = 0
    for scene, picture in zip(scenes, render(scenes), strict=True):
        found = {(t.colour, t.shape): t for t in read(picture).things}
        if set(found) == {(t.colour, t.shape) for t in scene.things}:
            first, second = (found[t.colour, t.shape] for t in scene.things)
            right += is_relation_right(scene.relation, first, second)
    assert right >= 38


def test_each_defect_spoils_its_own_measure():
    scenes = [
        replace(s, things=(replace(s.things[0], style="plain"),))
        for s in faultless(20, pairs=0)
        if not s.place
    ]

    def mean(defect: str, measure: str) -> float:
        spoilt = [replace(s, defects={defect: 0.9} if defect else {}) for s in scenes]
        readings = [read(picture) for picture in render(spoilt)]
        if measure == "overlap":
            return sum(r.overlap(s.things[0].shape) for r, s in zip(readings, scenes, strict=True)) / len(
                scenes
            )
        return sum(getattr(r, measure) for r in readings) / len(scenes)

    assert mean("deformed", "overlap") < mean("", "overlap") - 0.1
    assert mean("washed out", "contrast") < 0.6 * mean("", "contrast")
    assert mean("blocky", "blockiness") > mean("", "blockiness") + 0.3
    assert mean("blurry", "sharpness") < 0.6 * mean("", "sharpness")


def test_every_colour_of_the_palette_bears_its_own_name():
    for name, rgb in PALETTE.items():
        assert nearest_colour(torch.tensor(rgb) / 255) == name


def test_a_picture_without_things_is_read_as_ground_alone():
    reading = read(torch.ones(3, 64, 64) * torch.tensor([0.16, 0.33, 0.86])[:, None, None])
    assert reading.background == "blue"
    assert reading.things == []
    assert reading.overlap("circle") == 0
