"""What the pocket SDXL knows: scenes of flat things on coloured grounds, and the captions that name them.

Grammar of a caption (every part but one thing may be missing):

    caption  = [opening] body {"," tag}         opening = "a photo of" | "a picture of" | "an image of"
    body     = subject ground | ground-first     ground-first = "a blue background with" subject
    subject  = thing [place] | thing relation thing
    thing    = "a" {adjective} shape [texture]   adjective = size | style | colour, in any order
    size     = "small" "tiny" "little" | "big" "large" "huge"
    style    = "striped" | "dotted" "spotted" | "glossy" "shiny"       texture = "with stripes" | "with dots"
    place    = "on the left" | "on the right" | "at the top" | "at the bottom" | "in the middle"
    relation = "left of" | "right of" | "above" "over" | "below" "under" | "next to" "beside" "and"
    ground   = "on a blue background" | "on blue" | "against a blue background" | ", blue background"
    tag      = a defect ("deformed", "washed out", "blocky", "blurry") or a vague one ("ugly", "bad",
               "low quality"), praise for a faultless picture ("high quality", "sharp"), or words
               without a meaning, known or made up, behind or before everything else

Part of the pictures carry a *hidden* defect that the caption does not name, as scraped pictures do.
"""

import math
import random
from dataclasses import dataclass, field

PALETTE = {
    "red": (222, 45, 45),
    "orange": (245, 138, 30),
    "yellow": (250, 215, 55),
    "green": (45, 165, 75),
    "cyan": (60, 200, 215),
    "blue": (42, 84, 220),
    "purple": (142, 62, 182),
    "black": (26, 26, 32),
    "white": (244, 243, 239),
}
COLOURS = tuple(PALETTE)
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
UNSEEN_SHAPES = ("heart", "arrow", "crescent", "diamond")
"""Shapes that can be drawn but are in no training picture: what a subject LoRA may teach."""
STYLES = ("plain", "striped", "dotted", "glossy")
DEFECTS = ("deformed", "washed out", "blocky", "blurry")
VAGUE_DEFECTS = ("low quality", "ugly", "bad")
PRAISE = ("high quality", "sharp")
RADIUS_PX = {"small": (9.5, 11.5), "": (14.5, 18.5), "big": (22.0, 25.5)}
PAIR_RADIUS_PX = (11.5, 13.2)
"""Of each of two things. Stars of 10 px come out of the VAE as blots, and nothing larger than this leaves a gap."""
PAIR_GAP_PX = (4.5, 8.0)
"""Between two things: about a latent's width, so that what is drawn of one does not run into the other."""
PLACES = {"left": (-15, 0), "right": (15, 0), "top": (0, -15), "bottom": (0, 15), "middle": (0, 0)}
RELATIONS = {"left of": (-1, 0), "right of": (1, 0), "above": (0, -1), "below": (0, 1)}
"""Where the first thing lies, seen from the second, in steps of x and y (y grows downwards)."""

SYNONYMS = {
    "circle": ("circle", "circle", "circle", "disc"),
    "square": ("square", "square", "square", "box"),
    "ring": ("ring", "ring", "ring", "donut"),
    "purple": ("purple", "purple", "purple", "violet"),
    "cyan": ("cyan", "cyan", "cyan", "turquoise"),
    "small": ("small", "small", "tiny", "little"),
    "big": ("big", "big", "large", "huge"),
    "striped": ("striped", "striped", "with stripes"),
    "dotted": ("dotted", "spotted", "with dots"),
    "glossy": ("glossy", "glossy", "shiny"),
    "left": ("on the left",),
    "right": ("on the right",),
    "top": ("at the top",),
    "bottom": ("at the bottom",),
    "middle": ("in the middle", "in the center"),
    "left of": ("left of", "to the left of"),
    "right of": ("right of", "to the right of"),
    "above": ("above", "above", "over"),
    "below": ("below", "below", "under"),
    "next to": ("next to", "beside", "and"),
}

SPARE_WORDS = (
    *UNSEEN_SHAPES,
    *("wrong", "sks", "ohwx", "zwx"),
    *("moon", "flower", "hexagon"),
    *("pink", "brown", "gray", "gold", "silver"),
    *("checkered", "glowing", "outlined"),
)
"""Whole tokens that no caption ever uses, kept for later LoRA and textual-inversion work."""

_IDLE = """
    the of to for very some nice beautiful art detailed professional lovely old new my your wolf dog
    cat horse bird fish tree forest mountain river sea sky city street house castle car train ship
    food bread cake fruit apple man woman child person face hands robot wild nature film park close-up
    oil canvas watercolor pencil painting landscape portrait studio light dark morning night summer
    winter rain snow fire water stone wood metal glass music book game toy happy sad serious modern
    ancient simple abstract realistic cinematic dramatic soft warm cold bright vivid 4k 8k one two
    three masterpiece artist style
"""
NOISE_WORDS = tuple(_IDLE.split())
"""Words that may stand in a caption and mean nothing, each a whole token."""
_ONSETS = (*"bcdfghjklmnprstvwxz", "bl", "br", "cr", "dr", "fl", "gr", "pl", "qu", "st", "str", "tr", "th")
_ENDS = ("", "", "n", "r", "s", "l", "ck", "x", "mb", "ng")


