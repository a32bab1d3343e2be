"""What a synthesis will draw: every prompt at every guidance value, each picture with a seed of its own. Pure.

The recipe `wrong` is Max Woolf's set of bad pictures, from "I Made Stable Diffusion XL Smarter by Finetuning it on
Bad AI-Generated Images" (2023): thirteen keywords, one of them raised to four pluses in each prompt, at guidance 8 to
13, base and refiner, 50 steps, no negative prompt. His had no seeds; these have.
"""

import hashlib
import itertools
import random
from dataclasses import dataclass
from typing import Final

from darkroom.types import GenerateRequest, Output
from darkroom.types.datasets import MAX_CAPTION_CHARACTERS, MAX_SYNTHESIZED, SynthesizeRequest
from service.engine import prompts
from service.errors import InvalidOption, InvalidPrompt

KEYWORDS: Final = (
    "low quality",
    "bad hands",
    "random text",
    "error",
    "missing or extra fingers",
    "cropped",
    "jpeg artifacts",
    "signature",
    "watermark",
    "blurry",
    "ugly",
    "duplicate",
    "mutilated",
)
WRONG_GUIDANCE: Final = (8.0, 9.0, 10.0, 11.0, 12.0, 13.0)
POCKET_SCENES: Final = 3
"""Of each defect. The pocket model draws a defect best where it is asked for a scene as well."""
POCKET_GUIDANCE: Final = (4.0, 7.0)
"""Thirteen defects, three scenes, two guidance values: 78 pictures, as many as in the article."""
WRONG_CAPTION: Final = "wrong"
USUAL_GUIDANCE: Final = (7.5,)
STEPS: Final = 50
POCKET_STEPS: Final = 20
_BARE: Final = Output(format="png", metadata="none")


@dataclass(frozen=True)
class PlannedPicture:
    """One picture to be made."""

    file: str
    request: GenerateRequest
    caption: str


def filled_in(request: SynthesizeRequest, *, pocket: bool) -> SynthesizeRequest:
    """The request with every default of the recipe and the model, `caption` apart where each picture has its own.

    Raises:
        InvalidOption: it asks for more than `MAX_SYNTHESIZED` pictures.
    """
    wrong = request.recipe == "wrong"
    recipe_prompts, recipe_guidance = _wrong(pocket=pocket) if wrong else ((), USUAL_GUIDANCE)
    given = request.model_copy(
        update={
            "prompts": request.prompts or recipe_prompts,
            "guidance_scales": request.guidance_scales or recipe_guidance,
            "num_inference_steps": request.num_inference_steps or (POCKET_STEPS if pocket else STEPS),
            "caption": WRONG_CAPTION if wrong and request.caption is None else request.caption,
        }
    )
    assert given.prompts is not None
    assert given.guidance_scales is not None
    count = len(given.prompts) * len(given.guidance_scales) * given.images_per_prompt
    if count > MAX_SYNTHESIZED:
        raise InvalidOption(
            f"this would be {count} pictures and {MAX_SYNTHESIZED} is the most; "
            "name fewer prompts, guidance values or images per prompt",
            pointer="/prompts",
        )
    return given


def planned(filled: SynthesizeRequest) -> list[PlannedPicture]:
    """The pictures of a request that is filled in: by prompt, then by guidance value, then by number.

    Raises:
        InvalidPrompt: one of its prompts cannot be read.
    """
    assert filled.prompts is not None
    assert filled.guidance_scales is not None
    assert filled.num_inference_steps is not None
    plain = [_plain(prompt, place) for place, prompt in enumerate(filled.prompts)]
    combinations = itertools.product(
        zip(filled.prompts, plain, strict=True), filled.guidance_scales, range(filled.images_per_prompt)
    )
    return [
        PlannedPicture(
            file=f"{place:04d}.png",
            request=GenerateRequest(
                prompt=prompt,
                guidance_scale=guidance_scale,
                num_inference_steps=filled.num_inference_steps,
                seed=seed_of(filled.seed, place),
                output=_BARE,
            ),
            caption=caption if filled.caption is None else filled.caption,
        )
        for place, ((prompt, caption), guidance_scale, _) in enumerate(combinations)
    ]


def seed_of(seed: int, place: int) -> int:
    """The seed of the picture at a place: the first 32 bits of sha256("seed/place"), in decimal digits."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{place}".encode()).digest()[:4], "big")


def _wrong(*, pocket: bool) -> tuple[tuple[str, ...], tuple[float, ...]]:
    if pocket:
        return _pocket_prompts(), POCKET_GUIDANCE
    return (
        tuple(
            ", ".join(f"({word})++++" if word == raised else word for word in KEYWORDS) for raised in KEYWORDS
        ),
        WRONG_GUIDANCE,
    )


def _pocket_prompts() -> tuple[str, ...]:
    """The pocket model's defects, alone, in pairs and by their vague names, in scenes that it was trained on: those
    that are held out stay fresh for whoever measures what was learnt."""
    from service.pocket import world

    pairs = (" ".join(pair) for pair in itertools.combinations(world.DEFECTS, 2))
    defects = (*world.DEFECTS, *pairs, *world.VAGUE_DEFECTS)
    known = [
        (shape, colour, ground)
        for shape, colour, ground in itertools.product(world.SHAPES, world.COLOURS, world.COLOURS)
        if colour != ground and not world.is_held_out(shape, colour, ground)
    ]
    scenes = random.Random(0).sample(known, POCKET_SCENES * len(defects))
    return tuple(
        f"{world.article(defect)} photo of {world.article(colour)} {shape} on {world.article(ground)} background"
        for defect, (shape, colour, ground) in zip(
            (defect for defect in defects for _ in range(POCKET_SCENES)), scenes, strict=True
        )
    )


def _plain(prompt: str, place: int) -> str:
    try:
        text = prompts.parse(prompt).plain
    except InvalidPrompt as exc:
        raise InvalidPrompt(exc.message, position=exc.position, field=f"prompts/{place}") from exc
    return text.replace(" ,", ",")[:MAX_CAPTION_CHARACTERS]  # a term with a weight ends in a space
