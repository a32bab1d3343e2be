"""Why a cell has no picture, in the words in which a request of its own would have heard it."""

import pytest

from lora_registry.errors import BlobMissing, CatalogUnavailable, StorageUnavailable
from service.api import problems
from service.compare import failures
from service.compare.failures import problem_of
from service.errors import (
    DeadlineExceeded,
    IncompatibleLora,
    InvalidPrompt,
    OutOfDeviceMemory,
    SwapFailed,
    UnusableImage,
)

RAISED = [
    UnusableImage("black", seed=7),
    InvalidPrompt('this "(" is never closed', position=3),
    IncompatibleLora("LoRA 'ink@2' was made for Stable Diffusion 1.5; this service runs SDXL 1.0"),
    OutOfDeviceMemory("the device has no room for 2048×2048"),
    SwapFailed("the LoRAs could not be put in force"),
    DeadlineExceeded("the images were not done within 600 s"),
    BlobMissing("sha256:" + "a" * 64),
    StorageUnavailable("the bucket does not answer"),
]


@pytest.mark.parametrize("error", RAISED, ids=lambda error: type(error).__name__)
def test_a_cell_says_what_the_http_door_would_have_said(error):
    told, row = problem_of(error), problems.TABLE[type(error)]
    assert (told.status, told.code, told.title) == (row.status, row.code, row.title)
    assert told.detail == problems.describe(error).detail
    assert told.type == f"urn:darkroom:problem:{row.code}"


def test_every_kind_of_failure_that_has_words_is_among_these():
    assert {type(error) for error in RAISED} == set(failures._SAID)


def test_a_kind_of_its_own_is_told_as_the_kind_that_it_is_of():
    class Blurred(UnusableImage):
        pass

    assert problem_of(Blurred("flat", seed=1)).code == "unusable_image"


def test_what_was_raised_on_purpose_keeps_its_words_and_a_bug_does_not():
    away = problem_of(CatalogUnavailable("the database does not answer"))
    assert (away.status, away.code, away.detail) == (500, "internal", "the database does not answer")
    bug = problem_of(ValueError("/secret/place is not a tensor"))
    assert (bug.status, bug.code) == (500, "internal")
    assert bug.detail == "the picture could not be made (ValueError)"


def test_words_without_end_are_cut():
    assert len(problem_of(SwapFailed("x" * 9000)).detail) == 300
