"""From the bytes of a LoRA file to an `Adapter`: every tensor in the service's dtype, every module a `Change`.

What the file is was decided by the registry (`Registry.plan`); here nothing is guessed, and nothing left out.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import BinaryIO, Final

import torch

from lora_registry.header import Header, Tensor
from lora_registry.records import Component, Inspection, Module
from service.engine.loras.changes import Change
from service.errors import IncompatibleLora

_DTYPES: Final = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}


@dataclass(frozen=True, eq=False)
class Adapter:
    """A LoRA file in the host's memory. `size_bytes` is of all its tensors."""

    digest: str
    changes: Mapping[Component, Mapping[str, Change]]
    """By component and by the layer's name in `lora_registry.BaseModel.layers`."""
    embeddings: Mapping[str, Mapping[Component, torch.Tensor]]
    """(vectors, width) by token, "" where the file names none, and by component."""
    size_bytes: int


def read(
    digest: str,
    file: BinaryIO,
    header: Header,
    found: Inspection,
    *,
    dtype: torch.dtype = torch.float32,
) -> Adapter:
    """The adapter of a seekable file, which is read once from end to end.

    `header` and `found` are what `Registry.plan` says of it. A plain pair has its scale multiplied into `up` before
    that is rounded to `dtype`, and a scale of 1 from then on.

    Raises:
        IncompatibleLora: a number is too large for `dtype`.
        ValueError: `found` says that the file is refused, or does not account for every tensor of `header`.
        EOFError: the file is shorter than `header` says.
    """
    scales = _scales(digest, header, found)
    tensors: dict[str, torch.Tensor] = {}
    for key, data in _data(file, header):
        if key in scales:
            tensor = _converted(data, header.tensors[key], scales[key], dtype)
            if tensor is None:
                raise IncompatibleLora(f"a number in '{key}' of {digest} is too large for {dtype}")
            tensors[key] = tensor
    size_bytes = sum(tensor.nbytes for tensor in tensors.values())
    return Adapter(digest, _changes(found, tensors), _embeddings(found, tensors), size_bytes)


def _scales(digest: str, header: Header, found: Inspection) -> Mapping[str, float]:
    """The tensors to keep, and what each is to be multiplied by. Alphas are in the modules' scales already."""
    if not found.accepted:
        raise ValueError(f"{digest} is refused; there is nothing to read")
    scales = {embedding.key: 1.0 for embedding in found.embeddings}
    alphas = set()
    for module in found.modules:
        for role, key in module.tensors.items():
            if role == "alpha":
                alphas.add(key)
            else:
                scales[key] = module.scale if role == "up" and _is_plain(module) else 1.0
    unexplained = header.tensors.keys() ^ (scales.keys() | alphas)
    if unexplained:
        raise ValueError(
            f"'{min(unexplained)}' of {digest} is in its header or in its modules, but not in both"
        )
    return scales


def _is_plain(module: Module) -> bool:
    return module.tensors.keys() - {"alpha"} == {"up", "down"}


def _data(file: BinaryIO, header: Header) -> Iterator[tuple[str, bytearray]]:
    """The bytes of each tensor, in the order of the file. A safetensors file has no holes."""
    file.seek(header.data_start)
    for key, tensor in sorted(header.tensors.items(), key=lambda item: item[1].start):
        size_bytes = tensor.end - tensor.start
        data = bytearray(file.read(size_bytes))
        if len(data) < size_bytes:
            raise EOFError(f"the file ended in '{key}'")
        yield key, data


def _converted(data: bytearray, tensor: Tensor, scale: float, dtype: torch.dtype) -> torch.Tensor | None:
    """The tensor in `dtype`, or None where that has no room for one of its numbers."""
    stored = torch.frombuffer(data, dtype=_DTYPES[tensor.dtype]).view(tensor.shape)
    converted = (stored if scale == 1 else stored.float() * scale).to(dtype)
    could_overflow = dtype == torch.float16 and (stored.dtype != dtype or scale > 1)
    # An infinity stays one in a sum, or becomes a NaN; no sum of float16s is one by itself in float32.
    if could_overflow and not torch.isfinite(converted.sum(dtype=torch.float32)):
        return None
    return converted


def _changes(
    found: Inspection, tensors: Mapping[str, torch.Tensor]
) -> Mapping[Component, Mapping[str, Change]]:
    changes: dict[Component, dict[str, Change]] = defaultdict(dict)
    for module in found.modules:
        factors = {role: tensors[key] for role, key in module.tensors.items() if role != "alpha"}
        scale = 1.0 if _is_plain(module) else module.scale
        changes[module.component][module.name] = Change(module.algorithm, scale, factors)
    return dict(changes)


def _embeddings(
    found: Inspection, tensors: Mapping[str, torch.Tensor]
) -> Mapping[str, Mapping[Component, torch.Tensor]]:
    embeddings: dict[str, dict[Component, torch.Tensor]] = defaultdict(dict)
    for embedding in found.embeddings:
        embeddings[embedding.token][embedding.component] = tensors[embedding.key].reshape(
            embedding.vectors, -1
        )
    return dict(embeddings)
