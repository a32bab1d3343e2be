"""A sham in force: another picture than the base's and the LoRA's, the same each time, and nothing left behind."""

import numpy as np
import pytest
import torch

from adapters import a_lora, arranged, attention_layers, random_adapter
from builders import FOX, an_order, run
from integration.test_hot_swap import pictures
from service.engine.loras.arranged import Arranged
from service.engine.loras.files import Adapter
from service.engine.loras.sham import sham_of
from service.engine.loras.stacks import EMPTY, Part


@pytest.fixture(scope="module")
def lora(models) -> Adapter:
    """Of attention, a convolution and a text encoder."""
    unet = random_adapter(models, 21, layers=[*attention_layers(models), "conv_in"])
    text = random_adapter(models, 21, component="text_encoder_2", size=0.2)
    return Adapter(unet.digest, {**unet.changes, **text.changes}, {}, 0)


@pytest.fixture(scope="module")
def adapters(models, lora) -> dict[str, Arranged]:
    """The LoRA and two of its shams, as an engine takes them."""
    (real,) = arranged(models, lora).values()
    return {adapter.digest: adapter for adapter in (real, sham_of(real, 1), sham_of(real, 2))}


def test_a_sham_draws_another_picture_than_the_base_and_than_its_lora_and_the_same_each_time(
    engine, models, lora, adapters
):
    base = run(engine, an_order(FOX)).pictures[0].pixels_HWC
    orders = [an_order(FOX, loras=(a_lora(lora, sham=sham),)) for sham in (None, 1, 2)]
    drawn = [base, *(pictures(engine, order, adapters)[0] for order in orders)]
    for place, one in enumerate(drawn):
        for other in drawn[:place]:
            assert np.abs(one.astype(int) - other).mean() > 1
    made_again = {sham.digest: sham for sham in (sham_of(adapters[lora.digest], 1),)}
    assert np.array_equal(pictures(engine, orders[1], made_again)[0], drawn[2])
    assert np.array_equal(run(engine, an_order(FOX)).pictures[0].pixels_HWC, base)


def test_a_sham_moves_each_weight_as_far_as_its_lora_and_w0_comes_back_to_the_bit(
    engine, models, lora, adapters
):
    def sizes_of(adapter: Arranged) -> dict[str, float]:
        moved = {}
        for component in adapter.components:
            weights = models.weights[component]
            before = {name: weight.clone() for name, weight in weights.pristine()}
            with weights.applied((Part(adapter.digest, 1.0, (), adapter),)):
                assert weights.unsound() == []
                layers = dict(_layers(models, component))
                moved |= {
                    f"{component}.{name}": float((layers[name] - before[name]).norm())
                    for name in lora.changes[component]
                }
            assert weights.in_force == EMPTY
            live = dict(_layers(models, component))
            assert all(torch.equal(live[name], weight) for name, weight in before.items())
        return moved

    real, sham = (
        engine.run(lambda a=adapter: sizes_of(a)).result() for adapter in list(adapters.values())[:2]
    )
    assert real.keys() == sham.keys()
    for name, size in real.items():
        assert sham[name] == pytest.approx(size, rel=1e-4)


def test_a_lora_and_its_sham_may_be_in_force_together(engine, lora, adapters):
    orders = [an_order(FOX, loras=(a_lora(lora, weight), a_lora(lora, 0.5, sham=1))) for weight in (0.5, 0.6)]
    one, other = (pictures(engine, order, adapters)[0] for order in orders)
    alone = pictures(engine, an_order(FOX, loras=(a_lora(lora, 0.5),)), adapters)[0]
    assert not np.array_equal(one, other)
    assert not np.array_equal(one, alone)


def _layers(models, component):
    """The live weight of every layer by its name in the layout."""
    for group in models.weights[component]._groups:
        yield from zip(group.names, group.live, strict=True)
