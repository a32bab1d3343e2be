"""Can a new word be learnt? `python -m examples.word_study OUT` teaches the pocket a shape that it was never shown.

Sixteen pictures, whose captions call the shape by a token. Counted is how often the token draws it in prompts of other
colours and grounds, and how often prompts that do not say the token still draw what they ask for. Writes the figures
as JSON, a sheet and the files that were learnt into the folder OUT.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from darkroom.types import TrainRecipe, TrainRequest
from examples.training import CLASSES, Workshop, heart_prompt, hearts, is_right, reading_of
from service.pocket.intervals import Figure, mean, share
from service.pocket.measure import Reading
from service.pocket.questions import Question, plain_questions
from service.pocket.world import COLOURS, SHAPES, UNSEEN_SHAPES
from service.training.sheets import contact_sheet

TOKEN = "zwx"
"""A word that the tokenizers know and no caption of the pocket model ever had."""
PROMPTS = 40
FIRST_SEED, OTHERS_FIRST_SEED = 1000, 2000
SHOWN = 8


@dataclass(frozen=True)
class Lesson:
    """One way to teach the word."""

    name: str
    kind: Literal["embedding", "pivotal"]
    recipe: TrainRecipe = field(default_factory=TrainRecipe)
    class_prompt: str | None = None

    def request(self, dataset: str) -> TrainRequest:
        return TrainRequest(
            kind=self.kind,
            name=self.name,
            dataset=dataset,
            token=TOKEN,
            instance_prompt=f"a {TOKEN}",
            class_prompt=self.class_prompt,
            recipe=self.recipe,
            evaluate=False,
        )


LESSONS = (
    Lesson("embedding", "embedding"),
    Lesson("pivotal", "pivotal", TrainRecipe(targets="all-linear", snr_gamma=5.0), class_prompt=CLASSES),
)


@dataclass(frozen=True)
class Learnt:
    """What a word is worth."""

    shape: Figure
    """Share of its prompts that draw the shape: of all shapes, the reading is nearest to it, however near that is."""
    overlap: Figure
    """How well the largest thing is the shape, in the mean; 0.945 for the pictures that it was learnt from."""
    all_right: Figure
    """And in the colour and on the ground that the prompt says."""
    others: Figure
    """Share of prompts without the word that draw what they ask for."""
    pictures: Sequence[np.ndarray]
    """Of its prompts, in their order."""

    @property
    def figures(self) -> tuple[Figure, ...]:
        return self.shape, self.overlap, self.all_right, self.others


def called(caption: str) -> str:
    """The caption with the shape called by the token."""
    return caption.replace("heart", TOKEN)


def pictures_of_the_word(count: int = 16) -> list[tuple[str, bytes, str]]:
    """As (file, PNG, caption)."""
    return [(file, png, called(caption)) for file, png, caption in hearts(count)]


def new_prompts(count: int) -> list[tuple[str, str, str]]:
    """(prompt, colour, ground) of pairs that no training picture has."""
    seen = {caption for _, _, caption in hearts(16)}
    pairs = [(colour, ground) for colour in COLOURS for ground in COLOURS if colour != ground]
    unseen = [pair for pair in pairs if heart_prompt(*pair) not in seen]
    random.Random(7).shuffle(unseen)
    return [(called(heart_prompt(*pair)), *pair) for pair in unseen[:count]]


def measure_word(workshop: Workshop, word: bytes | None, count: int = PROMPTS, *, steps: int = 20) -> Learnt:
    """What the file is worth; None: what the base makes of a word that it does not know."""
    asked = new_prompts(count)
    pictures = workshop.draw([prompt for prompt, *_ in asked], first_seed=FIRST_SEED, lora=word, steps=steps)
    found = [reading_of(picture, (*SHAPES, *UNSEEN_SHAPES)) for picture in pictures]
    questions = plain_questions(count, 9)
    others = workshop.draw(
        [question.prompt for question in questions], first_seed=OTHERS_FIRST_SEED, lora=word, steps=steps
    )
    return Learnt(
        share("draws the shape", [_is_heart(one) for one in found]),
        mean("overlap with the shape", [one.overlap("heart") for one in found]),
        share(
            "in its colour, on its ground",
            [_is_heart(one, *pair) for one, (_, *pair) in zip(found, asked, strict=True)],
        ),
        share("other prompts right", _right(others, questions)),
        pictures,
    )


def _is_heart(reading: Reading, colour: str = "", ground: str = "") -> bool:
    if not reading.things or reading.things[0].shape != "heart":
        return False
    return not colour or (reading.things[0].colour, reading.background) == (colour, ground)


def _right(pictures: Sequence[np.ndarray], questions: Sequence[Question]) -> list[bool]:
    return [is_right(reading_of(picture), one) for picture, one in zip(pictures, questions, strict=True)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.word_study", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=int, default=PROMPTS, help="of either sort (%(default)s)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with Workshop.opened() as workshop:
        dataset = workshop.dataset(pictures_of_the_word())
        found = {"base": measure_word(workshop, None, options.prompts)}
        for lesson in LESSONS:
            word = workshop.train(lesson.request(dataset)).file
            (options.out / f"{lesson.name}.safetensors").write_bytes(word)
            found[lesson.name] = measure_word(workshop, word, options.prompts)
    for name, learnt in found.items():
        print(name, *learnt.figures, sep="\n  ")
    told = {name: [asdict(figure) for figure in learnt.figures] for name, learnt in found.items()}
    (options.out / "word.json").write_text(json.dumps(told, indent=1))
    (options.out / "word.png").write_bytes(
        contact_sheet(
            [learnt.pictures[:SHOWN] for learnt in found.values()],
            list(found),
            [prompt for prompt, *_ in new_prompts(SHOWN)],
        )
    )


if __name__ == "__main__":
    main()
