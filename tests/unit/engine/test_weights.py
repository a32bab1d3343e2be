"""Live weights under stacks: exact, from the pristine copy, and whole whatever fails."""

import contextlib
import random

import pytest
import torch
from torch import nn

from lora_registry import faults
from service.engine.loras.arranged import arrange
from service.engine.loras.changes import Change
from service.engine.loras.files import Adapter
from service.engine.loras.stacks import EMPTY, Part
from service.engine.loras.weights import Weights
from service.errors import IncompatibleLora, OutOfDeviceMemory, SwapFailed, WeightsLost


class Block(nn.Module):
    """Two attentions of one shape, a feed-forward layer and a convolution, as a UNet has them."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(
            nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(8, 8), "to_k": nn.Linear(8, 8)})})
            for _ in range(4)
        )
        self.ff = nn.Linear(8, 24)
        self.conv = nn.Conv2d(4, 6, 3)


@pytest.fixture
def block() -> Block:
    torch.manual_seed(0)
    return Block().requires_grad_(False)


@pytest.fixture(params=[0, 1 << 20], ids=["computed", "kept"])
def weights(block, request) -> Weights:
    """Once with every swap computed, once with copies kept of what comes again."""
    return Weights("unet", block, kept_bytes=request.param)


@pytest.fixture(autouse=True)
def _disarmed():
    yield
    faults.load("")


def values(block: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in block.state_dict().items()}


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


def plain(shape: torch.Size, rank: int, generator: torch.Generator) -> Change:
    up = torch.randn(shape[0], rank, generator=generator)
    down = torch.randn(rank, shape[1:].numel(), generator=generator)
    return Change("lora", 1.0, {"up": up, "down": down})


def loha(shape: torch.Size, generator: torch.Generator) -> Change:
    inputs = shape[1:].numel()
    sizes = {
        "hada_w1_a": (shape[0], 2),
        "hada_w1_b": (2, inputs),
        "hada_w2_a": (shape[0], 2),
        "hada_w2_b": (2, inputs),
    }
    return Change("loha", 0.5, {role: torch.randn(size, generator=generator) for role, size in sizes.items()})


def part(weights: Weights, seed: int, weight: float = 1.0, *, layers=None, blocks=(), kind=plain) -> Part:
    generator = torch.Generator().manual_seed(seed)
    pristine = dict(weights.pristine())
    names = [name for name in pristine if layers is None or any(piece in name for piece in layers)]
    changes = {
        name: plain(pristine[name].shape, 1 + seed % 3, generator)
        if kind is plain
        else loha(pristine[name].shape, generator)
        for name in names
    }
    adapter = arrange(Adapter(f"{seed}", {"unet": changes}, {}, 0), {"unet": weights.layout})
    return Part(f"{seed}", weight, blocks, adapter)


def expected(before: dict[str, torch.Tensor], *terms: tuple[Part, Weights]) -> dict[str, torch.Tensor]:
    """W0 + Σ s·ΔW written out, layer by layer, in float64."""
    totals = {name: tensor.double() for name, tensor in before.items()}
    for one, weights in terms:
        changes = one.adapter.components["unet"]
        places = {place: name for name, place in weights.layout.items()}
        for run in changes.runs:
            for at, (up, down) in enumerate(zip(run.up_nOr, run.down_nrI, strict=True), run.first):
                name = places[run.group, at]
                delta = (up.double() @ down.double()).view_as(totals[f"{name}.weight"])
                totals[f"{name}.weight"] += one.weight * dict(one.blocks).get(name.split(".")[0], 1.0) * delta
        for place, change in changes.singles:
            name = f"{places[place]}.weight"
            totals[name] += one.weight * change.delta(before[name]).double()
    return totals


def assert_close(block: nn.Module, wanted: dict[str, torch.Tensor]) -> None:
    for name, tensor in block.state_dict().items():
        torch.testing.assert_close(tensor.double(), wanted[name], atol=1e-5, rtol=1e-5)


def test_taking_the_weights_over_changes_nothing(block):
    before = values(block)
    Weights("unet", block)
    assert equal(before, values(block))


def test_neighbouring_layers_of_one_role_lie_in_one_tensor(weights):
    places = [weights.layout[f"transformer_blocks.{i}.attn1.to_q"] for i in range(4)]
    assert [place.at for place in places] == [0, 1, 2, 3]
    assert len({place.group for place in places}) == 1


@pytest.mark.parametrize("weight", [1.0, 0.5, -1.0])
def test_a_stack_of_one_is_w0_plus_its_weight_times_its_change(block, weights, weight):
    before = values(block)
    one = part(weights, 1, weight)
    assert weights.apply((one,))
    assert_close(block, expected(before, (one, weights)))


def test_a_stack_of_several_is_the_sum_whatever_layers_and_algorithms_they_have(block, weights):
    before = values(block)
    stack = (
        part(weights, 1, 0.7),
        part(weights, 2, -0.4, layers=("to_q", "ff")),
        part(weights, 3, 1.1, layers=(".1.attn1", ".2.attn1", "conv")),
        part(weights, 4, 0.5, layers=("to_k", "conv"), kind=loha),
    )
    weights.apply(stack)
    assert_close(block, expected(before, *((one, weights) for one in stack)))


def test_block_weights_scale_the_layers_whose_names_begin_so(block, weights):
    before = values(block)
    one = part(weights, 5, 0.8, blocks=(("transformer_blocks", 0.25), ("ff", 0.0), ("conv", -1.0)))
    weights.apply((one,))
    assert_close(block, expected(before, (one, weights)))
    assert torch.equal(block.ff.weight, before["ff.weight"])


def test_a_b_a_gives_the_bits_of_a_again_and_no_stack_the_bits_of_the_base(block, weights):
    before = values(block)
    a, b = (part(weights, 1),), (part(weights, 2, layers=("to_q", "conv")), part(weights, 3, kind=loha))
    weights.apply(a)
    under_a = values(block)
    weights.apply(b)
    weights.apply(a)
    assert equal(under_a, values(block))
    weights.apply(EMPTY)
    assert equal(before, values(block))


def test_the_stack_in_force_is_not_written_twice(weights):
    one = (part(weights, 1),)
    assert weights.apply(one)
    assert not weights.apply(one)


def test_addresses_stay_so_that_compiled_code_stays_valid(block, weights):
    before = {name: tensor.data_ptr() for name, tensor in block.state_dict().items()}
    weights.apply((part(weights, 1),))
    assert before == {name: tensor.data_ptr() for name, tensor in block.state_dict().items()}


def test_applied_puts_the_base_back_even_when_the_block_fails(block, weights):
    before = values(block)
    with contextlib.suppress(ZeroDivisionError), weights.applied((part(weights, 1),)):
        assert not equal(before, values(block))
        raise ZeroDivisionError
    assert equal(before, values(block))


def test_a_swap_that_fails_at_any_step_keeps_the_previous_weights(block, weights):
    previous, following = (
        (part(weights, 1),),
        (part(weights, 2, layers=("to_q",)), part(weights, 3, kind=loha)),
    )
    weights.apply(previous)
    before = values(block)
    failures = 0
    for step in range(1, 100):
        faults.load(f"#{step}=error")
        try:
            weights.apply(following)
        except SwapFailed:
            failures += 1
            faults.load("")
            assert weights.in_force == previous
            assert equal(before, values(block))
            assert weights.unsound() == []
        else:
            break
    assert failures >= 5
    assert weights.in_force == following


def test_a_swap_that_cannot_be_undone_is_told_apart(block, weights, monkeypatch):
    weights.apply((part(weights, 1),))

    def broken(*_args, **_options):
        raise RuntimeError("the device is gone")

    monkeypatch.setattr(Weights, "_write", broken)
    with pytest.raises(WeightsLost):
        weights.apply((part(weights, 2),))


def test_a_changed_number_is_seen_under_any_stack_and_a_flipped_bit_without(block, weights):
    for stack in (EMPTY, (part(weights, 1),), (part(weights, 2, kind=loha),)):
        weights.apply((part(weights, 3),))
        weights.apply(stack)
        assert weights.unsound() == []
        block.transformer_blocks[2]["attn1"]["to_k"].weight[3, 5] += 1e-2 if stack else 1e-6
        assert weights.unsound() == ["transformer_blocks.2.attn1.to_k"]
        weights.apply((part(weights, 4),))


def test_copies_are_kept_of_what_comes_again_and_within_their_bytes(block):
    def kept_of_four(kept_bytes: int) -> list[int]:
        weights = Weights("unet", block, kept_bytes=kept_bytes)
        stacks = [(part(weights, seed),) for seed in range(4)]
        for stack in (*stacks, *stacks, EMPTY):
            weights.apply(stack)
        plans = [weights._known.get(stack) for stack in stacks]
        return [plan.size_bytes if plan else 0 for plan in plans]

    sizes = kept_of_four(1 << 20)
    assert all(sizes)
    assert kept_of_four(sum(sizes[2:])) == [0, 0, *sizes[2:]]


def test_a_kept_copy_that_was_damaged_is_seen_once_it_is_in_force(block):
    weights = Weights("unet", block, kept_bytes=1 << 20)
    stack, other = (part(weights, 1),), (part(weights, 2),)
    for one in (stack, other, stack, other):
        weights.apply(one)
    weights._known.get(stack).copies[0].values.view(-1)[0] += 1
    weights.apply(stack)
    assert len(weights.unsound()) == 1


def test_a_change_of_a_layer_that_is_not_there_is_refused_before_anything_moves(weights):
    change = plain(torch.Size((8, 8)), 2, torch.Generator())
    with pytest.raises(IncompatibleLora, match=r"first 'nowhere\.to_q'"):
        arrange(Adapter("x", {"unet": {"nowhere.to_q": change}}, {}, 0), {"unet": weights.layout})


def test_a_device_that_has_no_room_for_the_pristine_copy_keeps_its_weights(block, weights, monkeypatch):
    before = values(block)

    def no_room(*_args, **_options):
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch, "empty_like", no_room)
    with pytest.raises(OutOfDeviceMemory):
        weights.apply((part(weights, 1),))
    assert weights.in_force == EMPTY
    assert equal(before, values(block))
    monkeypatch.undo()
    assert weights.apply((part(weights, 1),))


def test_a_thousand_random_stacks_leave_the_base_untouched(block, weights):
    before = values(block)
    draw = random.Random(7)
    parts = [
        part(weights, seed, layers=draw.choice((None, ("to_q",), ("attn1",), ("conv", "ff"))), kind=kind)
        for seed, kind in enumerate([plain] * 6 + [loha] * 2)
    ]
    for _ in range(1000):
        chosen = draw.sample(parts, draw.randint(0, 4))
        weights.apply(tuple(Part(p.digest, draw.uniform(-2, 2), (), p.adapter) for p in chosen))
    weights.apply(EMPTY)
    assert equal(before, values(block))
