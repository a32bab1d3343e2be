"""The numbers of an accepted file, looked at in pieces: no tensor is ever in memory as a whole."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import BinaryIO, Final

import numpy as np
from numpy.typing import NDArray

from lora_registry.findings import Findings
from lora_registry.header import ITEM_BYTES, Tensor
from lora_registry.modules import size_of_change
from lora_registry.records import Module

CHUNK_BYTES: Final = 2 * 2**20
HUGE_NORM: Final = 1e5
"""A Frobenius norm of ΔW that no picture survives: SDXL's own layers have 20 to 60."""
LARGE_NORM: Final = 1e3
MAX_ALPHA: Final = 1e6


@dataclass(frozen=True)
class Summary:
    """What the numbers of one tensor amount to."""

    is_finite: bool
    norm: float
    first: float


def measure(
    file: BinaryIO,
    tensors: Mapping[str, Tensor],
    modules: tuple[Module, ...],
    findings: Findings,
    warnings: Findings,
) -> tuple[Module, ...]:
    """The modules with the alphas that the file has. What is wrong with the numbers goes to `findings`."""
    # In the order of the file, so that a disk reads it once from end to end.
    ordered = sorted(tensors.items(), key=lambda item: item[1].start)
    summaries = {key: summarise(file, tensor) for key, tensor in ordered}
    broken = [key for key, summary in summaries.items() if not summary.is_finite]
    if broken:
        findings.add("values.not_finite", "there are numbers that are NaN or infinite", broken)
        return modules
    measured = _with_alphas(modules, summaries, findings)
    if not findings:
        _judge_sizes(measured, summaries, tensors, findings, warnings)
    return measured


def read_alphas(
    file: BinaryIO, tensors: Mapping[str, Tensor], modules: tuple[Module, ...], findings: Findings
) -> tuple[Module, ...]:
    """The modules with the alphas that the file has; no other tensor is read."""
    keys = [module.tensors["alpha"] for module in modules if "alpha" in module.tensors]
    summaries = {
        key: summarise(file, tensors[key]) for key in sorted(keys, key=lambda key: tensors[key].start)
    }
    return _with_alphas(modules, summaries, findings)


def summarise(file: BinaryIO, tensor: Tensor) -> Summary:
    """Read one tensor in pieces of 2 MiB."""
    file.seek(tensor.start)
    left, squares, first = tensor.end - tensor.start, 0.0, math.nan
    while left:
        piece = file.read(min(left, CHUNK_BYTES))
        if not piece:
            raise EOFError("the file ended in the middle of a tensor")
        left -= len(piece)
        numbers = (
            as_float32(piece, tensor.dtype)
            if ITEM_BYTES[tensor.dtype] < 8
            else as_float64(piece, tensor.dtype)
        )
        if math.isnan(first):
            first = float(numbers[0])
        # A NaN or an infinity stays one through squares and sums; a float32's square may not become one by itself.
        with np.errstate(over="ignore", invalid="ignore"):
            squares += float(np.dot(numbers, numbers)) if _is_moderate(numbers) else _square_sum(numbers)
    return Summary(math.isfinite(squares), math.sqrt(squares) if squares >= 0 else math.nan, first)


def as_float32(data: bytes, dtype: str) -> NDArray[np.float32]:
    """Numbers of F16, BF16, F32 or I32 as float32."""
    if dtype == "BF16":  # the upper half of a float32
        return (np.frombuffer(data, "<u2").astype(np.uint32) << np.uint32(16)).view(np.float32)
    kinds = {"F16": "<f2", "F32": "<f4", "I32": "<i4"}
    return np.frombuffer(data, kinds[dtype]).astype(np.float32, copy=False)


def as_float64(data: bytes, dtype: str) -> NDArray[np.float64]:
    """Numbers of F64 or I64 as float64; only alphas are such."""
    return np.frombuffer(data, {"F64": "<f8", "I64": "<i8"}[dtype]).astype(np.float64)


def _is_moderate(numbers: NDArray[np.float32] | NDArray[np.float64]) -> bool:
    return bool(np.abs(numbers).max() < 1e12)  # false for NaN, too


def _square_sum(numbers: NDArray[np.float32] | NDArray[np.float64]) -> float:
    wide = numbers.astype(np.float64)
    return float(np.dot(wide, wide))


def _with_alphas(
    modules: tuple[Module, ...], summaries: Mapping[str, Summary], findings: Findings
) -> tuple[Module, ...]:
    measured = []
    for module in modules:
        key = module.tensors.get("alpha")
        alpha = module.alpha if key is None else summaries[key].first
        if key is not None and not 0 < alpha < MAX_ALPHA:
            findings.add("alpha.invalid", f"an alpha is {alpha:g}; it must be a positive number", [key])
        elif key is not None:
            module = replace(module, alpha=alpha, scale=alpha / module.rank if module.rank else 1.0)
        measured.append(module)
    return tuple(measured)


def _judge_sizes(
    modules: tuple[Module, ...],
    summaries: Mapping[str, Summary],
    tensors: Mapping[str, Tensor],
    findings: Findings,
    warnings: Findings,
) -> None:
    sizes = []
    for module in modules:
        norms = {role: summaries[key].norm for role, key in module.tensors.items()}
        sizes.append((module, size_of_change(module, norms, tensors)))
    for limit, code, into in ((HUGE_NORM, "values.huge", findings), (LARGE_NORM, "values.large", warnings)):
        above = [(module, size) for module, size in sizes if not size <= limit]
        if above:
            keys = [key for module, _ in above for role, key in module.tensors.items() if role != "alpha"]
            largest = max(size for _, size in above)
            into.add(
                code, f"the change of a layer may have a norm of {largest:.3g}; layers have 20 to 60", keys
            )
            break
    # A DoRA rescales the layer even where its pair is zero.
    if modules and not any(size for _, size in sizes) and not any(module.is_dora for module in modules):
        warnings.add("values.no_effect", "every change is zero: the LoRA does nothing")
