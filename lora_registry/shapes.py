"""Whether the tensors of one module fit its layer, and the rank that they have.

Shapes of LyCORIS' algorithms: https://github.com/KohakuBlueleaf/LyCORIS, lycoris/functional.
"""

import math
from collections.abc import Mapping
from typing import Final

from lora_registry.base_model import Layer
from lora_registry.records import Algorithm

MAX_RANK: Final = 512

Shapes = Mapping[str, tuple[int, ...]]
"""By role."""


class Misfit(Exception):
    """The tensors do not make a change of that layer. Carries a code and the roles at fault."""

    def __init__(self, code: str, message: str, *roles: str) -> None:
        super().__init__(message)
        self.code, self.message, self.roles = code, message, roles


def fit(layer: Layer, shapes: Shapes) -> tuple[Algorithm, int]:
    """The algorithm and the rank (0 where nothing is decomposed) of a module's tensors.

    Raises:
        Misfit: a tensor is missing or too many, or has the wrong shape.
    """
    roles = set(shapes) - {"alpha", "magnitude", "dora_scale"}
    algorithm: Algorithm
    if roles & {"down", "up", "mid"}:
        algorithm, rank = "lora", _lora(layer, shapes, roles)
    elif any(role.startswith("hada") for role in roles):
        algorithm, rank = "loha", _loha(layer, shapes, roles)
    elif any(role.startswith("lokr") for role in roles):
        algorithm, rank = "lokr", _lokr(layer, shapes, roles)
    else:
        raise Misfit(
            "pair.half", "there is an alpha or a magnitude without the matrices that it is for", *shapes
        )
    if rank > MAX_RANK:
        raise Misfit("rank.too_large", f"rank {rank}; {MAX_RANK} is the most", *roles)
    _check_scalar_and_magnitude(layer, shapes)
    return algorithm, rank


def _lora(layer: Layer, shapes: Shapes, roles: set[str]) -> int:
    if not {"down", "up"} <= roles:
        raise Misfit(
            "pair.half", "one half of a pair is missing (down without up, or up without down)", *roles
        )
    _nothing_else(roles, {"down", "up", "mid"})
    down, up = shapes["down"], shapes["up"]
    rank = down[0] if down else 0
    wanted_down: tuple[int, ...]
    wanted_up: tuple[int, ...]
    k = layer.kernel
    if "mid" in roles:
        if not k:
            raise Misfit("shape.mismatch", "a linear layer cannot have a lora_mid", "mid")
        _expect(shapes, "mid", (rank, rank, k, k))
        wanted_down, wanted_up = (rank, layer.inputs, 1, 1), (layer.outputs, rank, 1, 1)
    elif k:
        wanted_down, wanted_up = (rank, layer.inputs, k, k), (layer.outputs, rank, 1, 1)
    else:
        # Some trainers write a linear layer's matrices as 1 x 1 convolutions.
        ones = down[2:]
        wanted_down, wanted_up = (rank, layer.inputs, *ones), (layer.outputs, rank, *ones)
        if ones not in ((), (1, 1)):
            wanted_down = (rank, layer.inputs)
    if (
        down != wanted_down
        and len(down) >= 2
        and len(up) >= 2
        and down[0] == layer.inputs
        and up[1] == layer.outputs
    ):
        raise Misfit("shape.transposed", "the matrices are transposed", "down", "up")
    _expect(shapes, "down", wanted_down)
    _expect(shapes, "up", wanted_up)
    return rank


def _loha(layer: Layer, shapes: Shapes, roles: set[str]) -> int:
    factors = {"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"}
    if not factors <= roles:
        raise Misfit("pair.half", "a LoHa module lacks one of its four matrices", *roles)
    tucker = bool(roles & {"hada_t1", "hada_t2"})
    _nothing_else(roles, factors | {"hada_t1", "hada_t2"})
    k = max(layer.kernel, 1)
    for i in (1, 2):
        rank = _size(shapes, f"hada_w{i}_b", 0)
        if tucker:
            if f"hada_t{i}" not in roles or not layer.kernel:
                raise Misfit("pair.half", "a LoHa module lacks one of its two cores", *roles)
            _expect(shapes, f"hada_t{i}", (rank, rank, k, k))
            _expect(shapes, f"hada_w{i}_a", (rank, layer.outputs))
            _expect(shapes, f"hada_w{i}_b", (rank, layer.inputs))
        else:
            _expect(shapes, f"hada_w{i}_a", (layer.outputs, rank))
            _expect(shapes, f"hada_w{i}_b", (rank, layer.inputs * k * k))
    first, second = _size(shapes, "hada_w1_b", 0), _size(shapes, "hada_w2_b", 0)
    if first != second:
        raise Misfit(
            "shape.mismatch", f"the two halves of a LoHa have ranks {first} and {second}", "hada_w2_b"
        )
    return first


