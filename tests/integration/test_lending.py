"""An engine that lends its device, memory and all, and has it back as it was, to the bit."""

import threading

import numpy as np
import pytest
import torch

from adapters import a_lora, arranged, random_adapter
from builders import an_order, run
from integration.test_hot_swap import pictures
from service.engine import canary, memory, models, presets
from service.engine.audit import Auditor
from service.engine.engine import Engine
from service.engine.guard import Guard
from service.errors import DeviceLent


@pytest.fixture
def engine():
    loaded = models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)
    engine = Engine(loaded, memory.PROFILES["24"])
    engine.start()
    yield engine
    engine.close()


def resident_bytes(engine: Engine) -> int:
    tensors = list(engine.models.tensors())
    tensors += [
        group.pristine
        for weights in engine.models.weights.values()
        for group in weights._groups
        if group.was_changed
    ]
    sizes = {tensor.data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(sizes.values())


def test_nothing_is_resident_while_the_device_is_lent_and_everything_comes_back_to_the_bit(engine):
    adapter = random_adapter(engine.models, 3)
    order, adapters = an_order(loras=(a_lora(adapter),), hand_over=0.5), arranged(engine.models, adapter)
    before = pictures(engine, order, adapters)
    plain = pictures(engine, an_order(), {})
    auditor = engine.run(lambda: Auditor(engine.models)).result()
    assert resident_bytes(engine) > 10_000_000
    assert engine.lend()
    assert resident_bytes(engine) == 0
    engine.take_back()
    assert resident_bytes(engine) > 10_000_000
    assert engine.run(auditor.inspect).result().sound
    np.testing.assert_array_equal(pictures(engine, an_order(), {}), plain)
    np.testing.assert_array_equal(pictures(engine, order, adapters), before)


def test_it_can_be_lent_again_and_again(engine):
    plain = pictures(engine, an_order(), {})
    for _ in range(3):
        assert engine.lend()
        assert engine.lend(), "lent already"
        engine.take_back()
        engine.take_back()
    np.testing.assert_array_equal(pictures(engine, an_order(), {}), plain)


def test_whatever_asks_for_a_lent_device_is_refused_and_told_since_when(engine):
    engine.lend()
    with pytest.raises(DeviceLent, match="a train job has had the device for 0 s"):
        run(engine, an_order())
    with pytest.raises(DeviceLent):
        engine.pristine_of("unet", next(iter(engine.models.layout["unet"])))
    assert not engine.idle
    assert engine.alive
    engine.take_back()
    assert engine.idle
    assert len(run(engine, an_order()).pictures) == 1


def test_a_guard_takes_a_lent_device_for_no_damage(engine):
    guard = Guard(engine, canary.develop(engine).pixels_HWC, audit_seconds=0, canary_seconds=0)
    engine.lend()
    assert guard.look() is None
    engine.take_back()
    assert guard.look() is None


def test_nothing_is_lent_while_a_picture_is_made(engine):
    begun, go_on, ends = threading.Event(), threading.Event(), []

    def listener(event):
        begun.set()
        go_on.wait(30)
        ends.append(event)

    engine.submit(an_order(num_inference_steps=3), listener)
    assert begun.wait(30)
    lending = threading.Thread(target=lambda: ends.append(engine.lend()))
    lending.start()
    go_on.set()
    lending.join(30)
    assert False in ends
    engine.run(lambda: None).result()  # which a lent device would refuse
    assert resident_bytes(engine) > 0


def test_a_host_without_room_keeps_everything_on_the_device(engine, monkeypatch):
    plain = pictures(engine, an_order(), {})
    spare = iter(range(100))
    copy = torch.Tensor.to

    def short(tensor, *args, **kwargs):
        if kwargs.get("copy") and next(spare) >= 20:
            raise RuntimeError("not enough memory: you tried to allocate 12345 bytes")
        return copy(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", short)
    with pytest.raises(RuntimeError, match="not enough memory"):
        engine.lend()
    monkeypatch.undo()
    np.testing.assert_array_equal(pictures(engine, an_order(), {}), plain)


def test_a_device_without_room_leaves_it_lent_and_is_tried_again(engine, monkeypatch):
    plain = pictures(engine, an_order(), {})
    assert engine.lend()
    room, resize = iter(range(100)), torch.UntypedStorage.resize_

    def crowded(storage, size):
        if next(room) >= 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resize(storage, size)

    monkeypatch.setattr(torch.UntypedStorage, "resize_", crowded)
    with pytest.raises(torch.OutOfMemoryError):
        engine.take_back()
    with pytest.raises(DeviceLent):
        run(engine, an_order())
    monkeypatch.undo()
    engine.take_back()
    np.testing.assert_array_equal(pictures(engine, an_order(), {}), plain)


def test_an_engine_whose_device_is_lent_can_be_closed(engine):
    engine.lend()
    engine.close()
    assert not engine.alive
