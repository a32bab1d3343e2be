"""The engine under its settings: other dtypes, no refiner, a small card, compiled UNets."""

import shutil

import numpy as np
import pytest
import torch

from builders import an_order, run
from service.engine import memory, presets
from service.engine import models as loading
from service.engine.engine import Engine
from service.errors import InvalidSettings

CPU = torch.device("cpu")


def picture(loaded, order, *, profile="24", pad=False):
    engine = Engine(loaded, memory.PROFILES[profile], pad=pad)
    engine.start()
    try:
        return run(engine, order).pictures[0].pixels_HWC.astype(int)
    finally:
        engine.close()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_nearly_the_same_picture(models, dtype):
    half = loading.load(presets.POCKET, device=CPU, dtype=dtype)
    order = an_order(hand_over=0.5, num_inference_steps=4)
    difference = np.abs(picture(half, order) - picture(models, order))
    assert difference.mean() < 6


def test_without_the_refiner_the_base_does_all_steps():
    loaded = loading.load(presets.POCKET, device=CPU, dtype=torch.float32, refiner=False)
    assert not loaded.has_refiner
    engine = Engine(loaded, memory.PROFILES["24"])
    engine.start()
    try:
        made = run(engine, an_order()).pictures[0]
    finally:
        engine.close()
    assert (made.base_steps, made.refiner_steps) == (4, 0)


def test_a_small_card_decodes_only_what_is_larger_than_the_models_own_size_in_tiles(models):
    small = loading.load(presets.POCKET, device=CPU, dtype=torch.float32)  # tiling is a state of the VAE
    own_size, larger = an_order(seeds=(3,)), an_order(seeds=(3,), width=128, height=128)
    assert np.abs(picture(small, own_size, profile="16") - picture(models, own_size)).max() <= 1
    assert 0 < np.abs(picture(small, larger, profile="16") - picture(models, larger)).mean() < 4


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="torch.compile on the CPU needs a C++ compiler")
def test_compiled_unets_give_the_same_picture(models):
    compiled = loading.load(
        presets.POCKET, device=CPU, dtype=torch.float32, refiner=False, compile_unets=True
    )
    order = an_order(num_inference_steps=3)
    assert np.abs(picture(compiled, order, pad=True) - picture(models, order)).max() <= 2


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(InvalidSettings, match="'gpu', which is no torch device"):
        loading.pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(InvalidSettings, match="torch sees no CUDA device"):
            loading.pick_device("cuda")


def test_the_dtype_follows_the_device_unless_it_is_named():
    assert loading.pick_dtype("auto", CPU) == torch.float32
    assert loading.pick_dtype("auto", torch.device("cuda")) == torch.float16
    assert loading.pick_dtype("bfloat16", CPU) == torch.bfloat16


def test_a_small_model_is_run_by_one_thread(models):
    assert loading.pick_threads(models) == 1
