"""Does the negative LoRA help? `python -m examples.negative_study OUT` trains it as the job `wrong` does, and measures.

The metric was fixed before any picture was made: `Reading.quality`, the mean of overlap with the asked shape, purity
and sharpness. Each arm draws the same prompts with the same seeds; differences are to the base, pair by pair, with
bootstrap intervals. Writes tables, figures as JSON, sheets and the LoRAs into the folder OUT.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from darkroom.types import LoraScope, SynthesizeRequest, TrainRequest
from examples.training import Workshop, is_right, reading_of
from service.pocket.intervals import Figure, difference, share
from service.pocket.measure import Reading
from service.pocket.questions import Question, plain_questions
from service.training.sheets import contact_sheet

PAIRS = 124
QUESTIONS_SEED, FIRST_SEED = 77, 90_000
SHOWN = 8
DEFORMED = SynthesizeRequest(
    prompts=(
        "a deformed photo of a red circle on a blue background",
        "a deformed photo of a green square on a white background",
        "a deformed photo of a yellow star on a purple background",
        "a deformed photo of a black ring on an orange background",
        "a deformed photo of a cyan triangle on a red background",
        "a deformed photo of a blue cross on a green background",
        "deformed",
    ),
    guidance_scales=(4.0, 7.0),
    images_per_prompt=6,
    caption="wrong",
)
"""Bad in one way only: the defect whose own word, as a negative, helps."""


@dataclass(frozen=True)
class Arm:
    """One way to draw: with `wrong` in the negative prompt or not, with the LoRA on some branches or not."""

    name: str
    negative_prompt: str | None = None
    scope: LoraScope | None = None


ARMS = (
    Arm("base"),
    Arm("word `wrong`, no LoRA", "wrong"),
    Arm("LoRA on both branches", "wrong", "both"),
    Arm("LoRA on the uncond branch", "wrong", "uncond"),
    Arm("LoRA on the cond branch", "wrong", "cond"),
    Arm("LoRA, no negative prompt", None, "both"),
)
METRICS = {
    "quality": lambda reading, asked: reading.quality(asked.thing.shape),
    "overlap": lambda reading, asked: reading.overlap(asked.thing.shape),
    "purity": lambda reading, _: reading.purity,
    "sharpness": lambda reading, _: min(1.0, reading.sharpness),
}


def measure_arms(
    workshop: Workshop, lora: bytes, questions: Sequence[Question], arms: Sequence[Arm] = ARMS
) -> tuple[dict[str, list[Figure]], list[list[np.ndarray]]]:
    """Figures of each arm, differences to the first; and each arm's pictures."""
    pictures = [
        workshop.draw(
            [question.prompt for question in questions],
            first_seed=FIRST_SEED,
            negative_prompt=arm.negative_prompt,
            lora=lora if arm.scope else None,
            scope=arm.scope or "both",
        )
        for arm in arms
    ]
    readings = [[reading_of(picture) for picture in drawn] for drawn in pictures]
    figures = {
        arm.name: [
            *(
                difference(name, _values(name, found, questions), _values(name, readings[0], questions))
                for name in METRICS
            ),
            share("all right", [is_right(one, asked) for one, asked in zip(found, questions, strict=True)]),
        ]
        for arm, found in zip(arms, readings, strict=True)
    }
    return figures, pictures


def badness(workshop: Workshop, lora: bytes, questions: Sequence[Question]) -> Figure:
    """By how much the LoRA lowers the quality of pictures whose prompt begins with `wrong`."""
    with_lora, without = (
        [
            reading_of(picture)
            for picture in workshop.draw(
                [f"wrong, {question.prompt}" for question in questions], first_seed=500, lora=file
            )
        ]
        for file in (lora, None)
    )
    return difference(
        "quality that `wrong` takes away",
        _values("quality", without, questions),
        _values("quality", with_lora, questions),
    )


def _values(name: str, readings: Sequence[Reading], questions: Sequence[Question]) -> list[float]:
    return [METRICS[name](one, asked) for one, asked in zip(readings, questions, strict=True)]


def as_markdown(figures: dict[str, list[Figure]]) -> str:
    """A table: arms as rows, differences with their intervals."""
    names = [figure.name for figure in next(iter(figures.values()))]
    lines = [f"| arm | {' | '.join(names)} |", f"|---{'|---' * len(names)}|"]
    for arm, row in figures.items():
        cells = [
            f"{f.value:.3f}" if f.kind == "share" else f"{f.value:+.4f} ({f.low:+.4f} to {f.high:+.4f})"
            for f in row
        ]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.negative_study", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    questions = plain_questions(options.pairs, QUESTIONS_SEED)
    text, told = [], {}
    with Workshop.opened() as workshop:
        for name, synthesis in (("wrong", None), ("deformed", DEFORMED)):
            request = TrainRequest(kind="negative", name=name, synthesis=synthesis, evaluate=False)
            trained = workshop.train(request)
            bad = badness(workshop, trained.file, questions[:62])
            figures, pictures = measure_arms(workshop, trained.file, questions)
            print(f"{name}\n{bad}\n{as_markdown(figures)}", flush=True)
            text += [f"**{name}**: {bad}\n", as_markdown(figures)]
            told[name] = {arm: [figure.__dict__ for figure in row] for arm, row in figures.items()}
            (options.out / f"{name}.safetensors").write_bytes(trained.file)
            sheet = contact_sheet(
                [row[:SHOWN] for row in pictures],
                [arm.name for arm in ARMS],
                [question.prompt for question in questions[:SHOWN]],
            )
            (options.out / f"{name}.png").write_bytes(sheet)
    (options.out / "negative.md").write_text("\n".join(text))
    (options.out / "negative.json").write_text(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
