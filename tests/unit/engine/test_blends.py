"""Blends: what each method makes of its sources, beside PEFT, beside dense algebra, and through the registry."""

import json
from io import BytesIO

import peft as hf_peft
import pytest
import torch
from torch import nn

from lora_registry.base_model import Layer
from lora_registry.inspection import plan
from lora_registry.registry import Registry
from service.engine.loras.blends import Blend, blend, layer_seed
from service.engine.loras.changes import Change
from service.engine.loras.files import Adapter, read
from service.errors import InvalidBlend
from unit.lora_registry.makers import (
    clip_pair,
    kohya,
    layers,
    locon_mid,
    loha,
    lokr,
    numbers,
    peft,
    peft_dora,
    pocket,
    safetensors,
)

BASE = pocket()
TWO = {"a": Layer(10, 8), "c": Layer(6, 4, 3)}
SEED = 3
METHODS = ["svd", "cat", "ties", "dare_linear", "dare_ties", "ties_svd", "dare_linear_svd", "dare_ties_svd"]
DENSITY = {method: 0.6 for method in METHODS if "ties" in method or "dare" in method}


def an_adapter(tensors, name: str = "0") -> Adapter:
    data = safetensors(tensors)
    header, found = plan(BytesIO(data), len(data), [BASE])
    assert found.accepted, found.reasons
    return read(f"sha256:{name * 64}", BytesIO(data), header, found, dtype=torch.float32)


def random_adapter(seed: int, named: dict[str, Layer] = TWO, rank: int = 3, size: float = 0.4) -> Adapter:
    generator = torch.Generator().manual_seed(seed)

    def pair(layer: Layer) -> Change:
        down = torch.randn(rank, *layer.shape[1:], generator=generator) * size
        up = torch.randn(layer.outputs, rank, *((1, 1) if layer.kernel else ()), generator=generator) * size
        return Change("lora", 1.0, {"up": up, "down": down})

    return Adapter(
        f"sha256:{seed:064x}", {"unet": {name: pair(layer) for name, layer in named.items()}}, {}, 0
    )


def random_w0(component: str, name: str) -> torch.Tensor:
    return torch.from_numpy(numbers(*BASE.layers[component][name].shape, seed=name, dtype="<f4", size=0.2))


def blended(sources, named=None, **options) -> Blend:
    return blend(sources, {"unet": TWO} if named is None else named, dtype=torch.float32, **options)


def delta_of(made: Blend, where: str) -> torch.Tensor:
    """ΔW as every reader of the file works it out: up @ down, without a scale."""
    up, down = made.tensors[f"{where}.lora_B.weight"], made.tensors[f"{where}.lora_A.weight"]
    return up.flatten(1) @ down.flatten(1)


def weighted_sum(sources, component: str, name: str, layer: Layer) -> torch.Tensor:
    total = torch.zeros(layer.shape)
    for adapter, weight in sources:
        if change := adapter.changes.get(component, {}).get(name):
            total += weight * change.delta(random_w0(component, name) if change.is_dora else total)
    return total.flatten(1)


def assert_is_the_sum(made: Blend, sources, named) -> None:
    for component, found in named.items():
        for name, layer in found.items():
            if any(name in adapter.changes.get(component, {}) for adapter, _ in sources):
                wanted = weighted_sum(sources, component, name, layer)
                torch.testing.assert_close(
                    delta_of(made, f"{component}.{name}"), wanted, rtol=1e-5, atol=1e-5
                )


# What a method does


@pytest.mark.parametrize("method", ["linear", "cat"])
@pytest.mark.parametrize("ranks", [(3, 3), (2, 5, 1)])
def test_linear_and_cat_do_what_the_sources_do_in_one_stack(method, ranks):
    sources = [
        (random_adapter(i, rank=rank), weight)
        for i, (rank, weight) in enumerate(zip(ranks, (0.7, -1.3, 2.0), strict=False))
    ]
    made = blended(sources, method=method)
    assert_is_the_sum(made, sources, {"unet": TWO})


def test_cat_keeps_every_rank_and_linear_none_that_no_layer_can_have():
    sources = [(random_adapter(1, rank=7), 1.0), (random_adapter(2, rank=6), -0.5)]
    assert blended(sources, method="cat").rank == 13
    made = blended(sources, method="linear")
    assert made.rank == 8
    assert_is_the_sum(made, sources, {"unet": TWO})