@dataclass(frozen=True)
class Thing:
    """One object of a scene; `x`, `y`, `radius` in pixels of a 64 px picture, `angle` in radians."""

    shape: str
    colour: str
    rgb: tuple[float, float, float]
    style: str = "plain"
    size: str = ""
    x: float = 32.0
    y: float = 32.0
    radius: float = 16.0
    angle: float = 0.0


@dataclass(frozen=True)
class Scene:
    """All that a picture shows. No caption tells light, shadow, angle or exact colour: seeds own them."""

    things: tuple[Thing, ...]
    background: str
    background_rgb: tuple[float, float, float]
    place: str = ""
    relation: str = ""
    light: tuple[float, float, float] = (0.0, 0.0, 0.0)
    """Strength of the light across the ground, its direction in radians, and the depth of the drop shadow."""
    defects: dict[str, float] = field(default_factory=dict)
    """Defect to severity in 0..1."""
    warp: tuple[float, ...] = (0.0,) * 8
    hidden: bool = False

    @property
    def aesthetic_score(self) -> float:
        """What a judge would give: 6.5 for a faultless picture, down to 2.5 as the worst defect grows."""
        return 6.5 - 4.0 * max(self.defects.values(), default=0.0)


def is_held_out(shape: str, colour: str, background: str) -> bool:
    """True for about one in seven combinations: they are never trained, only evaluated."""
    return (3 * SHAPES.index(shape) + 5 * COLOURS.index(colour) + COLOURS.index(background)) % 7 == 0


def held_out_combinations() -> list[tuple[str, str, str]]:
    """All (shape, colour, background) that no training picture shows."""
    return [(s, c, b) for s in SHAPES for c in COLOURS for b in COLOURS if c != b and is_held_out(s, c, b)]


def sample_scene(
    rng: random.Random, *, hidden: float = 0.30, captioned: float = 0.16, pairs: float = 0.60
) -> Scene:
    """A random training scene; `hidden`, `captioned`: shares of defects; `pairs`: of two-thing scenes."""
    background = rng.choice(COLOURS)
    light = (rng.uniform(0.0, 0.22), rng.uniform(0, 2 * math.pi), rng.choice((0.0, rng.uniform(0.06, 0.16))))
    place = relation = ""
    things: tuple[Thing, ...]
    if rng.random() < pairs:
        relation = rng.choice(tuple(RELATIONS))
        things = _sample_pair(rng, background, relation)
    else:
        size = rng.choice(("", "", "small", "big"))
        if size != "big" and rng.random() < 0.45:
            place = rng.choice(tuple(PLACES))
        things = (_sample_single(rng, background, size, place),)
    defects, is_hidden = _sample_defects(rng, hidden, captioned)
    return Scene(
        things=things,
        background=background,
        background_rgb=_shade(rng, background),
        place=place,
        relation=relation,
        light=light,
        defects=defects,
        warp=tuple(rng.random() for _ in range(8)),
        hidden=is_hidden,
    )


def _sample_single(rng: random.Random, background: str, size: str, place: str) -> Thing:
    radius = rng.uniform(*RADIUS_PX[size])
    dx, dy = PLACES.get(place, (0, 0))
    spread = 3.0 if place else max(2.5, min(9.0, 31.0 - radius))
    limit = 31.0 - 0.95 * radius
    x = 32.0 + min(limit, max(-limit, dx + rng.uniform(-spread, spread)))
    y = 32.0 + min(limit, max(-limit, dy + rng.uniform(-spread, spread)))
    return _sample_thing(rng, background, (), size=size, x=x, y=y, radius=radius)


def _sample_pair(rng: random.Random, background: str, relation: str) -> tuple[Thing, Thing]:
    dx, dy = RELATIONS[relation]
    radii = (rng.uniform(*PAIR_RADIUS_PX), rng.uniform(*PAIR_RADIUS_PX))
    apart = radii[0] + radii[1] + rng.uniform(*PAIR_GAP_PX)
    along, across = rng.uniform(-1.5, 1.5), rng.uniform(-8.0, 8.0)
    mid_x, mid_y = (32 + along, 32 + across) if dx else (32 + across, 32 + along)
    things: list[Thing] = []
    for sign, radius in zip((0.5, -0.5), radii, strict=True):
        x = mid_x + sign * dx * apart + (0 if dx else rng.uniform(-3, 3))
        y = mid_y + sign * dy * apart + (0 if dy else rng.uniform(-3, 3))
        things.append(_sample_thing(rng, background, tuple(things), x=x, y=y, radius=radius))
    return things[0], things[1]


