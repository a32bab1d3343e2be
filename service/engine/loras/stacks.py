"""Which LoRAs are in force where: a stack for each component, guidance branch and step of an order.

Nothing here touches a weight. `done` is the share of an image's steps that are behind it, base and refiner together.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from lora_registry.records import Component
from service.engine.loras.arranged import Arranged, Vectors
from service.engine.orders import LoraOrder

Side = Literal["cond", "uncond"]
Blocks = tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Part:
    """One LoRA of a stack. Parts are equal where they have the same bytes, weight and blocks."""

    digest: str
    weight: float
    blocks: Blocks
    adapter: Arranged = field(compare=False, repr=False)


Stack = tuple[Part, ...]
"""The ordered LoRAs that are in force together for one component."""
EMPTY: Stack = ()

_NO_ADAPTER = Arranged("", {}, {})


@dataclass(frozen=True)
class TextInForce:
    """What bends the text encoders while one prompt is encoded. Equal where the encodings would be."""

    text_encoder: Stack = EMPTY
    text_encoder_2: Stack = EMPTY
    tokens: tuple[tuple[str, str], ...] = ()
    """The token and the digest of each embedding."""
    vectors: Mapping[str, Vectors] = field(default_factory=dict, compare=False, repr=False)
    """By token."""

    def __bool__(self) -> bool:
        return bool(self.text_encoder or self.text_encoder_2 or self.tokens)

    def vectors_for(self, component: Component) -> dict[str, torch.Tensor]:
        """(vectors, width) of each token that has some for this encoder; the other tokens stay plain text to it."""
        return {token: vectors[component] for token, vectors in self.vectors.items() if component in vectors}

    def detached(self) -> "TextInForce":
        """An equal one, for a cache, that keeps no adapter in memory."""
        return TextInForce(detached(self.text_encoder), detached(self.text_encoder_2), self.tokens)


NOTHING = TextInForce()


class Stacks:
    """The stacks of one order, for as long as the order lives; it keeps the adapters that they are made of."""

    def __init__(
        self, loras: Sequence[LoraOrder] = (), adapters: Mapping[str, Arranged] | None = None
    ) -> None:
        self._loras = tuple(loras)
        self._adapters = adapters or {}
        named = [(token, lora) for lora in self._loras for token in self._tokens_of(lora)]
        self._tokens = tuple((token, lora.adapter) for token, lora in named)
        self._vectors = {token: self._vectors_of(token, lora) for token, lora in named}
        self._known: dict[tuple[Component, Side, tuple[bool, ...]], Stack] = {}

    def unet(self, side: Side, done: float) -> Stack:
        """The stack of the base UNet for one branch of one step."""
        return self._stack("unet", side, done)

    def text(self, side: Side, done: float) -> TextInForce:
        """What is in force where the prompt of that branch is encoded, for the step at `done`."""
        if not self._loras:
            return NOTHING
        return TextInForce(
            self._stack("text_encoder", side, done),
            self._stack("text_encoder_2", side, done),
            self._tokens,
            self._vectors,
        )

    def texts(self, steps: int) -> Iterable[tuple[TextInForce, TextInForce]]:
        """Every (cond, uncond) that some step of `steps` needs, without doubles."""
        return dict.fromkeys(
            (self.text("cond", step / steps), self.text("uncond", step / steps)) for step in range(steps)
        )

    def _stack(self, component: Component, side: Side, done: float) -> Stack:
        if not self._loras:
            return EMPTY
        in_force = tuple(counts(lora, side, done) for lora in self._loras)
        key = (component, side, in_force)
        if key not in self._known:
            chosen = [lora for lora, is_in in zip(self._loras, in_force, strict=True) if is_in]
            self._known[key] = tuple(part for lora in chosen if (part := self._part(lora, component)))
        return self._known[key]

    def _part(self, lora: LoraOrder, component: Component) -> Part | None:
        adapter = self._adapters[lora.adapter]
        weight = weight_on(lora, component)
        if weight == 0 or component not in adapter.components:
            return None
        blocks = lora.blocks if component == "unet" else ()
        return Part(lora.adapter, weight, blocks, adapter)

    def _tokens_of(self, lora: LoraOrder) -> list[str]:
        """A file that names no token has the LoRA's own name for one."""
        return [token or lora.name for token in self._adapters[lora.adapter].embeddings]

    def _vectors_of(self, token: str, lora: LoraOrder) -> Vectors:
        embeddings = self._adapters[lora.adapter].embeddings
        return embeddings[token] if token in embeddings else embeddings[""]


NO_LORAS = Stacks()


def counts(lora: LoraOrder, side: Side, done: float) -> bool:
    """Whether it is in force on that branch of the step at `done`."""
    return lora.scope in ("both", side) and lora.start <= done < lora.end


def weight_on(lora: LoraOrder, component: Component) -> float:
    """Its weight on one component."""
    return lora.weight * dict(lora.components).get(component, 1.0)


def detached(stack: Stack) -> Stack:
    """An equal stack that keeps no adapter in memory."""
    return tuple(replace(part, adapter=_NO_ADAPTER) for part in stack)


def block_factor(blocks: Blocks, layer: str) -> float:
    """The factor of the longest block name that the layer's name begins with; 1 where none does."""
    fitting = [
        (len(name), factor) for name, factor in blocks if layer == name or layer.startswith(f"{name}.")
    ]
    return max(fitting)[1] if fitting else 1.0
