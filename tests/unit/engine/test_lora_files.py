"""Every file that the registry accepts is read whole, and does what its bytes say, worked out anew in NumPy."""

from io import BytesIO

import numpy as np
import pytest
import torch

from lora_registry.base_model import BaseModel
from lora_registry.header import Header, Tensor, read_header
from lora_registry.inspection import inspect, plan
from lora_registry.records import Inspection, Module
from service.engine.loras.files import Adapter, read
from service.errors import IncompatibleLora
from unit.lora_registry.makers import BASES, bfloat16, kohya, layers, numbers, peft, pocket, safetensors
from unit.lora_registry.zoo import specimen, zoo

GOOD = [name for name in zoo() if not specimen(name).refused]
DIGEST = f"sha256:{'0' * 64}"


def planned(data: bytes, base: BaseModel) -> tuple[Header, Inspection]:
    return plan(BytesIO(data), len(data), [base])


def adapter_of(data: bytes, base: BaseModel | None = None, dtype: torch.dtype = torch.float32) -> Adapter:
    header, found = planned(data, base or pocket())
    return read(DIGEST, BytesIO(data), header, found, dtype=dtype)


def stored(data: bytes, tensor: Tensor) -> np.ndarray:
    raw = data[tensor.start : tensor.end]
    if tensor.dtype == "BF16":
        halves = np.frombuffer(raw, "<u2").astype("<u4")
        return (halves * 65536).view("<f4").astype("<f8").reshape(tensor.shape)
    kind = {"F16": "<f2", "F32": "<f4", "F64": "<f8", "I64": "<i8"}[tensor.dtype]
    return np.frombuffer(raw, kind).astype("<f8").reshape(tensor.shape)


def expected(module: Module, data: bytes, header: Header, pristine: np.ndarray) -> np.ndarray:
    """ΔW in float64, by loops and outer products."""
    parts = {role: stored(data, header.tensors[key]) for role, key in module.tensors.items()}
    change = {"lora": lora, "loha": loha, "lokr": lokr}[module.algorithm](parts, pristine.shape)
    change = change * (
        float(parts["alpha"].reshape(())) / module.rank if "alpha" in parts and module.rank else module.scale
    )
    if module.is_dora:
        change = dora(parts, change, pristine)
    return change


