"""Several LoRAs become one: a new file, under PEFT's names, with the ΔW that a method makes of theirs.

| method | works on | ΔW |
|---|---|---|
| `linear`, `cat` | pairs of any rank | Σ w·ΔW exactly; `linear` keeps no rank that a layer cannot have |
| `svd` | anything | the nearest to Σ w·ΔW of `rank` |
| `ties`, `dare_linear`, `dare_ties` | pairs of one rank | of ups and downs that were merged each for themselves |
| `ties_svd`, `dare_linear_svd`, `dare_ties_svd` | anything | the nearest of `rank` to the merged ΔWs |

The names and the mathematics are those of PEFT's `add_weighted_adapter`, peft/tuners/lora/model.py, but for `linear`:
PEFT adds ups and downs each for themselves, so that (B1 + B2)(A1 + A2) has products of one LoRA's up with another's
down; PEFT itself says to avoid it. Here a `linear` blend does what its sources do in one stack. TIES:
https://arxiv.org/abs/2306.01708. DARE: https://arxiv.org/abs/2311.03099.

Shapes: O outputs, X inputs (of a convolution times its kernel), r rank, R the ranks of all sources together.
"""

import hashlib
import json
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final, Literal, NamedTuple, get_args

import safetensors.torch
import torch
from peft.utils.merge_utils import dare_linear, dare_ties, task_arithmetic, ties

from lora_registry.base_model import Layer
from lora_registry.records import Component
from lora_registry.shapes import MAX_RANK
from service.engine.loras.changes import Change
from service.engine.loras.files import Adapter
from service.errors import InvalidBlend

Method = Literal[
    "linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_ties", "dare_linear_svd", "dare_ties_svd"
]
MajoritySign = Literal["total", "frequency"]
"""Whose sign wins where sources disagree: that of the larger sum, or that of the larger number."""
Source = tuple[Adapter, float]
Pristine = Callable[[Component, str], torch.Tensor]
"""W0 of a layer, on the CPU."""
Merge = Callable[[list[torch.Tensor], torch.Tensor], torch.Tensor]
"""One tensor of several of its shape, and of their weights."""

_RANDOM: Final = threading.Lock()
"""PEFT's DARE draws from the process's one CPU generator."""


@dataclass(frozen=True, eq=False)
class Blend:
    """A new LoRA. All its pairs have one rank, which is their alpha: every program gives them a scale of 1."""

    tensors: Mapping[str, torch.Tensor]
    """By name: `unet.<layer>.lora_A.weight`, `text_encoder.…`, `text_encoder_2.…`."""
    rank: int
    recipe: str
    """JSON: how it was made, of which digests with which weights."""

    def to_bytes(self) -> bytes:
        """The safetensors file. Equal blends are equal bytes."""
        return safetensors.torch.save(dict(self.tensors), {"darkroom.blend": self.recipe})


class _Pair(NamedTuple):
    """ΔW = up @ down, in float32."""

    up_Or: torch.Tensor
    down_rX: torch.Tensor


@dataclass(frozen=True, eq=False)
class _Site:
    """A layer that some sources change, and how."""

    component: Component
    name: str
    layer: Layer
    changes: tuple[tuple[Change, float], ...]

    @property
    def where(self) -> str:
        return f"{self.component}.{self.name}"

    @property
    def weights(self) -> list[float]:
        return [weight for _, weight in self.changes]

    @property
    def full_rank(self) -> int:
        return min(self.layer.outputs, math.prod(self.layer.shape[1:]))

    def pairs(self) -> list[_Pair]:
        """The pair of each source; nothing where one of them has none."""
        found = [change.pair for change, _ in self.changes]
        pairs = [_Pair(pair[0].float(), pair[1].float()) for pair in found if pair]
        return pairs if len(pairs) == len(found) else []

    def pairs_for(self, method: Method) -> list[_Pair]:
        """The pair of each source. Raises InvalidBlend where one has none."""
        if pairs := self.pairs():
            return pairs
        instead = "svd" if method in ("linear", "cat") else f"{method}_svd"
        raise InvalidBlend(
            f"'{method}' blends plain pairs, and a source has another form at '{self.where}'; use '{instead}'",
            field="method",
        )

    def deltas(self, pristine: Pristine | None) -> list[torch.Tensor]:
        """ΔW (O, X) of each source at weight 1."""
        return [self._delta(change, pristine).flatten(1) for change, _ in self.changes]

    def _delta(self, change: Change, pristine: Pristine | None) -> torch.Tensor:
        if not change.is_dora:
            return change.delta(torch.empty(self.layer.shape, device="meta"))
        if pristine is None:
            raise InvalidBlend(
                f"a source is a DoRA at '{self.where}': its change depends on the model's own weights, which are not "
                "at hand here; blend it where the model is loaded",
                field="sources",
            )
        return change.delta(pristine(self.component, self.name))