def test_svd_at_the_full_rank_is_the_sum():
    sources = [(random_adapter(1), 0.7), (random_adapter(2, rank=2), -1.3)]
    assert_is_the_sum(blended(sources, method="svd", rank=8), sources, {"unet": TWO})


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_svd_is_the_best_approximation_of_its_rank(rank):
    sources = [(random_adapter(1), 0.7), (random_adapter(2, rank=4), -1.3)]
    made = blended(sources, method="svd", rank=rank)
    assert made.rank == rank
    for name, layer in TWO.items():
        left, values, right = torch.linalg.svd(
            weighted_sum(sources, "unet", name, layer), full_matrices=False
        )
        best = left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
        torch.testing.assert_close(delta_of(made, f"unet.{name}"), best, rtol=1e-4, atol=1e-5)


def test_svd_has_by_default_the_highest_rank_of_its_sources():
    sources = [(random_adapter(1, rank=2), 0.7), (random_adapter(2, rank=5), 1.0)]
    assert blended(sources, method="svd").rank == 5


def test_layers_that_one_source_alone_changes_are_kept():
    first, second = random_adapter(1, {"a": TWO["a"]}), random_adapter(2, {"c": TWO["c"]}, rank=2)
    sources = [(first, 0.5), (second, -2.0)]
    for method in ("linear", "cat", "svd"):
        made = blended(sources, method=method)
        assert len(made.tensors) == 4
        assert_is_the_sum(made, sources, {"unet": TWO})


def test_every_pair_has_the_rank_of_the_file_so_that_no_reader_can_scale_it():
    sources = [
        (random_adapter(1, {"a": TWO["a"]}, rank=3), 1.0),
        (random_adapter(2, {"c": TWO["c"]}, rank=5), 1.0),
    ]
    made = blended(sources, method="cat")
    assert {tensor.shape[0 if "lora_A" in name else 1] for name, tensor in made.tensors.items()} == {5}


FORMS = {
    "loha": lambda: loha(BASE, layers(BASE, count=2)),
    "loha with cores": lambda: loha(BASE, layers(BASE, "resnets.0.conv1", count=2), tucker=True),
    "lokr": lambda: lokr(BASE, layers(BASE, count=2) | layers(BASE, "resnets.0.conv1", count=1)),
    "locon with lora_mid": lambda: locon_mid(BASE, layers(BASE, "resnets.0.conv1", count=2)),
    "dora": lambda: peft_dora(layers(BASE, count=2)),
    "dora of convolutions": lambda: peft_dora(layers(BASE, "resnets.0.conv1", count=2)),
}


@pytest.mark.parametrize("form", FORMS)
def test_svd_takes_sources_of_every_form(form):
    plain = peft(layers(BASE, count=2) | layers(BASE, "resnets.0.conv1", count=1))
    sources = [(an_adapter(FORMS[form](), "1"), 0.8), (an_adapter(plain, "2"), -0.5)]
    made = blended(sources, BASE.layers, method="svd", rank=512, pristine=random_w0)
    assert_is_the_sum(made, sources, BASE.layers)


