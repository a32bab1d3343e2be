"""What one module of a LoRA file does to its layer: ΔW from its factors, in every form that the registry accepts.

Shapes: O outputs, I inputs, k the kernel's edge (linear layers have none), r rank. Sources of the formulas: PEFT,
peft/tuners/{lora,loha,lokr}; LyCORIS, https://github.com/KohakuBlueleaf/LyCORIS, lycoris/functional and
lycoris/modules; which one is said where they differ.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import torch

from lora_registry.records import Algorithm

Factors = Mapping[str, torch.Tensor]
"""By role, as in `lora_registry.Module.tensors`."""

MAGNITUDES: Final = frozenset({"magnitude", "dora_scale"})
"""Roles of DoRA: PEFT's and LyCORIS'."""


@dataclass(frozen=True, eq=False)
class Change:
    """ΔW of one layer as its factors. `scale` is alpha / rank; `tensors` are by role, without the alpha."""

    algorithm: Algorithm
    scale: float
    tensors: Factors

    def delta(self, pristine: torch.Tensor) -> torch.Tensor:
        """ΔW at weight 1 in float32, of the shape of `pristine`, which is W0: (O, I) or (O, I, k, k).

        DoRA is the difference that it makes, DoRA(W0, ΔW) − W0: a weight scales that, so that 0 changes nothing.
        """
        factors = {role: tensor.float() for role, tensor in self.tensors.items()}
        change = _PRODUCTS[self.algorithm](factors).reshape(pristine.shape) * self.scale
        for role in MAGNITUDES & factors.keys():
            kept_axis = _kept_axis(role, factors[role], pristine)
            change = _decomposed(pristine.float(), change, factors[role], kept_axis)
        return change

    @property
    def pair(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Up (O, r), the scale multiplied in, and down (r, I·k·k) of a plain LoRA: ΔW is their product. Else None."""
        if self.tensors.keys() != {"up", "down"}:
            return None
        up, down = self.tensors["up"].flatten(1), self.tensors["down"].flatten(1)
        return (up if self.scale == 1 else (up.float() * self.scale).to(up.dtype)), down

    @property
    def is_dora(self) -> bool:
        """Whether ΔW depends on W0."""
        return not MAGNITUDES.isdisjoint(self.tensors)

    @property
    def size_bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def to(self, device: torch.device, non_blocking: bool = False) -> "Change":
        """The same on a device."""
        return self.mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def mapped(self, moved: Callable[[torch.Tensor], torch.Tensor]) -> "Change":
        """The same of tensors that were moved."""
        return replace(self, tensors={role: moved(tensor) for role, tensor in self.tensors.items()})


def _lora(factors: Factors) -> torch.Tensor:
    up_Or, down_rX = factors["up"].flatten(1), factors["down"].flatten(1)
    if "mid" in factors:
        return _with_core(factors["mid"], up_Or.T, down_rX)
    return up_Or @ down_rX


def _loha(factors: Factors) -> torch.Tensor:
    """(A1 · B1) ⊙ (A2 · B2). Source: FedPara, https://arxiv.org/abs/2108.06098."""
    return _factor(factors, "hada", 1) * _factor(factors, "hada", 2)


def _lokr(factors: Factors) -> torch.Tensor:
    """W1 ⊗ W2, where W1 (O1, I1) is the coarse factor; W2 is (O2, I2), (O2, I2, k, k) or (O2, I2·k·k).

    The last is as good: its columns go input by input, and so do the product's.
    """
    first, second = _factor(factors, "lokr", 1), _factor(factors, "lokr", 2)
    return torch.kron(first.reshape(*first.shape[:2], *(1 for _ in second.shape[2:])), second)


def _factor(factors: Factors, algorithm: str, number: int) -> torch.Tensor:
    """One side of LoHa's or LoKr's product: a full matrix, two of rank r, or two and a core."""
    full, core = f"{algorithm}_w{number}", f"{algorithm}_t{number}"
    if full in factors:
        return factors[full]
    a, b = factors[f"{full}_a"], factors[f"{full}_b"]
    return _with_core(factors[core], a, b) if core in factors else a @ b


def _with_core(core: torch.Tensor, outputs_rO: torch.Tensor, inputs_rI: torch.Tensor) -> torch.Tensor:
    """(O, I, k, k) from a core (r, r, k, k), whose first rank is the outputs'. Source: LyCORIS, rebuild_tucker."""
    return torch.einsum("ij...,io,jc->oc...", core, outputs_rO, inputs_rI).contiguous()


def _decomposed(
    pristine: torch.Tensor, change: torch.Tensor, magnitude: torch.Tensor, kept_axis: int
) -> torch.Tensor:
    """m · (W0 + ΔW) / ‖W0 + ΔW‖ − W0, the norm over all axes but one. Source: https://arxiv.org/abs/2402.09353.

    LyCORIS adds an epsilon to the norm, PEFT does not; it is there, for an output that has no weight. ComfyUI takes
    the norm of W0 alone where it is per output, which is neither LyCORIS nor the paper, and is not done here.
    """
    changed = pristine + change
    others = [axis for axis in range(pristine.ndim) if axis != kept_axis]
    norm = torch.linalg.vector_norm(changed, dim=others, keepdim=True) + torch.finfo(torch.float32).eps
    return changed * (magnitude.reshape(norm.shape) / norm) - pristine


def _kept_axis(role: str, magnitude: torch.Tensor, pristine: torch.Tensor) -> int:
    """0 for a magnitude per output: PEFT's, and LyCORIS' (O, 1, …). LyCORIS once wrote (1, I, …): 1, per input."""
    is_by_input = role == "dora_scale" and tuple(magnitude.shape[:2]) == (1, pristine.shape[1])
    return 1 if is_by_input else 0


_PRODUCTS: Final[Mapping[Algorithm, Callable[[Factors], torch.Tensor]]] = {
    "lora": _lora,
    "loha": _loha,
    "lokr": _lokr,
}
