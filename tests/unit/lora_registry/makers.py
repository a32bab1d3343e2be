"""LoRA files made by hand, in every form that people use: names to tensors, and tensors to bytes."""

import json
import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from lora_registry.base_model import BaseModel, Layer
from lora_registry.families import sdxl

POCKET_FOLDER = Path(__file__).resolve().parents[3] / "service" / "pocket" / "weights" / "base"
ATTENTION = "transformer_blocks.0.attn"
DTYPES = {"<f2": "F16", "<f4": "F32", "<f8": "F64", "<i8": "I64", "|u1": "U8"}

Tensors = dict[str, "np.ndarray | Raw"]


@dataclass(frozen=True)
class Raw:
    """A tensor of a type that numpy does not have."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


@cache
def pocket() -> BaseModel:
    return BaseModel.from_folder("pocket SDXL", POCKET_FOLDER)


BASES: Mapping[str, Callable[[], BaseModel]] = {"pocket": pocket, "sdxl": sdxl}


def safetensors(
    tensors: Tensors, metadata: Mapping[str, str] | None = None, **header_entries: object
) -> bytes:
    """A file as the library writes it, but for what the caller spoils."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    body = bytearray()
    for name, tensor in tensors.items():
        raw = (
            tensor
            if isinstance(tensor, Raw)
            else Raw(DTYPES[tensor.dtype.str], tensor.shape, tensor.tobytes())
        )
        header[name] = {
            "dtype": raw.dtype,
            "shape": list(raw.shape),
            "data_offsets": [len(body), len(body) + len(raw.data)],
        }
        body += raw.data
    header |= header_entries
    text = json.dumps(header).encode()
    return with_header(text, bytes(body))


