"""A sham has the size of what it stands for, layer by layer, and none of its directions."""

import pytest
import torch

from service.engine.loras.arranged import Arranged, Changes, Place, Run
from service.engine.loras.changes import Change
from service.engine.loras.sham import sham_of
from service.engine.orders import LoraOrder
from service.errors import IncompatibleLora

DIGEST = f"sha256:{7:064x}"


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def a_run(layers: int = 3, outputs: int = 96, inputs: int = 160, rank: int = 8, **fields) -> Run:
    """With singular values that fall, as those of a trained LoRA do, and halves of different size."""
    dtype = fields.pop("dtype", torch.float32)
    up = torch.randn(layers, outputs, rank) * 0.02 * 0.6 ** torch.arange(rank)
    down = torch.randn(layers, rank, inputs) * 0.3
    return Run(fields.get("group", 0), fields.get("first", 0), up.to(dtype), down.to(dtype))


def an_adapter(*runs: Run, singles: tuple[tuple[Place, Change], ...] = (), digest: str = DIGEST) -> Arranged:
    return Arranged(digest, {"unet": Changes(runs, singles)}, {})


def deltas(run: Run) -> list[torch.Tensor]:
    return list(run.up_nOr.double() @ run.down_nrI.double())


def cosine(one: torch.Tensor, other: torch.Tensor) -> float:
    return float(torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0))


def bytes_of(adapter: Arranged) -> list[bytes]:
    return [tensor.contiguous().numpy().tobytes() for tensor in adapter._tensors()]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "shape",
    [{}, {"outputs": 12, "inputs": 900, "rank": 16}],
    ids=["some layers", "a rank that no layer of that size can have"],
)
def test_each_layer_keeps_its_norms_and_loses_its_directions(shape, dtype):
    run = a_run(**shape, dtype=dtype)
    (sham,) = sham_of(an_adapter(run), 1).components["unet"].runs
    assert (sham.up_nOr.shape, sham.up_nOr.dtype) == (run.up_nOr.shape, dtype)
    assert_only_turned(run, sham, max(1e-6, torch.finfo(dtype).eps / 2))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_layer_of_sdxl_keeps_its_norms_to_a_ten_thousandth_in_float16_too(dtype):
    run = a_run(1, 640, 2048, 16, dtype=dtype)
    (sham,) = sham_of(an_adapter(run), 1).components["unet"].runs
    assert_only_turned(run, sham, 1e-4)


def assert_only_turned(run: Run, sham: Run, tolerance: float) -> None:
    for real, made in zip(deltas(run), deltas(sham), strict=True):
        for norm in ("fro", 2):
            one, other = (float(torch.linalg.matrix_norm(delta, norm)) for delta in (real, made))
            assert other == pytest.approx(one, rel=tolerance)
        assert abs(cosine(real, made)) < 0.05


def test_every_singular_value_stays_the_small_ones_too():
    run = a_run()
    (sham,) = sham_of(an_adapter(run), 1).components["unet"].runs
    for real, made in zip(deltas(run), deltas(sham), strict=True):
        values, again = (torch.linalg.svdvals(delta)[:8] for delta in (real, made))
        torch.testing.assert_close(again, values, rtol=1e-5, atol=0)


