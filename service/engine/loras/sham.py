"""A sham of an adapter: changes of the same size in random directions, to tell what a LoRA says from how loud it is.

In the place of each ΔW there is Q1·ΔW·Q2 with random orthogonal Q1 and Q2. The singular values stay, and with them the
rank and the Frobenius and the spectral norm; the singular vectors are drawn anew.

| form | Q1 and Q2 |
|---|---|
| LoRA, of convolutions, too | any, all as likely; the inputs of a convolution are its channels times its kernel |
| LoRA with a core | the same for outputs and input channels; the core, which holds the kernels, stays |
| LoHa | such as reorder and negate: any other would leave the form, and ΔW would have to be kept in full |
| LoKr | the same for either factor: the singular values of W1 ⊗ W2 are the products of theirs |
| textual inversion | no matrix: each vector becomes another of its length |
| DoRA | none: what it changes depends on W0, and has no size of its own |

What is drawn for a layer follows from the file's digest, the seed, the component and the layer's place in this model.
Neither other layers, nor how they lie in runs, nor dtype or device have a part in it. On another CPU, or with another
number of threads, one float32 in some millions may be rounded otherwise.

Shapes: n layers of a run, O outputs, I inputs (of a convolution times its kernel), X either, r rank, k = min(X, r).
"""

import hashlib
from dataclasses import dataclass, replace
from typing import assert_never

import torch

from lora_registry.records import Component
from service.engine.loras.arranged import Arranged, Changes, Place, Run, Vectors
from service.engine.loras.changes import Change, Factors
from service.engine.orders import name_of_sham
from service.errors import IncompatibleLora


def sham_of(adapter: Arranged, seed: int) -> Arranged:
    """The sham that this seed gives, of the adapter's dtypes and on its device; the CPU makes it, in float64.

    Raises:
        IncompatibleLora: it has a DoRA.
    """
    if any(change.is_dora for changes in adapter.components.values() for _, change in changes.singles):
        raise IncompatibleLora(
            f"{adapter.digest} is a DoRA, which has no sham: what it changes depends on the model's own weights"
        )
    draws = _Draws(adapter.digest, seed)
    return Arranged(
        name_of_sham(adapter.digest, seed),
        {component: _changes(changes, component, draws) for component, changes in adapter.components.items()},
        {token: _vectors(vectors, token, draws) for token, vectors in adapter.embeddings.items()},
    )


@dataclass(frozen=True)
class _Draws:
    """Where the random numbers of each thing begin."""

    digest: str
    seed: int

    def of_layer(self, component: Component, place: Place) -> torch.Generator:
        return self._of(f"{component} {place.group}.{place.at}")

    def of_token(self, component: Component, token: str) -> torch.Generator:
        return self._of(f"{component} token {token}")

    def _of(self, thing: str) -> torch.Generator:
        sha256 = hashlib.sha256(f"{self.digest} {self.seed} {thing}".encode())
        return torch.Generator().manual_seed(int.from_bytes(sha256.digest()[:7], "big"))


def _vectors(vectors: Vectors, token: str, draws: _Draws) -> Vectors:
    return {
        component: _turned_each(rows, draws.of_token(component, token)) for component, rows in vectors.items()
    }


def _changes(changes: Changes, component: Component, draws: _Draws) -> Changes:
    return Changes(
        tuple(_run(run, component, draws) for run in changes.runs),
        tuple(
            (place, _change(change, draws.of_layer(component, place))) for place, change in changes.singles
        ),
    )


def _run(run: Run, component: Component, draws: _Draws) -> Run:
    up_nOr, down_nrI = torch.empty_like(run.up_nOr), torch.empty_like(run.down_nrI)
    # Not in a batch, where the last bits of a layer may depend on its neighbours; and it would be no faster.
    for at in range(len(up_nOr)):
        generator = draws.of_layer(component, Place(run.group, run.first + at))
        up_nOr[at] = _turned(run.up_nOr[at], generator)
        down_nrI[at] = _turned(run.down_nrI[at].T, generator).T
    return Run(run.group, run.first, up_nOr, down_nrI)


def _change(change: Change, generator: torch.Generator) -> Change:
    match change.algorithm:
        case "lora":
            turned = _around_core(change.tensors, generator)
        case "loha":
            turned = _reordered(change.tensors, ("hada_w1", "hada_w2"), generator)
        case "lokr":
            turned = _reordered(change.tensors, ("lokr_w1",), generator)
            turned = _reordered(turned, ("lokr_w2",), generator)
        case _:
            assert_never(change.algorithm)
    return replace(change, tensors=turned)


def _turned(matrix_Xr: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Q·matrix for a random orthogonal Q, of which only the first k columns are ever made.

    matrix = F·R with orthonormal columns in F; Q·F is a random orthonormal (X, k), whatever F is. A random one is the
    orthonormal factor of normal numbers, if the triangular one has a positive diagonal: then all are as likely, and
    the factor is the only one, whatever signs a library chooses. Source: https://arxiv.org/abs/math-ph/0609050.
    """
    triangle_kr = torch.linalg.qr(matrix_Xr.to("cpu", torch.float64), mode="r").R
    normal_Xk = torch.randn(len(matrix_Xr), len(triangle_kr), generator=generator, dtype=torch.float64)
    frame_Xk, scales_kk = torch.linalg.qr(normal_Xk)
    return ((frame_Xk * scales_kk.diagonal().sign()) @ triangle_kr).to(matrix_Xr)


def _turned_each(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Vectors of the same lengths, each in a direction of its own."""
    normal = torch.randn(rows.shape, generator=generator, dtype=torch.float64)
    lengths = rows.to("cpu", torch.float64).norm(dim=1, keepdim=True)
    return (normal * (lengths / normal.norm(dim=1, keepdim=True))).to(rows)


def _around_core(factors: Factors, generator: torch.Generator) -> Factors:
    up, down = factors["up"], factors["down"]
    turned_up = _turned(up.flatten(1), generator).reshape(up.shape)
    turned_down = _turned(down.flatten(1).T, generator).T.reshape(down.shape)
    return {**factors, "up": turned_up, "down": turned_down}


def _reordered(factors: Factors, sides: tuple[str, ...], generator: torch.Generator) -> Factors:
    """Outputs and inputs of what is multiplied element by element in one random order, and some of them negated."""
    turned = dict(factors)
    for ends in zip(*(_ends(factors, side) for side in sides), strict=True):
        first, along = ends[0]
        size = factors[first].shape[along]
        order = torch.randperm(size, generator=generator)
        signs = torch.randint(2, (size,), generator=generator) * 2 - 1
        for role, axis in ends:
            tensor = turned[role]
            turned[role] = tensor.index_select(axis, order.to(tensor.device))
        # The first side alone is negated: its sign is the product's.
        signs = signs.reshape(-1, *(1 for _ in turned[first].shape[along + 1 :]))
        turned[first] = turned[first] * signs.to(turned[first])
    return turned


def _ends(factors: Factors, side: str) -> tuple[tuple[str, int], tuple[str, int]]:
    """Where one side of a product, as `changes._factor` reads it, has its outputs and inputs: (role, axis)."""
    if side in factors:
        return (side, 0), (side, 1)
    return (f"{side}_a", 1 if side.replace("_w", "_t") in factors else 0), (f"{side}_b", 1)
