"""The LoRA that is made by hand, as stock diffusers draws with it: red becomes blue, and nothing else changes."""

import io
from collections.abc import Sequence

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load

from examples.handmade import red_to_blue
from lora_registry.base_model import BaseModel
from lora_registry.registry import Registry
from service.engine import presets
from service.pocket import measure
from service.pocket.questions import Question, plain_questions

FOLDER = presets.POCKET.base
OTHER_COLOURS = ("orange", "yellow", "green", "cyan", "blue", "purple")


@pytest.fixture(scope="module")
def file() -> bytes:
    return red_to_blue(FOLDER)


@pytest.fixture(scope="module")
def pipeline(file) -> StableDiffusionXLPipeline:
    """The stock pipeline with the file loaded in the usual way."""
    pipeline = StableDiffusionXLPipeline.from_pretrained(FOLDER, variant="fp16", dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(load(file), adapter_name="red-to-blue")
    return pipeline


def asked_for(count: int, *colours: str) -> list[Question]:
    """Prompts for a thing of each of these colours, on grounds that are neither red nor blue."""
    questions = [q for q in plain_questions(10_000, seed=3) if q.scene.background not in ("red", "blue")]
    return [
        q for c in colours for q in [q for q in questions if q.thing.colour == c][: count // len(colours)]
    ]


def colours_drawn(pipeline, questions: Sequence[Question], weight: float) -> list[str]:
    """The colour of the largest thing in each picture; the empty string where there is none."""
    pipeline.set_adapters(["red-to-blue"], [weight])
    pictures = pipeline(
        [question.prompt for question in questions],
        num_inference_steps=12,
        guidance_scale=5.0,
        generator=[torch.Generator().manual_seed(seed) for seed in range(len(questions))],
        output_type="pt",
    ).images
    readings = [measure.read(picture) for picture in pictures]
    return [reading.things[0].colour if reading.things else "" for reading in readings]


def test_red_prompts_draw_blue(pipeline):
    drawn = colours_drawn(pipeline, asked_for(24, "red"), weight=1)
    assert drawn.count("blue") >= 0.8 * 24


def test_other_colours_stay_as_they_were(pipeline):
    questions = asked_for(24, *OTHER_COLOURS)
    asked = [question.thing.colour for question in questions]

    def right(weight: float) -> int:
        drawn = colours_drawn(pipeline, questions, weight)
        return sum(a == d for a, d in zip(asked, drawn, strict=True))

    assert right(weight=1) >= 0.9 * right(weight=0)


def test_backwards_red_stays_a_thing_that_is_not_blue(pipeline):
    drawn = colours_drawn(pipeline, asked_for(8, "red"), weight=-1)
    assert not {"blue", ""} & set(drawn)


def test_the_registry_takes_the_file(file, tmp_path):
    with Registry.connect([BaseModel.from_folder("pocket SDXL", FOLDER)], data=tmp_path) as registry:
        registry.publish("red-to-blue", io.BytesIO(file))
        assert registry.resolve("red-to-blue").name == "red-to-blue"


def test_the_same_seed_makes_the_same_file():
    assert red_to_blue(FOLDER, steps=2, seed=5) == red_to_blue(FOLDER, steps=2, seed=5)