def blend(
    sources: Sequence[Source],
    layers: Mapping[Component, Mapping[str, Layer]],
    *,
    method: Method,
    rank: int | None = None,
    density: float | None = None,
    majority_sign: MajoritySign | None = None,
    seed: int = 0,
    pristine: Pristine | None = None,
    dtype: torch.dtype = torch.float16,
) -> Blend:
    """One LoRA of several, each with its signed weight. A layer that only some of them change is kept.

    `layers` are the model's (`BaseModel.layers`). `rank` is for the methods with `svd`, by default the highest of the
    sources. `density`, the share of numbers to keep, is for those with `ties` or `dare`, which need it;
    `majority_sign` for those with `ties`, by default `"total"`. `seed` decides what DARE drops. `pristine` is asked
    where a source is a DoRA. The CPU does it, layer by layer; for ΔWs that are no pairs, a whole UNet takes minutes.

    Raises:
        InvalidBlend: an argument does not go with the method, or a source does not.
    """
    merge = _merge_of(method, density, majority_sign)
    _check_rank(method, rank)
    sites = _sites(sources, layers)
    if method in ("linear", "cat"):
        make: Callable[[_Site], _Pair] = partial(_sum, method=method)
    elif method.endswith("svd"):
        highest = rank or _highest_rank(sites)
        make = partial(_nearest, method=method, merge=merge, rank=highest, seed=seed, pristine=pristine)
    else:
        make = partial(_merged_half_by_half, method=method, merge=merge, seed=seed)
    made = {site: _rounded(site, make(site), dtype) for site in sites}
    recipe = {
        "method": method,
        "rank": rank,
        "density": density,
        "majority_sign": majority_sign,
        "seed": seed,
        "sources": [[adapter.digest, weight] for adapter, weight in sources],
    }
    return _named(made, json.dumps(recipe))


def layer_seed(seed: int, component: Component, name: str) -> int:
    """What DARE's draws begin with at a layer: the same whatever other layers there are."""
    return int.from_bytes(hashlib.sha256(f"{seed} {component}.{name}".encode()).digest()[:7], "big")


def _merge_of(method: Method, density: float | None, majority_sign: MajoritySign | None) -> Merge:
    if method not in get_args(Method):
        raise InvalidBlend(
            f"there is no method '{method}', but {', '.join(get_args(Method))}", field="method"
        )
    kind = method.removesuffix("_svd")
    if majority_sign is not None and not kind.endswith("ties"):
        raise InvalidBlend(f"'{method}' elects no signs; leave majority_sign out", field="majority_sign")
    if majority_sign not in (None, *get_args(MajoritySign)):
        raise InvalidBlend(
            f"majority_sign is total or frequency, not '{majority_sign}'", field="majority_sign"
        )
    if kind not in ("ties", "dare_linear", "dare_ties"):
        if density is not None:
            raise InvalidBlend(f"'{method}' drops nothing; leave density out", field="density")
        return task_arithmetic
    if density is None:
        raise InvalidBlend(f"'{method}' needs a density, the share of numbers to keep", field="density")
    if not 0 < density <= 1:
        raise InvalidBlend(f"a density of {density:g} is no share: above 0, up to 1", field="density")
    if kind == "dare_linear":
        return partial(dare_linear, density=density)
    signs = majority_sign or "total"
    return partial(ties if kind == "ties" else dare_ties, density=density, majority_sign_method=signs)


def _check_rank(method: Method, rank: int | None) -> None:
    if rank is None:
        return
    if not method.endswith("svd"):
        raise InvalidBlend(
            f"the sources decide the rank of '{method}'; leave rank out, or use 'svd'", field="rank"
        )
    if not 1 <= rank <= MAX_RANK:
        raise InvalidBlend(f"a LoRA has a rank from 1 to {MAX_RANK}, not {rank}", field="rank")


def _sites(sources: Sequence[Source], layers: Mapping[Component, Mapping[str, Layer]]) -> list[_Site]:
    """What is changed, in the order of the model's layers."""
    if not sources:
        raise InvalidBlend("there is nothing to blend", field="sources")
    for adapter, weight in sources:
        if weight == 0 or not math.isfinite(weight):
            raise InvalidBlend(
                f"{adapter.digest} has the weight {weight:g}, with which it cannot take part", field="sources"
            )
        if adapter.embeddings:
            raise InvalidBlend(
                f"{adapter.digest} has embeddings, which no method can blend; name it beside the blend instead",
                field="sources",
            )
        for component, changes in adapter.changes.items():
            if unknown := changes.keys() - layers.get(component, {}).keys():
                raise InvalidBlend(
                    f"{adapter.digest} changes {component}.{min(unknown)}, which this model does not have",
                    field="sources",
                )
    found = []
    for component, named in layers.items():
        for name, layer in named.items():
            touching = tuple(
                (change, weight)
                for adapter, weight in sources
                if (change := adapter.changes.get(component, {}).get(name))
            )
            if touching:
                found.append(_Site(component, name, layer, touching))
    return found