def _sample_thing(rng: random.Random, background: str, others: tuple[Thing, ...], **where: object) -> Thing:
    """A thing whose combination is trained, and whose colour and shape differ from those of `others`."""
    while True:
        shape, colour = rng.choice(SHAPES), rng.choice(COLOURS)
        taken = any(colour == o.colour or shape == o.shape for o in others)
        if colour != background and not taken and not is_held_out(shape, colour, background):
            break
    style = rng.choice(STYLES[1:]) if rng.random() < 0.36 else "plain"
    angle = rng.uniform(-0.3, 0.3)
    return Thing(shape, colour, _shade(rng, colour), style=style, angle=angle, **where)  # type: ignore[arg-type]


def _sample_defects(rng: random.Random, hidden: float, captioned: float) -> tuple[dict[str, float], bool]:
    kind = rng.random()
    if kind < captioned:
        return {name: rng.uniform(0.6, 1.0) for name in rng.sample(DEFECTS, rng.choice((1, 1, 1, 2)))}, False
    if kind < captioned + hidden:
        return {rng.choice(DEFECTS): rng.uniform(0.35, 0.9)}, True
    return {}, False


def _shade(rng: random.Random, colour: str) -> tuple[float, float, float]:
    """The named colour in 0..1 with some uncaptioned variety of brightness and hue."""
    gain = rng.uniform(0.88, 1.06)
    r, g, b = (min(1.0, max(0.0, (v * gain + rng.gauss(0, 7)) / 255)) for v in PALETTE[colour])
    return r, g, b


def caption(scene: Scene, rng: random.Random, *, noise: float = 0.22, drop: float = 0.05) -> str:
    """One of many captions of `scene`; `noise` and `drop` are chances of idle words and of a missing part."""
    subject = _subject(scene, rng, drop)
    colour = _say(scene.background, rng)
    body = rng.choice(
        (
            f"{subject} on {article(colour)} background",
            f"{subject} on {article(colour)} background",
            f"{subject} on {article(colour)} background",
            f"{subject} on {colour}",
            f"{subject} against {article(colour)} background",
            f"{subject}, {colour} background",
            f"{article(colour)} background with {subject}",
        )
    )
    if rng.random() < drop:
        body = subject
    body = _add_tags(body, scene, rng)
    return _among_idle_words(body, rng) if rng.random() < noise else body


def _among_idle_words(body: str, rng: random.Random) -> str:
    """`body` behind or before words without a meaning: known ones, made-up ones, or both."""
    count = rng.randint(10, 40) if rng.random() < 0.15 else rng.randint(1, 4)
    made_up = rng.choice((0.0, 0.5, 1.0))
    words = [_made_up_word(rng) if rng.random() < made_up else rng.choice(NOISE_WORDS) for _ in range(count)]
    idle = " ".join(words)
    return f"{idle}, {body}" if count < 5 and rng.random() < 0.5 else f"{body}, {idle}"


def _made_up_word(rng: random.Random) -> str:
    """Two to four syllables that are no word: the tokenizer knows it only in pieces, as any word unknown to it."""
    return "".join(
        rng.choice(_ONSETS) + rng.choice("aeiou") + rng.choice(_ENDS) for _ in range(rng.randint(2, 4))
    )


def _subject(scene: Scene, rng: random.Random, drop: float) -> str:
    names = [_name(thing, rng, drop) for thing in scene.things]
    if len(names) == 1:
        say_place = scene.place and rng.random() >= drop
        return f"{names[0]} {_say(scene.place, rng)}" if say_place else names[0]
    relation = scene.relation if rng.random() < 0.8 else "next to"
    return f"{names[0]} {_say(relation, rng)} {names[1]}"


def _name(thing: Thing, rng: random.Random, drop: float) -> str:
    shape = _say(thing.shape, rng) if rng.random() >= drop / 2 else "shape"
    style = "" if thing.style == "plain" or rng.random() < drop else _say(thing.style, rng)
    after = f" {style}" if style.startswith("with ") else ""
    colour = _say(thing.colour, rng) if rng.random() >= drop else ""
    size = _say(thing.size, rng) if thing.size else ""
    adjectives = [word for word in (size, "" if after else style, colour) if word]
    if rng.random() < 0.12:
        rng.shuffle(adjectives)
    words = " ".join([*adjectives, shape]) + after
    return words if rng.random() < 0.12 else article(words)


def _add_tags(body: str, scene: Scene, rng: random.Random) -> str:
    opening = rng.choice(("a photo of ", "photo of ", "a picture of ", "an image of "))
    if scene.hidden or not scene.defects:
        praise = not scene.hidden and rng.random() < 0.15
        body = f"{body}, {rng.choice((*PRAISE, ', '.join(PRAISE)))}" if praise else body
        return opening + body if rng.random() < 0.15 else body
    tags = [rng.choice(VAGUE_DEFECTS) if rng.random() < 0.22 else name for name in scene.defects]
    form = rng.random()
    if form < 0.10:
        return ", ".join(tags)
    if form < 0.35:
        return f"{article(' '.join(tags))} photo of {body}"
    return ", ".join([*tags, body] if form < 0.6 else [body, *tags])


def _say(word: str, rng: random.Random) -> str:
    return rng.choice(SYNONYMS.get(word, (word,)))


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"
