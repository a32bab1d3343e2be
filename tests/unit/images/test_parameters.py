"""The parameters text, read by parsers that work as A1111's and Civitai's do."""

import json
import re
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from darkroom.types import LoraReceipt, SchedulerName
from service.images.recipe import parameters_text

SETTING = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
HOSTILE = [
    "one\ntwo\r\nthree\rfour",
    "nul \0 bell \a escape \x1b[31m",
    "Negative prompt: mine",
    "a fox\nNegative prompt: mine\nSteps: 1, Sampler: Evil, CFG scale: 1, Seed: 0",
    "sneaky Negative\0prompt: and preSteps: 3",
    "<&>\"']]></rdf:RDF><!-- \\ \\u0000",
    "狐 🦊 ünï \u2028 \x85 \ufffe \uffff \ufeff",
    "x" * 4000,
    "🦊" * 4000,
    "\ufffe" * 4000,
    "&" * 4000,
    "\0" * 4000,
]


def read_like_a1111(text: str) -> tuple[str, str, dict[str, str]]:
    """(prompt, negative prompt, settings): the last line by regex, the label only at the start of a line."""
    *lines, last = text.strip().split("\n")
    assert len(SETTING.findall(last)) >= 3
    prompt: list[str] = []
    negative: list[str] = []
    target = prompt
    for line in lines:
        if line.strip().startswith("Negative prompt:"):
            target, line = negative, line.strip().removeprefix("Negative prompt:")
        target.append(line.strip())
    values = {key: json.loads(value) if value[:1] == '"' else value for key, value in SETTING.findall(last)}
    return "\n".join(prompt), "\n".join(negative), values


def read_like_civitai(text: str) -> tuple[str, str, str]:
    """(prompt, negative prompt, settings line): the first line that starts with Steps, labels anywhere."""
    lines = text.split("\n")
    details = next(line for line in lines if line.startswith("Steps: "))
    lines.remove(details)
    prompt, *negative = "\n".join(lines).split("Negative prompt:")
    return prompt.strip(), " ".join(negative).strip(), details


def test_the_text_is_what_a1111_would_have_written(receipt_of):
    assert parameters_text(receipt_of()) == (
        "a red fox in the snow\n"
        "Negative prompt: blurry\n"
        "Steps: 50, Sampler: Euler, Schedule type: Automatic, CFG scale: 7.5, Seed: 18446744073709551615, "
        "Size: 1024x768, Model: sdxl, Refiner: sdxl refiner, Refiner switch at: 0.8"
    )


def test_without_a_refiner_and_a_negative_prompt_neither_is_mentioned(receipt_of):
    for negative in (None, ""):
        text = parameters_text(receipt_of(refiner=None, negative_prompt=negative, guidance_scale=7.0))
        assert text == (
            "a red fox in the snow\nSteps: 50, Sampler: Euler, Schedule type: Automatic, CFG scale: 7, "
            "Seed: 18446744073709551615, Size: 1024x768, Model: sdxl"
        )


def test_loras_are_named_with_the_hash_that_a1111_looks_them_up_by(receipt_of):
    facts = {"weight": 0.5, "scope": "both", "start": 0.0, "end": 1.0, "digest": "sha256:" + "0" * 64}
    loras = [
        LoraReceipt(ref="ink-wash@3", auto_v3="0123456789ab", **facts),
        LoraReceipt(ref="wrong@1", auto_v3="ba9876543210", **facts),
    ]
    _, _, values = read_like_a1111(parameters_text(receipt_of(loras=loras)))
    assert values["Lora hashes"] == "ink-wash: 0123456789ab, wrong: ba9876543210"


@pytest.mark.parametrize(
    ("scheduler", "sampler", "schedule"),
    [
        ("euler_ancestral", "Euler a", "Automatic"),
        ("dpmpp_2m", "DPM++ 2M", "Uniform"),
        ("dpmpp_2m_karras", "DPM++ 2M", "Karras"),
        ("dpmpp_2m_sde_karras", "DPM++ 2M SDE", "Karras"),
        ("unipc", "UniPC", "Automatic"),
    ],
)
def test_schedulers_are_named_as_a1111_names_them(receipt_of, scheduler, sampler, schedule):
    _, _, settings = read_like_a1111(parameters_text(receipt_of(scheduler=scheduler)))
    assert (settings["Sampler"], settings["Schedule type"]) == (sampler, schedule)


@pytest.mark.parametrize("scheduler", get_args(SchedulerName))
def test_every_scheduler_has_a_name(receipt_of, scheduler):
    assert read_like_a1111(parameters_text(receipt_of(scheduler=scheduler)))[2]["Sampler"]


def test_a_model_name_with_commas_colons_and_quotes_stays_one_value(receipt_of):
    name = 'mine, "best": v2, Seed: 1'
    _, _, settings = read_like_a1111(parameters_text(receipt_of(model=name)))
    assert settings["Model"] == name
    assert settings["Seed"] == "18446744073709551615"


def test_lines_and_accents_of_a_prompt_survive(receipt_of):
    text = parameters_text(receipt_of(prompt="ein Fuchs\nim Schnee, ünï 狐", negative_prompt="grau\nmüde"))
    assert read_like_a1111(text)[:2] == ("ein Fuchs\nim Schnee, ünï 狐", "grau\nmüde")


@pytest.mark.parametrize("hostile", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_prompt_cannot_pass_for_another_field(receipt_of, hostile):
    text = parameters_text(receipt_of(prompt=hostile, negative_prompt="only this"))
    assert_fields_are_ours(text)
    text = parameters_text(receipt_of(prompt="a fox", negative_prompt=f"only this\n{hostile}"))
    assert read_like_a1111(text)[0] == "a fox"
    assert read_like_a1111(text)[2]["Steps"] == "50"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.sampled_from(["Negative", "prompt:", "Steps:", " ", "\n", "\0", "\r", "x", ", ", '"'])))
def test_no_mixture_of_labels_and_separators_passes_for_a_field(receipt_of, pieces):
    assert_fields_are_ours(parameters_text(receipt_of(prompt="".join(pieces), negative_prompt="only this")))


def assert_fields_are_ours(text: str) -> None:
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    _, negative, values = read_like_a1111(text)
    assert (negative, values["Steps"], values["Sampler"], values["Size"]) == (
        "only this",
        "50",
        "Euler",
        "1024x768",
    )
    _, negative, details = read_like_civitai(text)
    assert negative == "only this"
    assert details.startswith("Steps: 50, Sampler: Euler,")
