"""Held-out prompts, and what a picture must show to answer them."""

import random
from dataclasses import dataclass, replace

from .world import (
    COLOURS,
    PALETTE,
    PLACES,
    RELATIONS,
    SHAPES,
    STYLES,
    Scene,
    Thing,
    article,
    caption,
    held_out_combinations,
    is_held_out,
)


@dataclass(frozen=True)
class Question:
    """A prompt for a combination that no training picture shows, and the scene it asks for."""

    prompt: str
    scene: Scene

    @property
    def thing(self) -> Thing:
        return self.scene.things[0]


def single_questions(count: int, seed: int) -> list[Question]:
    """One-thing prompts over all held-out combinations in turn: a third with a size, a third with a place.

    Synonyms and word order vary as in training; one in five names a texture.
    """
    rng = random.Random(seed)
    combinations = held_out_combinations()
    questions = []
    for i in range(count):
        if i % len(combinations) == 0:
            rng.shuffle(combinations)
        shape, colour, background = combinations[i % len(combinations)]
        size = rng.choice(("small", "big")) if i % 3 == 1 else ""
        place = rng.choice(tuple(PLACES)) if i % 3 == 2 else ""
        style = rng.choice(STYLES[1:]) if rng.random() < 0.2 else "plain"
        thing = replace(_thing(shape, colour), size=size, style=style)
        scene = replace(_scene(background, thing), place=place)
        questions.append(Question(caption(scene, rng, noise=0, drop=0), scene))
    return questions


def pair_questions(count: int, seed: int) -> list[Question]:
    """Two-thing prompts with a relation, of which at least the first thing is of a held-out combination."""
    rng = random.Random(seed)
    questions: list[Question] = []
    while len(questions) < count:
        shape, colour, background = rng.choice(held_out_combinations())
        other_shape, other_colour = rng.choice(SHAPES), rng.choice(COLOURS)
        if other_shape == shape or other_colour in (colour, background):
            continue
        things = [_thing(shape, colour), _thing(other_shape, other_colour)]
        rng.shuffle(things)
        relation = rng.choice(tuple(RELATIONS))
        names = [article(f"{t.colour} {t.shape}") for t in things]
        prompt = f"{names[0]} {relation} {names[1]} on {article(background)} background"
        questions.append(Question(prompt, replace(_scene(background, *things), relation=relation)))
    return questions


def plain_questions(count: int, seed: int) -> list[Question]:
    """One-thing prompts in one wording, held-out combinations first: the ground of paired comparisons."""
    rng = random.Random(seed)
    combinations = held_out_combinations()
    trained = [
        (s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b and not is_held_out(s, c, b)
    ]
    rng.shuffle(combinations)
    rng.shuffle(trained)
    chosen = [*combinations, *trained][:count]
    return [
        Question(f"{article(f'{c} {s}')} on {article(b)} background", _scene(b, _thing(s, c)))
        for s, c, b in chosen
    ]


def _thing(shape: str, colour: str) -> Thing:
    r, g, b = (v / 255 for v in PALETTE[colour])
    return Thing(shape, colour, (r, g, b))


def _scene(background: str, *things: Thing) -> Scene:
    r, g, b = (v / 255 for v in PALETTE[background])
    return Scene(things=things, background=background, background_rgb=(r, g, b))