def _highest_rank(sites: Sequence[_Site]) -> int:
    ranks = [len(pair[1]) for site in sites for change, _ in site.changes if (pair := change.pair)]
    if not ranks:
        raise InvalidBlend("no source has a rank to go by; say which rank the blend is to have", field="rank")
    return max(ranks)


def _sum(site: _Site, *, method: Method) -> _Pair:
    whole = _side_by_side(site.pairs_for(method), site.weights)
    if method == "linear" and len(whole.down_rX) > site.full_rank:
        whole = _nearest_to_product(whole, site.full_rank)
    if len(whole.down_rX) > MAX_RANK:
        raise InvalidBlend(
            f"'{method}' would have rank {len(whole.down_rX)}, and {MAX_RANK} is the most; use 'svd'",
            field="method",
        )
    return whole


def _side_by_side(pairs: Sequence[_Pair], weights: Sequence[float]) -> _Pair:
    """(O, R) and (R, X): their product is the weighted sum of the products."""
    ups = [pair.up_Or * weight for pair, weight in zip(pairs, weights, strict=True)]
    return _Pair(torch.cat(ups, dim=1), torch.cat([pair.down_rX for pair in pairs]))


def _nearest(
    site: _Site, *, method: Method, merge: Merge, rank: int, seed: int, pristine: Pristine | None
) -> _Pair:
    if method == "svd" and (pairs := site.pairs()):
        return _nearest_to_product(_side_by_side(pairs, site.weights), rank)
    deltas_OX = site.deltas(pristine)
    with _drawing_from(layer_seed(seed, site.component, site.name)):
        merged_OX = merge(deltas_OX, torch.tensor(site.weights))
    return _nearest_to_matrix(merged_OX, rank)


def _nearest_to_product(pair: _Pair, rank: int) -> _Pair:
    """The nearest to up @ down of that rank, without ever making the (O, X) matrix.

    With up = Q1·R1 and downᵀ = Q2·R2 the singular values are those of the small R1·R2ᵀ.
    """
    basis_1, factor_1 = torch.linalg.qr(pair.up_Or)
    basis_2, factor_2 = torch.linalg.qr(pair.down_rX.T)
    inner = _nearest_to_matrix(factor_1 @ factor_2.T, rank)
    return _Pair(basis_1 @ inner.up_Or, inner.down_rX @ basis_2.T)


def _nearest_to_matrix(matrix: torch.Tensor, rank: int) -> _Pair:
    """The nearest of that rank. A singular value's root goes to either side, so that small ones survive float16."""
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    roots = values[:rank].sqrt()
    return _Pair(left[:, :rank] * roots, roots[:, None] * right[:rank])


def _merged_half_by_half(site: _Site, *, method: Method, merge: Merge, seed: int) -> _Pair:
    """Downs with downs, ups with ups, as PEFT does; the root of a weight is on either side, its sign on the downs."""
    pairs = site.pairs_for(method)
    ranks = {len(pair.down_rX) for pair in pairs}
    if len(ranks) > 1:
        raise InvalidBlend(
            f"'{method}' needs pairs of one rank, and at '{site.where}' they have "
            f"{' and '.join(str(rank) for rank in sorted(ranks))}; use '{method}_svd'",
            field="method",
        )
    roots = torch.tensor(site.weights).abs().sqrt()
    signs = torch.tensor(site.weights).sign()
    with _drawing_from(layer_seed(seed, site.component, site.name)):
        down = merge([pair.down_rX for pair in pairs], roots * signs)
        return _Pair(merge([pair.up_Or for pair in pairs], roots), down)


@contextmanager
def _drawing_from(seed: int) -> Iterator[None]:
    """The CPU's generator begins with this seed inside the block, and goes on afterwards as if it had not been."""
    with _RANDOM, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reach the GPU's, too
        yield


def _rounded(site: _Site, pair: _Pair, dtype: torch.dtype) -> _Pair:
    rounded = _Pair(pair.up_Or.to(dtype), pair.down_rX.to(dtype))
    if not all(torch.isfinite(half).all() for half in rounded):
        raise InvalidBlend(
            f"the blend has a number at '{site.where}' that {dtype} cannot hold; use smaller weights",
            field="sources",
        )
    return rounded


def _named(made: Mapping[_Site, _Pair], recipe: str) -> Blend:
    """All pairs filled up with zeros to the highest rank among them: then no reader can take a scale other than 1."""
    rank = max(len(pair.down_rX) for pair in made.values())
    tensors = {}
    for site, pair in made.items():
        up = pair.up_Or.new_zeros(site.layer.outputs, rank)
        down = pair.down_rX.new_zeros(rank, pair.down_rX.shape[1])
        up[:, : pair.up_Or.shape[1]] = pair.up_Or
        down[: len(pair.down_rX)] = pair.down_rX
        ones = (1, 1) if site.layer.kernel else ()
        tensors[f"{site.where}.lora_A.weight"] = down.view(rank, *site.layer.shape[1:])
        tensors[f"{site.where}.lora_B.weight"] = up.view(site.layer.outputs, rank, *ones)
    return Blend(tensors, rank, recipe)
