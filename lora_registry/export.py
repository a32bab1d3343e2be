"""A LoRA under the tensor names of other programs: kohya's for A1111 and ComfyUI, diffusers' for diffusers and PEFT.

Tensors keep their bytes. Only diffusers' form has no place for alpha: there the scale is multiplied into `lora_B`.
"""

import json
import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final, Literal

import numpy as np
from numpy.typing import NDArray

from lora_registry.base_model import BaseModel
from lora_registry.errors import NotExportable
from lora_registry.header import ITEM_BYTES, Header, Tensor
from lora_registry.records import Component, Embedding, Inspection, LoraVersion, Module
from lora_registry.values import as_float32

Form = Literal["original", "diffusers", "kohya"]
PIECE_BYTES: Final = 2**20

_KOHYA_PREFIX: Final[Mapping[Component, str]] = {
    "unet": "lora_unet",
    "text_encoder": "lora_te1",
    "text_encoder_2": "lora_te2",
}
_KOHYA_ROLE: Final = {"down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight"}
_CLIP: Final[Mapping[Component, str]] = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}


@dataclass(frozen=True)
class _Written:
    """One tensor of the new file: taken over from `source`, multiplied by `scale`; or `data` where it is new."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Tensor | None = None
    scale: float = 1.0
    data: bytes = b""

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]


@dataclass(frozen=True)
class Export:
    """A file to be written or sent: its size, and its bytes in pieces, to be taken once."""

    size_bytes: int
    pieces: Iterator[bytes]


def original(file: BinaryIO, size_bytes: int) -> Export:
    """The very bytes that were published."""

    def pieces() -> Iterator[bytes]:
        with file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    return Export(size_bytes, pieces())


def renamed(
    file: BinaryIO, header: Header, found: Inspection, base: BaseModel, version: LoraVersion, form: Form
) -> Export:
    """The file in another form. It owns `file` from here on.

    Raises:
        NotExportable: the form has no way to say what the LoRA does.
    """
    if form == "kohya":
        tensors = [tensor for module in found.modules for tensor in _kohya(module, header, base)]
    else:
        tensors = [tensor for module in found.modules for tensor in _diffusers(module, header)]
    tensors += _embeddings(found, header, version)
    text = _header_text(tensors, _metadata(found, version, form))
    size_bytes = len(text) + sum(tensor.size_bytes for tensor in tensors)
    return Export(size_bytes, _pieces(file, text, tensors))


def _kohya(module: Module, header: Header, base: BaseModel) -> Iterator[_Written]:
    layer = base.sgm[module.name] if module.component == "unet" else module.name
    stem = f"{_KOHYA_PREFIX[module.component]}_{layer.replace('.', '_')}"
    for role, key in module.tensors.items():
        tensor = header.tensors[key]
        if role == "magnitude":
            ones = (1,) * (3 if module.is_conv else 1)
            yield _Written(f"{stem}.dora_scale", tensor.dtype, (tensor.count, *ones), tensor)
        elif role != "alpha":
            yield _Written(f"{stem}.{_KOHYA_ROLE.get(role, role)}", tensor.dtype, tensor.shape, tensor)
    if module.rank:
        yield _Written(f"{stem}.alpha", "F32", (), data=struct.pack("<f", module.alpha))


def _diffusers(module: Module, header: Header) -> Iterator[_Written]:
    where = f"{module.component}.{module.name}"
    if module.algorithm != "lora" or "mid" in module.tensors:
        raise NotExportable(
            f"'{where}' is {module.algorithm} with a form that diffusers has none for; export kohya names"
        )
    for role, key in module.tensors.items():
        tensor = header.tensors[key]
        shape = tensor.shape if module.is_conv else tensor.shape[:2]
        if role == "down":
            yield _Written(f"{where}.lora_A.weight", tensor.dtype, shape, tensor)
        elif role == "up":
            yield _Written(f"{where}.lora_B.weight", tensor.dtype, shape, tensor, module.scale)
        elif role == "magnitude":
            yield _Written(f"{where}.lora_magnitude_vector", tensor.dtype, tensor.shape, tensor)
        elif role == "dora_scale":
            if tensor.shape[0] != tensor.count:
                raise NotExportable(
                    f"the DoRA of '{where}' is scaled by inputs, which PEFT has no form for; export kohya names"
                )
            shape = (1, tensor.count, 1, 1) if module.is_conv else (tensor.count,)
            yield _Written(f"{where}.lora_magnitude_vector", tensor.dtype, shape, tensor)


def _embeddings(found: Inspection, header: Header, version: LoraVersion) -> Iterator[_Written]:
    """As the two names that everybody reads, or bundled beside LoRA tensors and where there are several tokens."""
    tokens = {embedding.token for embedding in found.embeddings}
    for embedding in found.embeddings:
        tensor = header.tensors[embedding.key]
        name = _CLIP[embedding.component]
        if found.modules or len(tokens) > 1:
            name = f"bundle_emb.{_token(embedding, version)}.{name}"
        yield _Written(name, tensor.dtype, (embedding.vectors, tensor.shape[-1]), tensor)


def _token(embedding: Embedding, version: LoraVersion) -> str:
    return embedding.token or version.name


def _metadata(found: Inspection, version: LoraVersion, form: Form) -> dict[str, str]:
    metadata = {
        "format": "pt",
        **found.metadata,
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": version.ref,
    }
    if version.triggers:
        metadata["modelspec.trigger_phrase"] = ", ".join(version.triggers)
    if version.family == "SDXL 1.0":
        metadata["modelspec.architecture"] = "stable-diffusion-xl-v1-base/lora"
        metadata["ss_base_model_version"] = "sdxl_base_v1-0"
    if form == "kohya" and found.modules:
        metadata["ss_network_module"] = (
            "networks.lora" if found.modules[0].algorithm == "lora" else "lycoris.kohya"
        )
        metadata["ss_network_dim"] = _one_or_dynamic({module.rank for module in found.modules})
        metadata["ss_network_alpha"] = _one_or_dynamic({module.alpha for module in found.modules})
    return metadata


def _one_or_dynamic(values: set[int] | set[float]) -> str:
    return f"{next(iter(values)):g}" if len(values) == 1 else "Dynamic"


def _header_text(tensors: list[_Written], metadata: Mapping[str, str]) -> bytes:
    """Length and JSON, padded so that the tensors begin at a multiple of eight."""
    entries: dict[str, object] = {"__metadata__": metadata}
    at = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": [at, at + tensor.size_bytes],
        }
        at += tensor.size_bytes
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _pieces(file: BinaryIO, text: bytes, tensors: list[_Written]) -> Iterator[bytes]:
    with file:
        yield text
        for tensor in tensors:
            if tensor.source is None:
                yield tensor.data
                continue
            file.seek(tensor.source.start)
            left = tensor.size_bytes
            while left:
                piece = file.read(min(left, PIECE_BYTES))
                left -= len(piece)
                yield piece if tensor.scale == 1.0 else _scaled(piece, tensor.dtype, tensor.scale)


def _scaled(piece: bytes, dtype: str, scale: float) -> bytes:
    numbers = as_float32(piece, dtype) * np.float32(scale)
    if dtype == "BF16":
        return _as_bfloat16(numbers).tobytes()
    return numbers.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _as_bfloat16(numbers: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper halves, rounded to the nearest and to even."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    rounding = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return ((bits + rounding) >> np.uint32(16)).astype("<u2")