@pytest.mark.parametrize("method", METHODS)
def test_dare_drops_the_same_numbers_for_the_same_seed_and_leaves_the_generator_alone(method):
    sources = [(random_adapter(1), 0.7), (random_adapter(2), 1.0)]
    options = {"method": method, "density": DENSITY.get(method)}
    torch.manual_seed(0)
    before = torch.get_rng_state()
    one, same, other = (blended(sources, seed=seed, **options) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert one.to_bytes() == same.to_bytes()
    are_equal = all(torch.equal(tensor, other.tensors[name]) for name, tensor in one.tensors.items())
    assert are_equal is ("dare" not in method)


def test_what_dare_drops_at_a_layer_does_not_depend_on_the_other_layers():
    both = [(random_adapter(seed), 1.0) for seed in (1, 2)]
    alone = [(Adapter(a.digest, {"unet": {"c": a.changes["unet"]["c"]}}, {}, 0), w) for a, w in both]
    options = {"method": "dare_linear", "density": 0.5}
    assert torch.equal(
        delta_of(blended(both, **options), "unet.c"), delta_of(blended(alone, **options), "unet.c")
    )


# Beside PEFT


class Model(nn.Module):
    def __init__(self, layer: Layer) -> None:
        super().__init__()
        conv = layer.kernel and nn.Conv2d(layer.inputs, layer.outputs, layer.kernel)
        self.layer = conv or nn.Linear(layer.inputs, layer.outputs)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("layer", TWO.values(), ids=TWO)
@pytest.mark.parametrize("majority_sign", [None, "frequency"])
def test_a_method_gives_what_peft_gives(method, layer, majority_sign, monkeypatch):
    weights = [0.7, -0.4, 1.1]
    # Methods on halves see how a file splits its scale between them; a scale of 1 leaves no choice.
    alpha = 5 if method.endswith("svd") or method == "cat" else 3
    config = hf_peft.LoraConfig(r=3, lora_alpha=alpha, target_modules=["layer"])
    model = hf_peft.get_peft_model(Model(layer), config, adapter_name="0")
    sources = []
    for i, weight in enumerate(weights):
        if i:
            model.add_adapter(str(i), config)
        (change,) = random_adapter(i, {"layer": layer}).changes["unet"].values()
        target = model.base_model.model.layer
        target.lora_A[str(i)].weight.data = change.tensors["down"].clone()
        target.lora_B[str(i)].weight.data = change.tensors["up"].clone()
        scaled = Change("lora", alpha / 3, change.tensors)
        sources.append((Adapter(f"sha256:{i}", {"unet": {"layer": scaled}}, {}, 0), weight))
    inject = model.base_model.inject_adapter

    def inject_and_seed(*arguments, **options):
        inject(*arguments, **options)
        torch.manual_seed(layer_seed(SEED, "unet", "layer"))

    monkeypatch.setattr(model.base_model, "inject_adapter", inject_and_seed)
    options = {"density": DENSITY.get(method)}
    if "ties" in method and majority_sign:
        options["majority_sign"] = majority_sign
    rank = 2 if method.endswith("svd") else None
    model.add_weighted_adapter(
        ["0", "1", "2"],
        weights,
        "blend",
        combination_type=method,
        svd_rank=rank,
        density=options["density"],
        majority_sign_method=options.get("majority_sign", "total"),
    )
    wanted = model.base_model.model.layer.get_delta_weight("blend").detach().flatten(1)
    made = blended(sources, {"unet": {"layer": layer}}, method=method, rank=rank, seed=SEED, **options)
    torch.testing.assert_close(delta_of(made, "unet.layer"), wanted, rtol=1e-4, atol=1e-5)


# Through the registry


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("method", ["linear", *METHODS])
def test_the_registry_takes_a_blend_and_the_engine_reads_the_same_change_from_it(method, dtype, tmp_path):
    encoders = {
        component: layers(BASE, "encoder.layers", component, 2)
        for component in ("text_encoder", "text_encoder_2")
    }
    unet = layers(BASE, count=3) | layers(BASE, "resnets.0.conv1", count=2)
    first = an_adapter(peft(unet) | peft(encoders["text_encoder"], "text_encoder."), "1")
    second = an_adapter(
        kohya(BASE, unet, alphas=[1.0, 4.0]) | kohya(BASE, encoders["text_encoder_2"], "text_encoder_2"), "2"
    )
    options = {"method": method, "density": DENSITY.get(method), "dtype": dtype}
    made = blend([(first, 0.7), (second, -0.4)], BASE.layers, **options)
    with Registry.connect([BASE], data=tmp_path) as registry:
        version = registry.publish("blend", BytesIO(made.to_bytes()))
        header, found = registry.plan(version.digest)
        with registry.open(version.digest) as file:
            back = read(version.digest, file, header, found, dtype=torch.float32)
    assert (version.warnings, version.format) == ((), "diffusers-peft")
    assert {(count.rank, count.alpha) for count in version.ranks} == {(made.rank, made.rank)}
    read_back = {
        f"{component}.{name}": change
        for component, named in back.changes.items()
        for name, change in named.items()
    }
    assert {f"{where}.lora_{half}.weight" for where in read_back for half in "AB"} == set(made.tensors)
    for where, change in read_back.items():
        up, down = change.pair
        wanted = made.tensors[f"{where}.lora_B.weight"].float().flatten(1) @ made.tensors[
            f"{where}.lora_A.weight"
        ].float().flatten(1)
        torch.testing.assert_close(up @ down, wanted, rtol=0, atol=0)


def test_the_file_says_how_it_was_made():
    sources = [(random_adapter(1), 0.7), (random_adapter(2), -0.4)]
    data = blended(sources, method="dare_ties", density=0.5, seed=9).to_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    assert json.loads(header["__metadata__"]["darkroom.blend"]) == {
        "method": "dare_ties",
        "rank": None,
        "density": 0.5,
        "majority_sign": None,
        "seed": 9,
        "sources": [[f"sha256:{1:064x}", 0.7], [f"sha256:{2:064x}", -0.4]],
    }


# What cannot be blended


def refused(field: str, way_out: str, sources, named=None, **options) -> None:
    with pytest.raises(InvalidBlend, match=way_out) as told:
        blended(sources, named, **options)
    assert told.value.field == field


GOOD = [(random_adapter(1), 1.0), (random_adapter(2), 0.5)]


@pytest.mark.parametrize(
    ("field", "says", "options"),
    [
        ("method", "no method 'sum'", {"method": "sum"}),
        ("rank", "leave rank out", {"method": "cat", "rank": 4}),
        ("rank", "leave rank out", {"method": "ties", "density": 0.5, "rank": 4}),
        ("rank", "from 1 to 512", {"method": "svd", "rank": 0}),
        ("rank", "from 1 to 512", {"method": "svd", "rank": 513}),
        ("density", "leave density out", {"method": "svd", "density": 0.5}),
        ("density", "needs a density", {"method": "ties"}),
        ("density", "above 0", {"method": "dare_linear_svd", "density": 0.0}),
        ("density", "up to 1", {"method": "dare_ties", "density": 1.1}),
        ("density", "no share", {"method": "dare_ties", "density": float("nan")}),
        ("majority_sign", "leave majority_sign out", {"method": "svd", "majority_sign": "total"}),
        (
            "majority_sign",
            "leave majority_sign out",
            {"method": "dare_linear", "density": 0.5, "majority_sign": "total"},
        ),
        ("majority_sign", "total or frequency", {"method": "ties", "density": 0.5, "majority_sign": "mine"}),
    ],
)
def test_an_argument_that_does_not_go_with_the_method_is_refused(field, says, options):
    refused(field, says, GOOD, **options)


def test_no_source_is_no_blend():
    refused("sources", "nothing to blend", [], method="svd")


@pytest.mark.parametrize("weight", [0.0, float("nan"), float("inf")])
def test_a_source_without_a_proper_weight_is_refused(weight):
    refused("sources", "cannot take part", [*GOOD, (random_adapter(3), weight)], method="cat")


def test_a_source_for_another_model_is_refused():
    refused("sources", "unet.c", GOOD, {"unet": {"a": TWO["a"]}}, method="svd")


def test_a_source_with_embeddings_is_refused():
    bundle = an_adapter(peft(layers(BASE, count=1)) | clip_pair(BASE))
    refused("sources", "beside the blend", [(bundle, 1.0)], BASE.layers, method="svd")


@pytest.mark.parametrize("method", ["ties", "dare_linear", "dare_ties"])
def test_pairs_of_different_ranks_are_told_of_the_dense_method(method):
    sources = [(random_adapter(1, rank=2), 1.0), (random_adapter(2, rank=4), 1.0)]
    refused("method", f"2 and 4; use '{method}_svd'", sources, method=method, density=0.5)
    assert blended(sources, method=f"{method}_svd", density=0.5).rank == 4


@pytest.mark.parametrize("method", ["linear", "cat", "ties"])
@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_pair_is_told_of_the_method_that_takes_it(method, form):
    sources = [(an_adapter(FORMS[form]()), 1.0)]
    instead = "svd" if method != "ties" else "ties_svd"
    refused("method", f"use '{instead}'", sources, BASE.layers, method=method, density=DENSITY.get(method))


def test_a_dora_without_the_models_weights_is_refused():
    sources = [(an_adapter(peft_dora(layers(BASE, count=1))), 1.0)]
    refused("sources", "where the model is loaded", sources, BASE.layers, method="svd", rank=4)


def test_a_blend_whose_sources_have_no_rank_needs_one():
    sources = [(an_adapter(lokr(BASE, layers(BASE, count=1), full=True)), 1.0)]
    refused("rank", "say which rank", sources, BASE.layers, method="svd")


def test_more_ranks_than_the_registry_takes_are_refused():
    wide = {"w": Layer(600, 600)}
    sources = [(random_adapter(i, wide, rank=200), 1.0) for i in range(3)]
    for method in ("cat", "linear"):
        refused("method", "rank 600", sources, {"unet": wide}, method=method)


def test_numbers_that_the_file_cannot_hold_are_refused():
    sources = [(random_adapter(1), 1e6)]
    assert blend(sources, {"unet": TWO}, method="cat", dtype=torch.bfloat16).tensors
    with pytest.raises(InvalidBlend, match="smaller weights"):
        blend(sources, {"unet": TWO}, method="cat", dtype=torch.float16)