SINGLES = {
    "LoRA with a core": (
        (24, 20, 3, 3),
        "lora",
        {"up": (24, 4, 1, 1), "mid": (4, 4, 3, 3), "down": (4, 20, 1, 1)},
    ),
    "LoHa": (
        (24, 20),
        "loha",
        {"hada_w1_a": (24, 3), "hada_w1_b": (3, 20), "hada_w2_a": (24, 3), "hada_w2_b": (3, 20)},
    ),
    "LoHa with cores": (
        (24, 20, 3, 3),
        "loha",
        {
            "hada_t1": (3, 3, 3, 3),
            "hada_w1_a": (3, 24),
            "hada_w1_b": (3, 20),
            "hada_t2": (3, 3, 3, 3),
            "hada_w2_a": (3, 24),
            "hada_w2_b": (3, 20),
        },
    ),
    "LoHa of a convolution": (
        (24, 20, 3, 3),
        "loha",
        {"hada_w1_a": (24, 3), "hada_w1_b": (3, 180), "hada_w2_a": (24, 3), "hada_w2_b": (3, 180)},
    ),
    "LoKr of full matrices": ((24, 20), "lokr", {"lokr_w1": (4, 5), "lokr_w2": (6, 4)}),
    "LoKr of a convolution": ((24, 20, 3, 3), "lokr", {"lokr_w1": (4, 5), "lokr_w2": (6, 4, 3, 3)}),
    "LoKr of pairs": (
        (24, 20),
        "lokr",
        {"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 5), "lokr_w2_a": (6, 2), "lokr_w2_b": (2, 4)},
    ),
    "LoKr with a core": (
        (24, 20, 3, 3),
        "lokr",
        {"lokr_w1": (4, 5), "lokr_t2": (2, 2, 3, 3), "lokr_w2_a": (2, 6), "lokr_w2_b": (2, 4)},
    ),
}


@pytest.mark.parametrize("form", SINGLES)
def test_other_forms_keep_their_singular_values_and_their_form(form):
    shape, algorithm, sizes = SINGLES[form]
    change = Change(algorithm, 0.5, {role: torch.randn(size) for role, size in sizes.items()})
    adapter = an_adapter(singles=((Place(3, 0), change),))
    made = [sham_of(adapter, seed).components["unet"].singles[0] for seed in range(20)]
    real = change.delta(torch.zeros(shape))
    for place, sham in made:
        assert (place, sham.algorithm, sham.scale) == (Place(3, 0), algorithm, 0.5)
        assert {role: tensor.shape for role, tensor in sham.tensors.items()} == sizes
        torch.testing.assert_close(
            torch.linalg.svdvals(sham.delta(torch.zeros(shape)).flatten(1)),
            torch.linalg.svdvals(real.flatten(1)),
            rtol=1e-4,
            atol=1e-4,
        )
    # In layers this small a single draw may lie near to the real one by chance.
    cosines = [cosine(sham.delta(torch.zeros(shape)), real) for _, sham in made]
    assert abs(sum(cosines) / len(cosines)) < 0.15
    assert max(abs(one) for one in cosines) < 0.8


def test_no_direction_is_drawn_more_often_than_another():
    adapter = an_adapter(Run(0, 0, torch.ones(1, 5, 1), torch.ones(1, 1, 40)))
    ups = torch.stack(
        [sham_of(adapter, seed).components["unet"].runs[0].up_nOr[0, :, 0] for seed in range(400)]
    )
    assert ups.mean(dim=0).abs().max() < 0.2  # of lengths of √5
    assert (ups.T @ ups / 400 - torch.eye(5)).abs().max() < 0.25


def test_a_seed_gives_the_same_bytes_and_another_seed_or_file_other_directions():
    run = a_run(dtype=torch.float16)
    adapter = an_adapter(run)
    assert bytes_of(sham_of(adapter, 1)) == bytes_of(sham_of(adapter, 1))
    others = [sham_of(adapter, 2), sham_of(an_adapter(run, digest=f"sha256:{8:064x}"), 1)]
    (first,) = sham_of(adapter, 1).components["unet"].runs
    for other in others:
        for one, two in zip(deltas(first), deltas(other.components["unet"].runs[0]), strict=True):
            assert abs(cosine(one, two)) < 0.05


def test_a_layer_is_the_same_in_whatever_run_it_lies_and_whatever_others_there_are():
    whole = a_run(layers=4, group=2, first=5)
    second = Run(2, 7, whole.up_nOr[2:].clone(), whole.down_nrI[2:].clone())
    (made,) = sham_of(an_adapter(whole), 3).components["unet"].runs
    elsewhere, part = sham_of(an_adapter(a_run(group=1), second), 3).components["unet"].runs
    assert torch.equal(part.up_nOr, made.up_nOr[2:])
    assert torch.equal(part.down_nrI, made.down_nrI[2:])
    assert (part.group, part.first, elsewhere.group) == (2, 7, 1)


def test_equal_layers_have_different_shams_and_so_have_components():
    run = a_run(layers=1)
    twice = Run(0, 0, run.up_nOr.repeat(2, 1, 1), run.down_nrI.repeat(2, 1, 1))
    adapter = Arranged(DIGEST, {"unet": Changes((twice,), ()), "text_encoder": Changes((run,), ())}, {})
    made = sham_of(adapter, 1).components
    one, two = deltas(made["unet"].runs[0])
    (three,) = deltas(made["text_encoder"].runs[0])
    assert max(abs(cosine(one, two)), abs(cosine(one, three)), abs(cosine(two, three))) < 0.05


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_learned_vectors_keep_their_lengths_each_in_a_direction_of_its_own(dtype):
    first, second = torch.randn(3, 768) * torch.tensor([[0.1], [0.4], [2.0]]), torch.ones(3, 1280)
    adapter = Arranged(
        DIGEST, {}, {"ohwx": {"text_encoder": first.to(dtype), "text_encoder_2": second.to(dtype)}}
    )
    made = sham_of(adapter, 1).embeddings["ohwx"]
    for component, real in adapter.embeddings["ohwx"].items():
        lengths = made[component].double().norm(dim=1) / real.double().norm(dim=1)
        torch.testing.assert_close(lengths, torch.ones(3).double(), rtol=1e-4, atol=0)
        assert made[component].dtype == dtype
        assert max(abs(cosine(one, two)) for one, two in zip(real, made[component], strict=True)) < 0.15
    assert abs(cosine(made["text_encoder_2"][0], made["text_encoder_2"][1])) < 0.15


def test_a_dora_has_no_sham():
    tensors = {"up": torch.ones(4, 1), "down": torch.ones(1, 4), "magnitude": torch.ones(4)}
    with pytest.raises(IncompatibleLora, match="is a DoRA, which has no sham"):
        sham_of(an_adapter(singles=((Place(0, 0), Change("lora", 1.0, tensors)),)), 1)


def test_a_change_of_nothing_stays_one():
    nothing = Run(0, 0, torch.zeros(1, 6, 2), torch.ones(1, 2, 6))
    (made,) = sham_of(an_adapter(nothing), 1).components["unet"].runs
    assert not made.up_nOr.any()


def test_it_is_called_as_an_order_calls_it():
    order = LoraOrder("ink@1", "ink", DIGEST, sham=5)
    assert order.adapter == sham_of(an_adapter(a_run()), 5).digest