def lora(parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    up, down = parts["up"], parts["down"]
    up = up.reshape(len(up), -1)
    if "mid" in parts:
        return from_core(parts["mid"], up, down.reshape(len(down), -1))
    ranks = zip(up.T, down.reshape(len(down), -1), strict=True)
    return sum(np.outer(column, row) for column, row in ranks).reshape(shape)


def loha(parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    sides = []
    for i in (1, 2):
        a, b = parts[f"hada_w{i}_a"], parts[f"hada_w{i}_b"]
        core = parts.get(f"hada_t{i}")
        sides.append(from_core(core, a.T, b) if core is not None else np.einsum("or,ri->oi", a, b))
    return (sides[0] * sides[1]).reshape(shape)


def lokr(parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    sides = []
    for i in (1, 2):
        if f"lokr_w{i}" in parts:
            sides.append(parts[f"lokr_w{i}"])
        else:
            sides.append(np.einsum("or,ri->oi", parts[f"lokr_w{i}_a"], parts[f"lokr_w{i}_b"]))
    coarse, fine = sides
    blocks = fine.reshape(shape[0] // len(coarse), shape[1] // coarse.shape[1], *shape[2:])
    out = np.empty(shape)
    for (o, i), factor in np.ndenumerate(coarse):
        rows, columns = (
            slice(o * blocks.shape[0], (o + 1) * blocks.shape[0]),
            slice(i * blocks.shape[1], (i + 1) * blocks.shape[1]),
        )
        out[rows, columns] = factor * blocks
    return out


def from_core(core: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    """One kernel position after the other."""
    out = np.empty((len(up), down.shape[1], *core.shape[2:]))
    for y, x in np.ndindex(*core.shape[2:]):
        out[:, :, y, x] = up @ core[:, :, y, x] @ down
    return out


def dora(parts: dict[str, np.ndarray], change: np.ndarray, pristine: np.ndarray) -> np.ndarray:
    merged = pristine + change
    scale = parts.get("dora_scale")
    if scale is not None and scale.shape[0] == 1:
        for i, magnitude in enumerate(scale.ravel()):
            merged[:, i] *= magnitude / np.sqrt(np.square(merged[:, i]).sum())
    else:
        for o, magnitude in enumerate((parts["magnitude"] if scale is None else scale).ravel()):
            merged[o] *= magnitude / np.sqrt(np.square(merged[o]).sum())
    return merged - pristine


@pytest.mark.parametrize("name", GOOD)
def test_each_module_changes_its_layer_as_its_bytes_say(name):
    animal = specimen(name)
    base = BASES[animal.serves]()
    header, found = planned(animal.data, base)
    adapter = adapter_of(animal.data, base)
    for module in found.modules:
        pristine = numbers(*base.layers[module.component][module.name].shape, seed=name, dtype="<f4")
        delta = adapter.changes[module.component][module.name].delta(torch.from_numpy(pristine))
        wanted = expected(module, animal.data, header, pristine.astype("<f8"))
        assert delta.dtype == torch.float32
        np.testing.assert_allclose(delta.numpy(), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", GOOD)
def test_each_embedding_has_the_vectors_of_the_file(name):
    animal = specimen(name)
    header, found = planned(animal.data, BASES[animal.serves]())
    adapter = adapter_of(animal.data, BASES[animal.serves]())
    held = [(token, component) for token, parts in adapter.embeddings.items() for component in parts]
    assert sorted(held) == sorted((embedding.token, embedding.component) for embedding in found.embeddings)
    for embedding in found.embeddings:
        vectors = adapter.embeddings[embedding.token][embedding.component]
        assert vectors.ndim == 2
        assert len(vectors) == embedding.vectors
        np.testing.assert_array_equal(
            vectors.numpy().ravel(), stored(animal.data, header.tensors[embedding.key]).ravel()
        )


@pytest.mark.parametrize("name", GOOD)
def test_no_tensor_of_a_file_is_left_out(name):
    animal = specimen(name)
    adapter = adapter_of(animal.data, BASES[animal.serves]())
    held = [
        tensor
        for changes in adapter.changes.values()
        for change in changes.values()
        for tensor in change.tensors.values()
    ]
    held += [vectors for parts in adapter.embeddings.values() for vectors in parts.values()]
    header, found = planned(animal.data, BASES[animal.serves]())
    alphas = [module.tensors["alpha"] for module in found.modules if "alpha" in module.tensors]
    assert len(held) + len(alphas) == len(header.tensors)
    assert adapter.size_bytes == 4 * sum(
        header.tensors[key].count for key in header.tensors.keys() - set(alphas)
    )
    assert all(tensor.is_contiguous() for tensor in held)


@pytest.mark.parametrize("name", GOOD)
def test_an_inspection_at_intake_and_a_plan_later_say_the_same(name):
    animal = specimen(name)
    base = BASES[animal.serves]()
    _, found = planned(animal.data, base)
    assert inspect(BytesIO(animal.data), len(animal.data), [base]).modules == found.modules


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["peft float32", "peft bfloat16", "kohya mixed alpha and rank"])
def test_the_scale_is_in_the_pair_before_it_is_rounded(name, dtype):
    animal = specimen(name)
    header, found = planned(animal.data, pocket())
    adapter = adapter_of(animal.data, dtype=dtype)
    for module in found.modules:
        up = torch.from_numpy(stored(animal.data, header.tensors[module.tensors["up"]]) * module.scale)
        change = adapter.changes[module.component][module.name]
        assert change.scale == 1
        assert torch.equal(change.pair[0], up.to(dtype).flatten(1))
        assert change.tensors["down"].dtype == dtype


def test_a_number_too_large_for_the_dtype_is_told_and_not_read_as_infinite():
    chosen = layers(pocket(), count=2)
    tensors = peft(chosen, dtype="<f4")
    key = max(tensors)
    tensors[key][0, 0] = 1e5
    data = safetensors(tensors)
    assert adapter_of(data, dtype=torch.bfloat16).changes
    with pytest.raises(IncompatibleLora, match=r"float16") as told:
        adapter_of(data, dtype=torch.float16)
    assert key in str(told.value)


def test_a_scale_that_makes_a_number_too_large_is_told():
    tensors = kohya(pocket(), layers(pocket(), count=1), alphas=[400.0])
    tensors = {
        key: value * np.float16(1e4) if key.endswith("up.weight") else value for key, value in tensors.items()
    }
    tensors = {
        key: value * np.float16(1e-4) if key.endswith("down.weight") else value
        for key, value in tensors.items()
    }
    with pytest.raises(IncompatibleLora):
        adapter_of(safetensors(tensors), dtype=torch.float16)


def test_nothing_is_read_from_a_refused_file():
    data = specimen("an unknown tensor").data
    header, found = planned(data, pocket())
    with pytest.raises(ValueError, match="refused"):
        read(DIGEST, BytesIO(data), header, found, dtype=torch.float32)


@pytest.mark.parametrize("more_in_the_header", [True, False])
def test_a_plan_that_does_not_account_for_every_tensor_is_an_error(more_in_the_header):
    chosen = layers(pocket(), count=2)
    whole = safetensors(peft(chosen))
    part = safetensors(peft(dict(list(chosen.items())[:1])))
    (header, _), (_, found) = (
        (planned(whole, pocket()), planned(part, pocket()))
        if more_in_the_header
        else (planned(part, pocket()), planned(whole, pocket()))
    )
    with pytest.raises(ValueError, match="not in both"):
        read(DIGEST, BytesIO(whole), header, found, dtype=torch.float32)


def test_a_file_that_ends_early_is_an_error():
    data = specimen("peft").data
    header, found = planned(data, pocket())
    with pytest.raises(EOFError):
        read(DIGEST, BytesIO(data[:-1]), header, found, dtype=torch.float32)


def test_tensors_are_read_in_the_order_of_the_file_and_without_going_back():
    class Forward(BytesIO):
        def seek(self, offset, whence=0):
            assert offset >= self.tell()
            return super().seek(offset, whence)

    data = specimen("kohya with text encoders").data
    header, found = planned(data, pocket())
    assert read_header(BytesIO(data), len(data)).tensors == header.tensors
    shuffled = Header(dict(reversed(header.tensors.items())), header.metadata, header.data_start)
    adapter = read(DIGEST, Forward(data), shuffled, found, dtype=torch.float32)
    whole = adapter_of(data)
    for component, changes in whole.changes.items():
        for name, change in changes.items():
            for role, tensor in change.tensors.items():
                assert torch.equal(tensor, adapter.changes[component][name].tensors[role])


def test_what_was_read_owns_its_memory():
    data = bytearray(specimen("peft float32").data)
    header, found = planned(bytes(data), pocket())
    adapter = read(DIGEST, BytesIO(data), header, found, dtype=torch.float32)
    before = [change.tensors["up"].clone() for change in adapter.changes["unet"].values()]
    data[header.data_start :] = bytes(len(data) - header.data_start)
    assert all(
        map(torch.equal, before, (change.tensors["up"] for change in adapter.changes["unet"].values()))
    )


def test_bfloat16_bits_are_those_of_the_file():
    chosen = layers(pocket(), count=1)
    tensors = {key: bfloat16(value) for key, value in peft(chosen).items()}
    (change,) = adapter_of(safetensors(tensors), dtype=torch.bfloat16).changes["unet"].values()
    (up,) = (tensor for key, tensor in tensors.items() if "lora_B" in key)
    assert change.tensors["up"].view(torch.uint16).numpy().tobytes() == up.data
