"""Whether a picture of the pocket world shows what its prompt asks for, property by property.

Prompts are read by the grammar of `world.py`, in every wording of it; words outside of it mean nothing here, as in the
world. What a prompt does not say is not asked: no size is not "of middling size", and no texture is not "plain".
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from service.engine.prompts import parse

from .measure import Found, Reading, is_place_right, is_relation_right, read
from .render import SIDE_PX
from .world import COLOURS, PLACES, RADIUS_PX, RELATIONS, SHAPES, STYLES, SYNONYMS, UNSEEN_SHAPES

ANY_SHAPE: Final = "shape"
"""What captions call a thing whose shape they do not tell."""
_WORDS: Final = {
    "shape": (*SHAPES, *UNSEEN_SHAPES, ANY_SHAPE),
    "colour": COLOURS,
    "style": STYLES[1:],
    "size": tuple(size for size in RADIUS_PX if size),
    "place": tuple(PLACES),
    "relation": (*RELATIONS, "next to"),
}
_PHRASES: Final = {
    tuple(phrase.split()): (kind, word)
    for kind, words in _WORDS.items()
    for word in words
    for phrase in SYNONYMS.get(word, (word,))
}
"""Every wording, as words, to what it says."""
_LONGEST: Final = max(map(len, _PHRASES))
_ARTICLES: Final = ("a", "an", "the")


@dataclass
class AskedThing:
    """One thing as a prompt asks for it; what is empty was not asked."""

    shape: str = ""
    colour: str = ""
    size: str = ""
    style: str = ""
    place: str = ""

    def hits(self, found: Found) -> list[bool]:
        """For each asked property, whether `found` has it."""
        hits = [
            getattr(found, name) == asked
            for name in ("shape", "colour", "size", "style")
            if (asked := getattr(self, name))
        ]
        return [*hits, is_place_right(self.place, found)] if self.place else hits


@dataclass
class Asked:
    """A prompt as far as a picture can be held against it."""

    things: list[AskedThing] = field(default_factory=list)
    background: str = ""
    relations: dict[int, str] = field(default_factory=dict)
    """Where thing i lies, seen from thing i + 1."""

    @property
    def shapes(self) -> list[str]:
        return [thing.shape for thing in self.things if thing.shape]


def pocket_scores(pixels_HWC: NDArray[np.uint8], prompt: str) -> dict[str, float]:
    """`pocket_accuracy` and `pocket_quality` of a picture, both in 0..1; nothing where they mean nothing.

    accuracy   share of the asked properties that the picture shows: shape, colour, size, texture and place of every
               thing, how things lie to each other, and the colour of the ground. Things found go to the asked ones
               that they fit best; one that is not there has no property right
    quality    `Reading.quality` of the asked shape; of several, of the one that the largest thing resembles most

    There are none for a prompt that names no shape of the world, nor for a picture that is not 64 × 64.
    `prompt` may bear compel's weights. Raises InvalidPrompt as `prompts.parse` does.
    """
    asked = understood(prompt)
    if not asked.shapes or pixels_HWC.shape[:2] != (SIDE_PX, SIDE_PX):
        return {}
    unseen = (shape for shape in UNSEEN_SHAPES if shape in asked.shapes)
    picture = torch.from_numpy(np.ascontiguousarray(pixels_HWC)).permute(2, 0, 1).float() / 255
    reading = read(picture, (*SHAPES, *unseen))
    hits = _hits(asked, reading)
    return {
        "pocket_accuracy": sum(hits) / len(hits),
        "pocket_quality": max(reading.quality(shape) for shape in asked.shapes),
    }


def _hits(asked: Asked, reading: Reading) -> list[bool]:
    found = _matched(asked.things, reading.things)
    hits = [reading.background == asked.background] if asked.background else []
    for place, thing in enumerate(asked.things):
        other = found.get(place)
        hits += thing.hits(other) if other else [False] * _properties(thing)
    for place, relation in asked.relations.items():
        first, second = found.get(place), found.get(place + 1)
        hits.append(bool(first and second and is_relation_right(relation, first, second)))
    return hits


def _matched(asked: list[AskedThing], found: list[Found]) -> dict[int, Found]:
    """Each asked thing's place to the found one, so that most properties are right; then by likeness of shape."""
    likeness = np.array(
        [[sum(a.hits(f)) + 0.1 * f.overlaps.get(a.shape, 0.0) for f in found] for a in asked]
    ).reshape(len(asked), len(found))
    return {int(a): found[f] for a, f in zip(*linear_sum_assignment(-likeness), strict=True)}


def _properties(thing: AskedThing) -> int:
    return sum(bool(asked) for asked in (thing.shape, thing.colour, thing.size, thing.style, thing.place))


def understood(prompt: str) -> Asked:
    """What `prompt` asks for, compel's weights put aside."""
    asked, told = Asked(), AskedThing()
    said = list(_said(parse(prompt).plain.lower()))
    for i, (kind, word) in enumerate(said):
        after = said[i + 1] if i + 1 < len(said) else ("", "")
        if kind == "colour" and (after == ("", "background") or _is_bare_ground(said, i)):
            asked.background = word
            told = AskedThing()
        elif kind == "style" and asked.things and said[i - 1][0] == "shape":
            asked.things[-1].style = word
        elif kind in ("colour", "style", "size"):
            setattr(told, kind, word)
        elif kind == "shape":
            told.shape = "" if word == ANY_SHAPE else word
            asked.things.append(told)
            told = AskedThing()
        elif kind == "place" and asked.things:
            asked.things[-1].place = word
        elif kind == "relation" and word in RELATIONS and asked.things:
            asked.relations[len(asked.things) - 1] = word
            told = AskedThing()
        elif word in (",", "of", "on", "with", "against"):
            told = AskedThing()
    asked.relations = {
        place: word for place, word in asked.relations.items() if place + 1 < len(asked.things)
    }
    return asked


def _is_bare_ground(said: list[tuple[str, str]], place: int) -> bool:
    """Whether the colour is a ground without the word, as in "on blue": behind "on", and before no thing."""
    before = place - 1
    while before >= 0 and said[before][1] in _ARTICLES:
        before -= 1
    behind = next((kind for kind, _ in said[place + 1 :] if kind not in ("colour", "style", "size")), "")
    return before >= 0 and said[before][1] in ("on", "against") and behind != "shape"


def _said(text: str) -> Iterator[tuple[str, str]]:
    """The words of `text` as (kind, word): longest phrases first; other words, and commas, have no kind."""
    words = re.findall(r"[^\s,.;:!?\"()]+|[,.;:!?]", text)
    at = 0
    while at < len(words):
        for length in range(min(_LONGEST, len(words) - at), 0, -1):
            if found := _PHRASES.get(tuple(words[at : at + length])):
                yield found
                break
        else:
            length = 1
            yield "", "," if words[at] in ".;:!?" else words[at]
        at += length
