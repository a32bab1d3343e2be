"""Every file of the zoo is wholly accepted or refused by name; there is nothing between."""

from io import BytesIO

import pytest
import safetensors.numpy

from lora_registry.header import read_header
from lora_registry.inspection import inspect, judge
from unit.lora_registry.makers import BASES
from unit.lora_registry.zoo import specimen, zoo

NAMES = list(zoo())
GOOD = [name for name in NAMES if not specimen(name).refused]


@pytest.mark.parametrize("name", NAMES)
def test_each_file_gets_the_verdict_that_it_deserves(name):
    animal = specimen(name)
    found = inspect(BytesIO(animal.data), len(animal.data), [BASES[animal.serves]()], auto_v3=12 * "0")
    told = {reason.code for reason in (found.reasons if animal.refused else found.warnings)}
    assert (not found.accepted, told) == (animal.refused, set(animal.codes)), found.reasons
    assert (found.verdict == "accepted") == (not animal.refused and not animal.codes)


@pytest.mark.parametrize("name", GOOD)
def test_an_accepted_file_is_described_as_what_it_is(name):
    animal = specimen(name)
    found = inspect(BytesIO(animal.data), len(animal.data), [BASES[animal.serves]()])
    assert (found.format, found.kind, found.components) == (animal.format, animal.kind, animal.components)
    assert (len(found.modules), len(found.embeddings)) == (animal.modules, animal.embeddings)
    if animal.ranks:
        assert {module.rank for module in found.modules} == animal.ranks
    if animal.scales:
        assert {module.scale for module in found.modules} == animal.scales


@pytest.mark.parametrize("name", GOOD)
def test_an_accepted_file_has_every_tensor_in_use(name):
    animal = specimen(name)
    found = inspect(BytesIO(animal.data), len(animal.data), [BASES[animal.serves]()])
    used = [key for module in found.modules for key in module.tensors.values()]
    used += [embedding.key for embedding in found.embeddings]
    assert sorted(used) == sorted(read_header(BytesIO(animal.data), len(animal.data)).tensors)


@pytest.mark.parametrize("name", [name for name in GOOD if name != "peft bfloat16"])
def test_the_files_of_the_zoo_are_real_ones(name):
    assert safetensors.numpy.load(specimen(name).data)


@pytest.mark.parametrize("name", NAMES)
def test_the_header_alone_refuses_everything_but_bad_numbers(name):
    animal = specimen(name)
    about_numbers = {"values.not_finite", "values.huge", "alpha.invalid"}
    about_bytes = {code for code in animal.codes if code.startswith(("file.", "header."))}
    if not animal.refused or animal.codes & about_numbers or about_bytes:
        return
    whole = BytesIO(animal.data)
    header = read_header(whole, len(animal.data))
    assert whole.tell() <= header.data_start
    assert not judge(header, [BASES[animal.serves]()]).accepted


def test_there_are_enough_animals():
    assert len(NAMES) >= 60
    assert len(GOOD) >= 40


def test_reasons_list_the_tensors_that_they_are_about():
    animal = specimen("an unknown tensor")
    (reason,) = inspect(BytesIO(animal.data), len(animal.data), [BASES["pocket"]()]).reasons
    assert (reason.code, reason.keys, reason.count) == ("keys.unknown", ("surprise",), 1)


def test_a_refusal_names_the_model_of_the_file_and_of_the_service():
    animal = specimen("sdxl to a pocket service")
    (reason,) = inspect(BytesIO(animal.data), len(animal.data), [BASES["pocket"]()]).reasons
    assert reason.message == "it was made for SDXL 1.0; this service runs pocket SDXL"


def test_a_registry_for_two_models_takes_the_files_of_both():
    for name in ("kohya sgm", "kohya sgm sdxl"):
        animal = specimen(name)
        found = inspect(BytesIO(animal.data), len(animal.data), [BASES["sdxl"](), BASES["pocket"]()])
        assert found.accepted
        assert found.family == BASES[animal.serves]().name
