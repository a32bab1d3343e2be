"""The engine on CUDA, with the pocket model: the same promises as on the CPU."""

import pytest
import torch

from benchmarks import parity
from benchmarks.orders import an_order, run
from service.engine import memory, models, presets
from service.engine.engine import Engine

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here"),
]


def load(dtype: torch.dtype, **options):
    return models.load(presets.POCKET, device=torch.device("cuda"), dtype=dtype, **options)


@pytest.fixture(scope="module")
def on_cuda():
    return load(torch.float32)


@pytest.fixture
def engine_of():
    """Starts engines, and closes them in the end."""
    engines = []

    def start(loaded, **options) -> Engine:
        engines.append(Engine(loaded, memory.PROFILES["24"], **options))
        engines[-1].start()
        return engines[-1]

    yield start
    for engine in engines:
        engine.close()


def pixels(engine: Engine, *orders):
    return [picture.pixels_HWC.astype(int) for done in run(engine, *orders) for picture in done.pictures]


def test_latents_equal_those_of_stock_diffusers_whoever_shares_the_batch(on_cuda):
    found = parity.differences(on_cuda, memory.PROFILES["24"], edge=64)
    assert max(found.values()) <= parity.TOLERANCE, found


def test_a_seed_gives_the_same_picture_as_on_the_cpu(on_cuda, models, engine_of):
    order = an_order("a big red circle", edge=64, steps=6, seeds=(7,))
    with parity.full_float32():
        (cuda,) = pixels(engine_of(on_cuda), order)
    (cpu,) = pixels(engine_of(models), order)
    assert abs(cuda - cpu).max() <= 2


def test_a_picture_does_not_depend_on_its_companions(on_cuda, engine_of):
    engine = engine_of(on_cuda)
    order = an_order("a green star", edge=64, steps=5, seeds=(1,), scheduler="euler_ancestral")
    strangers = [an_order(f"stranger {seed}", edge=64, steps=3 + seed, seeds=(seed,)) for seed in range(3)]
    with parity.full_float32():
        (alone,) = pixels(engine, order)
        in_company = pixels(engine, *strangers, order)[-1]
    assert abs(alone - in_company).max() <= 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_makes_pictures(dtype, engine_of):
    (picture,) = pixels(engine_of(load(dtype)), an_order("a blue ring", edge=64, steps=6))
    assert picture.max() - picture.min() > 32


def test_compiled_blocks_give_the_same_picture(on_cuda, engine_of):
    order = an_order("a yellow cross", edge=64, steps=4, seeds=(3,))
    with parity.full_float32():
        (eager,) = pixels(engine_of(on_cuda), order)
        (compiled,) = pixels(engine_of(load(torch.float32, compile_unets=True), pad=True), order)
    assert abs(eager - compiled).max() <= 2


def test_eight_images_of_one_order_are_those_made_alone(on_cuda, engine_of):
    engine = engine_of(on_cuda)
    with parity.full_float32():
        together = pixels(engine, an_order("dots", edge=64, steps=4, seeds=range(8)))
        alone = [pixels(engine, an_order("dots", edge=64, steps=4, seeds=(seed,)))[0] for seed in range(8)]
    assert max(abs(one - other).max() for one, other in zip(together, alone, strict=True)) <= 2


def test_a_lent_device_has_room_and_comes_back_to_the_bit(engine_of):
    engine = engine_of(load(torch.float32))
    order = an_order("a blue ring", edge=64, steps=5, seeds=(2,))
    (before,) = pixels(engine, order)
    held = engine.run(torch.cuda.memory_allocated).result()
    assert engine.lend()
    assert torch.cuda.memory_allocated() < held - 10_000_000
    engine.take_back()
    (after,) = pixels(engine, order)
    assert (before == after).all()