def with_header(text: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + body


def numbers(*shape: int, seed: str = "", dtype: str = "<f2", size: float = 0.05) -> np.ndarray:
    """Small numbers that depend on the seed and the shape alone."""
    rng = np.random.default_rng(zlib.crc32(f"{seed}{shape}".encode()))
    return (rng.standard_normal(shape) * size).astype(dtype)


def bfloat16(values: np.ndarray) -> Raw:
    bits = np.ascontiguousarray(values.astype("<f4")).view("<u4") >> 16
    return Raw("BF16", values.shape, bits.astype("<u2").tobytes())


def layers(
    base: BaseModel, part: str = ATTENTION, component: str = "unet", count: int = 6
) -> dict[str, Layer]:
    """Some layers with `part` in their names, from all over the model."""
    found = {name: layer for name, layer in base.layers[component].items() if part in name}
    step = max(1, len(found) // count)
    return dict(list(found.items())[::step][:count])


def pair(layer: Layer, rank: int, seed: str = "", dtype: str = "<f2") -> tuple[np.ndarray, np.ndarray]:
    """Down and up as every LoRA trainer has them."""
    if layer.kernel:
        k = layer.kernel
        return numbers(rank, layer.inputs, k, k, seed=seed, dtype=dtype), numbers(
            layer.outputs, rank, 1, 1, seed=seed, dtype=dtype
        )
    return numbers(rank, layer.inputs, seed=seed, dtype=dtype), numbers(
        layer.outputs, rank, seed=seed, dtype=dtype
    )


def peft(chosen: Mapping[str, Layer], prefix: str = "unet.", rank: int = 4, dtype: str = "<f2") -> Tensors:
    out: Tensors = {}
    for name, layer in chosen.items():
        down, up = pair(layer, rank, name, dtype)
        out |= {f"{prefix}{name}.lora_A.weight": down, f"{prefix}{name}.lora_B.weight": up}
    return out


def peft_dora(chosen: Mapping[str, Layer], prefix: str = "unet.", rank: int = 4) -> Tensors:
    out = peft(chosen, prefix, rank)
    for name, layer in chosen.items():
        shape = (1, layer.outputs, 1, 1) if layer.kernel else (layer.outputs,)
        out[f"{prefix}{name}.lora_magnitude_vector"] = np.abs(numbers(*shape, seed=name)) + np.float16(1)
    return out


def legacy(chosen: Mapping[str, Layer], prefix: str = "unet.", rank: int = 4) -> Tensors:
    """The attention processors of 2023."""
    out: Tensors = {}
    for name, layer in chosen.items():
        attention, _, projection = name.removesuffix(".0").rpartition(".")
        down, up = pair(layer, rank, name)
        stem = f"{prefix}{attention}.processor.{projection}_lora"
        out |= {f"{stem}.down.weight": down, f"{stem}.up.weight": up}
    return out


def kohya_name(base: BaseModel, component: str, name: str, naming: str = "sgm") -> str:
    if component == "unet":
        return "lora_unet_" + (base.sgm[name] if naming == "sgm" else name).replace(".", "_")
    return ("lora_te1_" if component == "text_encoder" else "lora_te2_") + name.replace(".", "_")


def kohya(
    base: BaseModel,
    chosen: Mapping[str, Layer],
    component: str = "unet",
    naming: str = "sgm",
    ranks: Iterable[int] = (4,),
    alphas: Iterable[float | None] = (2.0,),
) -> Tensors:
    """kohya's names; ranks and alphas are dealt out in turn."""
    out: Tensors = {}
    all_ranks, all_alphas = list(ranks), list(alphas)
    for i, (name, layer) in enumerate(chosen.items()):
        stem = kohya_name(base, component, name, naming)
        down, up = pair(layer, all_ranks[i % len(all_ranks)], name)
        out |= {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up}
        alpha = all_alphas[i % len(all_alphas)]
        if alpha is not None:
            out[f"{stem}.alpha"] = np.array(alpha, "<f2")
    return out


def locon_mid(base: BaseModel, chosen: Mapping[str, Layer], rank: int = 4) -> Tensors:
    """Convolutions in three factors (LyCORIS' use_cp)."""
    out: Tensors = {}
    for name, layer in chosen.items():
        stem, k = kohya_name(base, "unet", name), layer.kernel
        out[f"{stem}.lora_down.weight"] = numbers(rank, layer.inputs, 1, 1, seed=name)
        out[f"{stem}.lora_mid.weight"] = numbers(rank, rank, k, k, seed=name)
        out[f"{stem}.lora_up.weight"] = numbers(layer.outputs, rank, 1, 1, seed=name)
        out[f"{stem}.alpha"] = np.array(1.0, "<f2")
    return out


def loha(base: BaseModel, chosen: Mapping[str, Layer], rank: int = 3, tucker: bool = False) -> Tensors:
    out: Tensors = {}
    for name, layer in chosen.items():
        stem, k = kohya_name(base, "unet", name), max(layer.kernel, 1)
        for i in (1, 2):
            if tucker and layer.kernel:
                out[f"{stem}.hada_t{i}"] = numbers(rank, rank, k, k, seed=f"{name}{i}")
                out[f"{stem}.hada_w{i}_a"] = numbers(rank, layer.outputs, seed=f"{name}{i}a")
                out[f"{stem}.hada_w{i}_b"] = numbers(rank, layer.inputs, seed=f"{name}{i}b")
            else:
                out[f"{stem}.hada_w{i}_a"] = numbers(layer.outputs, rank, seed=f"{name}{i}a")
                out[f"{stem}.hada_w{i}_b"] = numbers(rank, layer.inputs * k * k, seed=f"{name}{i}b")
        out[f"{stem}.alpha"] = np.array(1.0, "<f2")
    return out


def lokr(base: BaseModel, chosen: Mapping[str, Layer], rank: int = 2, full: bool = False) -> Tensors:
    """The first factor is a full 4 x 4 matrix; the second is one too, or two of that rank."""
    out: Tensors = {}
    for name, layer in chosen.items():
        stem, kernel = kohya_name(base, "unet", name), (layer.kernel,) * 2 if layer.kernel else ()
        outputs, inputs = layer.outputs // 4, layer.inputs // 4
        out[f"{stem}.lokr_w1"] = numbers(4, 4, seed=name)
        if full:
            out[f"{stem}.lokr_w2"] = numbers(outputs, inputs, *kernel, seed=name)
        else:
            area = int(np.prod(kernel)) if kernel else 1
            out[f"{stem}.lokr_w2_a"] = numbers(outputs, rank, seed=name)
            out[f"{stem}.lokr_w2_b"] = numbers(rank, inputs * area, seed=name)
        out[f"{stem}.alpha"] = np.array(1.0, "<f2")
    return out


def with_dora_scale(tensors: Tensors, by_inputs: bool = False) -> Tensors:
    """kohya's DoRA: a scale beside each pair."""
    out = dict(tensors)
    for key, tensor in tensors.items():
        if key.endswith("lora_up.weight") and not by_inputs:
            out[key.replace("lora_up.weight", "dora_scale")] = np.ones(
                (tensor.shape[0], 1, *tensor.shape[2:]), "<f2"
            )
        if key.endswith("lora_down.weight") and by_inputs:
            out[key.replace("lora_down.weight", "dora_scale")] = np.ones(
                (1, tensor.shape[1], *([1] * (tensor.ndim - 2))), "<f2"
            )
    return out


def clip_pair(
    base: BaseModel, prefix: str = "", vectors: int = 2, names: tuple[str, str] = ("clip_l", "clip_g")
) -> Tensors:
    widths = base.token_widths
    return {
        prefix + names[0]: numbers(vectors, widths["text_encoder"], dtype="<f4"),
        prefix + names[1]: numbers(vectors, widths["text_encoder_2"], dtype="<f4"),
    }
