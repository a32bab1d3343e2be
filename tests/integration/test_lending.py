"""An engine that lends its device, memory and all, and has it back as it was, to the bit."""

import threading

import numpy as np
import pytest
import torch

from adapters import a_lora, arranged, random_adapter
from builders import an_order, run
from integration.test_hot_swap import pictures
from service.engine import canary
from service.engine.audit import Auditor
from service.engine.engine import Engine
from service.engine.guard import Guard
from service.errors import DeviceLent


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


def test_nothing_is_resident_while_the_device_is_lent_and_everything_comes_back_to_the_bit(own):
    adapter = random_adapter(own.models, 3)
    order, adapters = an_order(loras=(a_lora(adapter),), hand_over=0.5), arranged(own.models, adapter)
    before = pictures(own, order, adapters)
    plain = pictures(own, an_order(), {})
    auditor = own.run(lambda: Auditor(own.models)).result()
    assert resident_bytes(own) > 10_000_000
    assert own.lend()
    assert resident_bytes(own) == 0
    own.take_back()
    assert resident_bytes(own) > 10_000_000
    assert own.run(auditor.inspect).result().sound
    np.testing.assert_array_equal(pictures(own, an_order(), {}), plain)
    np.testing.assert_array_equal(pictures(own, order, adapters), before)


def test_it_can_be_lent_again_and_again(own):
    plain = pictures(own, an_order(), {})
    for _ in range(3):
        assert own.lend()
        assert own.lend(), "lent already"
        own.take_back()
        own.take_back()
    np.testing.assert_array_equal(pictures(own, an_order(), {}), plain)


def test_whatever_asks_for_a_lent_device_is_refused_and_told_since_when(own):
    own.lend()
    with pytest.raises(DeviceLent, match="a train job has had the device for 0 s"):
        run(own, an_order())
    with pytest.raises(DeviceLent):
        own.pristine_of("unet", next(iter(own.models.layout["unet"])))
    assert not own.idle
    assert own.alive
    own.take_back()
    assert own.idle
    assert len(run(own, an_order()).pictures) == 1


def test_a_guard_takes_a_lent_device_for_no_damage(own):
    guard = Guard(own, canary.develop(own).pixels_HWC, audit_seconds=0, canary_seconds=0)
    own.lend()
    assert guard.look() is None
    own.take_back()
    assert guard.look() is None


def test_nothing_is_lent_while_a_picture_is_made(own):
    begun, go_on, ends = threading.Event(), threading.Event(), []

    def listener(event):
        begun.set()
        go_on.wait(30)
        ends.append(event)

    own.submit(an_order(num_inference_steps=3), listener)
    assert begun.wait(30)
    lending = threading.Thread(target=lambda: ends.append(own.lend()))
    lending.start()
    go_on.set()
    lending.join(30)
    assert False in ends
    own.run(lambda: None).result()  # which a lent device would refuse
    assert resident_bytes(own) > 0


def test_a_host_without_room_keeps_everything_on_the_device(own, monkeypatch):
    plain = pictures(own, an_order(), {})
    spare = iter(range(100))
    copy = torch.Tensor.to

    def short(tensor, *args, **kwargs):
        if kwargs.get("copy") and next(spare) >= 20:
            raise RuntimeError("not enough memory: you tried to allocate 12345 bytes")
        return copy(tensor, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "to", short)
    with pytest.raises(RuntimeError, match="not enough memory"):
        own.lend()
    monkeypatch.undo()
    np.testing.assert_array_equal(pictures(own, an_order(), {}), plain)


def test_a_device_without_room_leaves_it_lent_and_is_tried_again(own, monkeypatch):
    plain = pictures(own, an_order(), {})
    assert own.lend()
    room, resize = iter(range(100)), torch.UntypedStorage.resize_

    def crowded(storage, size):
        if next(room) >= 20:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return resize(storage, size)

    monkeypatch.setattr(torch.UntypedStorage, "resize_", crowded)
    with pytest.raises(torch.OutOfMemoryError):
        own.take_back()
    with pytest.raises(DeviceLent):
        run(own, an_order())
    monkeypatch.undo()
    own.take_back()
    np.testing.assert_array_equal(pictures(own, an_order(), {}), plain)


def test_an_engine_whose_device_is_lent_can_be_closed(own):
    own.lend()
    own.close()
    assert not own.alive
