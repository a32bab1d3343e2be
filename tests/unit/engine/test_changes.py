"""ΔW of a layer: as PEFT merges it where PEFT has the form, and by NumPy where it has not."""

import numpy as np
import peft
import pytest
import torch
from torch import nn

from service.engine.loras.changes import Change

ROLES = {
    "lora_A": "down",
    "lora_B": "up",
    "lora_magnitude_vector": "magnitude",
} | {role: role for role in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")} | {
    role: role for role in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
}  # fmt: skip


class Model(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer


LAYERS = {
    "linear": lambda: nn.Linear(24, 36),
    "convolution": lambda: nn.Conv2d(8, 12, 3),
    "square convolution": lambda: nn.Conv2d(12, 12, 3),
    "1 x 1 convolution": lambda: nn.Conv2d(8, 12, 1),
}
CONFIGS = {
    "lora": peft.LoraConfig(r=3, lora_alpha=5, target_modules=["layer"]),
    "dora": peft.LoraConfig(r=3, lora_alpha=5, use_dora=True, target_modules=["layer"]),
    "loha": peft.LoHaConfig(r=3, alpha=5, target_modules=["layer"]),
    "loha with cores": peft.LoHaConfig(r=3, alpha=5, use_effective_conv2d=True, target_modules=["layer"]),
    "lokr": peft.LoKrConfig(r=2, alpha=5, target_modules=["layer"]),
    "lokr with a core": peft.LoKrConfig(r=1, alpha=5, use_effective_conv2d=True, target_modules=["layer"]),
    "lokr with both factored": peft.LoKrConfig(r=1, alpha=5, decompose_both=True, target_modules=["layer"]),
    "lokr with full matrices": peft.LoKrConfig(r=64, alpha=64, target_modules=["layer"]),
}


def random(*shape: int, size: float = 0.3) -> torch.Tensor:
    return torch.randn(*shape) * size


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("form", CONFIGS)
def test_a_change_is_what_peft_merges(form, layer):
    wrapped = peft.get_peft_model(Model(LAYERS[layer]()), CONFIGS[form])
    tuned = wrapped.base_model.model.layer
    pristine = tuned.base_layer.weight.detach().clone()
    tensors = {}
    for name, parameter in tuned.named_parameters():
        role = next((ROLES[part] for part in name.split(".") if part in ROLES), "")
        if role:
            parameter.data = random(*parameter.shape) + (1 if role == "magnitude" else 0)
            tensors[role] = parameter.detach().clone()
    scale = tuned.scaling["default"]
    merged = wrapped.merge_and_unload(safe_merge=True).layer.weight
    change = Change(CONFIGS[form].peft_type.value.lower(), scale, tensors)
    torch.testing.assert_close(pristine + change.delta(pristine), merged, rtol=1e-5, atol=1e-5)


def test_the_forms_of_peft_above_use_every_role_that_there_is():
    seen = set()
    for layer in LAYERS.values():
        for config in CONFIGS.values():
            names = dict(peft.get_peft_model(Model(layer()), config).named_parameters())
            seen |= {ROLES[part] for name in names for part in name.split(".") if part in ROLES}
    assert seen == set(ROLES.values())


def test_a_convolution_in_three_factors_has_its_kernel_in_the_middle():
    up, mid, down = random(6, 2, 1, 1), random(2, 2, 3, 3), random(2, 5, 1, 1)
    delta = Change("lora", 0.5, {"up": up, "mid": mid, "down": down}).delta(torch.zeros(6, 5, 3, 3))
    picture = random(1, 5, 7, 7)
    # The definition: one convolution after the other is the convolution with ΔW.
    stages = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(picture, down), mid), up) * 0.5
    torch.testing.assert_close(nn.functional.conv2d(picture, delta), stages, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
def test_a_linear_layer_may_be_stored_as_a_convolution_of_1_x_1(shape):
    up, down = random(6, 2, 1, 1), random(2, *shape[1:]) if len(shape) == 4 else random(2, 5, 1, 1)
    delta = Change("lora", 1.0, {"up": up, "down": down}).delta(torch.zeros(shape))
    np.testing.assert_allclose(delta.flatten(1), up[:, :, 0, 0] @ down.flatten(1), atol=1e-6)


def a_product(algorithm: str, shape: tuple[int, ...]) -> dict[str, torch.Tensor]:
    outputs, inputs = shape[0], int(np.prod(shape[1:]))
    if algorithm == "lora":
        return {"up": random(outputs, 2), "down": random(2, inputs)}
    if algorithm == "loha":
        return {
            f"hada_w{i}_{side}": random(*size)
            for i in (1, 2)
            for side, size in (("a", (outputs, 2)), ("b", (2, inputs)))
        }
    return {
        "lokr_w1": random(2, 2),
        "lokr_w2_a": random(outputs // 2, 2),
        "lokr_w2_b": random(2, inputs // 2),
    }


MAGNITUDE_SHAPES = {
    "PEFT's": ("magnitude", lambda o, i, ones: (1, o, *ones) if ones else (o,), 0),
    "LyCORIS' per output": ("dora_scale", lambda o, i, ones: (o, 1, *ones), 0),
    "LyCORIS' per input": ("dora_scale", lambda o, i, ones: (1, i, *ones), 1),
}


@pytest.mark.parametrize("shape", [(6, 8), (8, 8), (8, 8, 3, 3), (6, 8, 3, 3)])
@pytest.mark.parametrize("algorithm", ["lora", "loha", "lokr"])
@pytest.mark.parametrize("magnitude", MAGNITUDE_SHAPES)
def test_dora_gives_each_output_or_input_the_length_that_its_magnitude_says(magnitude, algorithm, shape):
    role, make_shape, axis = MAGNITUDE_SHAPES[magnitude]
    lengths = random(*make_shape(*shape[:2], shape[2:] and (1, 1))).abs() + 0.5
    pristine, factors = random(*shape), a_product(algorithm, shape)
    plain = Change(algorithm, 0.7, factors)
    merged = (pristine + Change(algorithm, 0.7, {**factors, role: lengths}).delta(pristine)).numpy()
    direction = (pristine + plain.delta(pristine)).numpy()
    rows, wanted = np.moveaxis(merged, axis, 0), np.moveaxis(direction, axis, 0)
    for row, unscaled, length in zip(rows, wanted, lengths.flatten().tolist(), strict=True):
        assert np.linalg.norm(row) == pytest.approx(length, rel=1e-5)
        np.testing.assert_allclose(row / np.linalg.norm(row), unscaled / np.linalg.norm(unscaled), atol=1e-5)


def test_dora_of_an_output_without_a_weight_stays_finite():
    change = Change("lora", 1.0, {"up": torch.zeros(3, 1), "down": random(1, 4), "magnitude": torch.ones(3)})
    assert torch.equal(change.delta(torch.zeros(3, 4)), torch.zeros(3, 4))


def test_dora_whose_magnitude_is_the_norm_of_an_unchanged_weight_changes_nothing():
    pristine = random(6, 4)
    tensors = {"up": torch.zeros(6, 2), "down": random(2, 4), "magnitude": pristine.norm(dim=1)}
    np.testing.assert_allclose(Change("lora", 1.0, tensors).delta(pristine), 0, atol=1e-6)


@pytest.mark.parametrize("shape", [(6, 8), (6, 8, 3, 3)])
def test_a_plain_lora_is_a_pair_whose_product_is_its_change(shape):
    down = random(2, *shape[1:])
    change = Change("lora", 1.5, {"up": random(6, 2, *(1 for _ in shape[2:])), "down": down})
    up, flat = change.pair
    assert (up.shape, flat.shape) == ((6, 2), (2, down[0].numel()))
    torch.testing.assert_close((up @ flat).view(shape), change.delta(torch.zeros(shape)))


@pytest.mark.parametrize(
    ("algorithm", "more"),
    [("loha", {}), ("lokr", {}), ("lora", {"magnitude": torch.ones(6)}), ("lora", {"mid": torch.ones(2, 2)})],
)
def test_nothing_else_is_a_pair(algorithm, more):
    assert Change(algorithm, 1.0, a_product(algorithm, (6, 8)) | more).pair is None


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_change_in_half_precision_is_worked_out_in_float32(dtype):
    tensors = {role: tensor.to(dtype) for role, tensor in a_product("loha", (6, 8)).items()}
    wide = {role: tensor.float() for role, tensor in tensors.items()}
    pristine = random(6, 8).to(dtype)
    assert torch.equal(
        Change("loha", 0.3, tensors).delta(pristine), Change("loha", 0.3, wide).delta(pristine)
    )


def test_moving_a_change_takes_every_tensor_along():
    change = Change("loha", 0.3, a_product("loha", (6, 8)))
    moved = change.to(torch.device("meta"))
    assert (moved.algorithm, moved.scale) == ("loha", 0.3)
    assert {tensor.device.type for tensor in moved.tensors.values()} == {"meta"}
    assert moved.size_bytes == change.size_bytes == 4 * (2 * 6 * 2 + 2 * 2 * 8)
