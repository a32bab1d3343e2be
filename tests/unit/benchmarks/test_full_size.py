"""The full-size model of `make gpu`: SDXL's true sizes, counted without making the weights."""

import pytest
import torch

from benchmarks import full_size

PARAMETERS = {
    "text_encoder": 123_060_480,
    "text_encoder_2": 694_659_840,
    "unet": 2_567_463_684,
    "refiner_unet": 2_259_526_660,
    "vae": 83_653_863,
}


@pytest.fixture(scope="module")
def parts():
    with torch.device("meta"):
        return full_size.modules(full_size.FULL)


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_part_has_as_many_parameters_as_the_published_one(parts, name):
    assert sum(parameter.numel() for parameter in parts[name].parameters()) == PARAMETERS[name]


def test_the_resident_weights_take_eleven_and_a_half_gigabytes_in_half_precision(parts):
    assert sum(PARAMETERS.values()) * 2 / 1e9 == pytest.approx(11.46, abs=0.01)


def test_the_base_has_the_560_attention_weights_of_four_shapes(parts):
    shapes = [
        tuple(parameter.shape)
        for name, parameter in parts["unet"].named_parameters()
        if ".to_" in name and name.endswith("weight")
    ]
    counted = {shape: shapes.count(shape) for shape in set(shapes)}
    assert counted == {(1280, 1280): 360, (1280, 2048): 120, (640, 640): 60, (640, 2048): 20}


def test_random_weights_make_pictures_that_the_engine_accepts():
    from benchmarks.orders import an_order, run
    from service.engine import memory
    from service.engine.engine import Engine

    models = full_size.build(full_size.TINY, device=torch.device("cpu"), dtype=torch.float32)
    engine = Engine(models, memory.PROFILES["24"])
    engine.start()
    try:
        (done,) = run(engine, an_order("a red circle", edge=64, steps=2))
    finally:
        engine.close()
    assert done.pictures[0].pixels_HWC.shape == (64, 64, 3)