def _lokr(layer: Layer, shapes: Shapes, roles: set[str]) -> int:
    _nothing_else(roles, {f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")})
    out_1, in_1, rank_1 = _lokr_factor(shapes, roles, 1, ())
    out_2, in_2, rank_2 = _lokr_factor(shapes, roles, 2, (layer.kernel,) * 2 if layer.kernel else ())
    if (out_1 * out_2, in_1 * in_2) != (layer.outputs, layer.inputs):
        raise Misfit(
            "shape.mismatch",
            f"the Kronecker product is {out_1 * out_2} x {in_1 * in_2}, the layer {layer.outputs} x {layer.inputs}",
            *roles,
        )
    return rank_2 or rank_1


def _lokr_factor(shapes: Shapes, roles: set[str], i: int, kernel: tuple[int, ...]) -> tuple[int, int, int]:
    """Outputs, inputs and rank of one factor of the product; rank 0 where it is a full matrix."""
    full, a, b, core = f"lokr_w{i}", f"lokr_w{i}_a", f"lokr_w{i}_b", f"lokr_t{i}"
    if full in roles and not roles & {a, b, core}:
        shape = shapes[full]
        if len(shape) < 2 or shape[2:] not in (kernel, kernel or (1, 1)):
            raise Misfit("shape.mismatch", f"{full} has the shape {list(shape)}", full)
        return shape[0], shape[1], 0
    if not {a, b} <= roles or full in roles:
        raise Misfit("pair.half", f"a LoKr module needs either {full} or both of {a} and {b}", *roles)
    rank = _size(shapes, b, 0)
    if core in roles:
        _expect(shapes, core, (rank, rank, *kernel))
        _expect(shapes, a, (rank, _size(shapes, a, 1)))
        _expect(shapes, b, (rank, _size(shapes, b, 1)))
        return shapes[a][1], shapes[b][1], rank
    outputs, inputs, area = _size(shapes, a, 0), _size(shapes, b, 1), math.prod(kernel)
    _expect(shapes, a, (outputs, rank))
    if len(shapes[b]) != 2 or inputs % area:
        raise Misfit("shape.mismatch", f"{b} has the shape {list(shapes[b])}", b)
    return outputs, inputs // area, rank


def _check_scalar_and_magnitude(layer: Layer, shapes: Shapes) -> None:
    if "alpha" in shapes and math.prod(shapes["alpha"]) != 1:
        raise Misfit("alpha.invalid", f"alpha has the shape {list(shapes['alpha'])}, not one number", "alpha")
    ones = (1, 1) if layer.kernel else ()
    if {"magnitude", "dora_scale"} <= set(shapes):
        raise Misfit("module.mixed", "one module has two DoRA magnitudes", "magnitude", "dora_scale")
    if "magnitude" in shapes:
        _expect(shapes, "magnitude", (1, layer.outputs, 1, 1) if layer.kernel else (layer.outputs,))
    if "dora_scale" in shapes and shapes["dora_scale"] != (1, layer.inputs, *ones):
        _expect(shapes, "dora_scale", (layer.outputs, 1, *ones))


def _nothing_else(roles: set[str], allowed: set[str]) -> None:
    if roles - allowed:
        raise Misfit("module.mixed", "one module has the tensors of two algorithms", *roles)


def _size(shapes: Shapes, role: str, axis: int) -> int:
    shape = shapes[role]
    if len(shape) <= axis:
        raise Misfit("shape.mismatch", f"{role} has the shape {list(shape)}", role)
    return shape[axis]


def _expect(shapes: Shapes, role: str, wanted: tuple[int, ...]) -> None:
    if shapes[role] != wanted:
        raise Misfit(
            "shape.mismatch", f"{role} has the shape {list(shapes[role])}; {list(wanted)} fits", role
        )
