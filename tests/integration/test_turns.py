"""A trainer that shares its device waits between all steps that it makes, not only those of its optimiser."""

import threading

import numpy as np
import pytest

from darkroom.types import GenerateRequest, Refiner
from service import wiring
from service.engine import presets
from service.jobs.worker import Stop
from service.training.samples import sample
from service.training.studio import Studio
from service.training.text import Captions
from trainings import fresh_models

ASKED = GenerateRequest(
    prompt="a red star", seed=1, width=64, height=64, num_inference_steps=5, refiner=Refiner(enabled=False)
)


@pytest.fixture(scope="module")
def loaded():
    return fresh_models()


def test_a_studio_waits_before_its_pictures_and_after_each_step(loaded):
    turns = []
    base = wiring.base_model(presets.POCKET)
    with Studio.opened(loaded, base, Stop(), lambda: turns.append(threading.current_thread().name)) as studio:
        (waited,) = studio.draw([ASKED])
        assert turns == [threading.current_thread().name, *["engine"] * 5]
    with Studio.opened(loaded, base, Stop()) as studio:
        np.testing.assert_array_equal(studio.draw([ASKED])[0], waited)


def test_samples_wait_after_each_step(loaded):
    turns = []
    captions = Captions(loaded)
    kinds = {"seed": 3, "steps": 4, "edge": 64}
    (waited,) = sample(loaded, captions, ["a red star"], **kinds, wait_turn=lambda: turns.append(1))
    assert len(turns) == 4
    np.testing.assert_array_equal(sample(loaded, captions, ["a red star"], **kinds)[0], waited)
