"""What steers denoising: prompt embeddings, pooled embeddings and time ids, for both guidance branches.

Shapes: B rows (here 1) · k windows of 77 tokens · D1, D2 the widths of the two text encoders · P the projection.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from compel import Compel, ReturnedEmbeddingsType

from darkroom.types import PromptTokens, TokenCount, TokenReport
from lora_registry.records import Component
from service.engine.loras.stacks import EMPTY, NOTHING, TextInForce
from service.engine.loras.tokens import TokenizerWithTokens, embedded
from service.engine.models import Models, UNetName
from service.engine.orders import HandOver, Order, Size
from service.engine.prompts import ParsedPrompt, parse
from service.errors import InvalidPrompt

MAX_WINDOWS = 16
"""Windows of 77 tokens that a prompt may fill; every one makes each step of the UNet dearer."""
MAX_ENCODER_PASSES = 128
"""Windows that a text encoder may see for one prompt: compel encodes all of them again for every lowered weight."""


@dataclass(frozen=True, eq=False)
class Branch:
    """One side of classifier-free guidance, as a UNet takes it."""

    prompt_embeds: torch.Tensor
    """(1, 77k, D): D1 + D2 for the base, D2 for the refiner."""
    pooled_prompt_embeds: torch.Tensor
    """(1, P), of text encoder 2."""
    time_ids: torch.Tensor
    """(1, 6) for the base; (1, 5) for a refiner that takes an aesthetic score."""


@dataclass(frozen=True)
class Conditioning:
    """Both branches of an order for each UNet that works on it; `uncond` is absent without guidance."""

    cond: dict[UNetName, Branch]
    uncond: dict[UNetName, Branch] | None
    tokens: TokenReport


@dataclass(frozen=True, eq=False)
class _Encoded:
    """One prompt through both text encoders."""

    hidden_1: torch.Tensor
    """(1, 77k, D1), penultimate hidden states."""
    hidden_2: torch.Tensor
    """(1, 77k, D2)."""
    pooled: torch.Tensor
    """(1, P), from the plain text: compel would read its own markup into it."""
    tokens: PromptTokens

    @property
    def size_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.hidden_1, self.hidden_2, self.pooled))


class Conditioner:
    """Encodes prompts with compel and builds time ids; belongs to the engine's thread (tokenizers are not thread-safe).

    An unweighted prompt gives exactly what diffusers' `encode_prompt` gives. Encodings are kept, least recently used
    first out, up to `cache_bytes`.

    LoRAs of the text encoders and embeddings are in force only while a prompt of the base is encoded; the refiner
    reads every prompt as the pristine encoder does.
    """

    def __init__(self, models: Models, *, cache_bytes: int = 256 << 20) -> None:
        self._models = models
        self._pristine = _compels(models, models.tokenizer, models.tokenizer_2)
        self._cache: OrderedDict[tuple[ParsedPrompt, TextInForce], _Encoded] = OrderedDict()
        self._cache_bytes = cache_bytes
        self._empty = parse("")

    @torch.inference_mode()
    def conditioning(
        self, order: Order, cond_text: TextInForce = NOTHING, uncond_text: TextInForce = NOTHING
    ) -> Conditioning:
        """Everything that the rows of an order are steered by, with what is in force for its two prompts.

        Raises:
            InvalidPrompt: a prompt has more tokens, or more lowered weights, than may be encoded.
            SwapFailed, OutOfDeviceMemory: LoRAs of the text encoders could not be put in force.
        """
        zeroed = self._models.force_zeros_for_empty_prompt if order.negative_prompt is None else frozenset()
        cond: dict[UNetName, Branch] = {}
        uncond: dict[UNetName, Branch] = {}
        seen: dict[UNetName, tuple[PromptTokens, PromptTokens | None]] = {}
        for name in self._models.unets:
            if name == "refiner" and order.hand_over is None:
                continue
            bent = name == "base"
            times, negative_times = self._time_ids(order, name)
            prompt = self._encode(order.prompt, cond_text if bent else NOTHING, "prompt")
            embeds = self._hidden(prompt, name)
            if not order.guided:
                cond[name], seen[name] = Branch(embeds, prompt.pooled, times), (prompt.tokens, None)
                continue
            in_force = uncond_text if bent else NOTHING
            negative = self._encode(order.negative_prompt or self._empty, in_force, "negative_prompt")
            negative_embeds = self._hidden(negative, name)
            length = max(embeds.shape[1], negative_embeds.shape[1])
            embeds = self._filled(embeds, length, name, cond_text if bent else NOTHING)
            cond[name], seen[name] = Branch(embeds, prompt.pooled, times), (prompt.tokens, negative.tokens)
            if name in zeroed:
                uncond[name] = Branch(
                    torch.zeros_like(embeds), torch.zeros_like(prompt.pooled), negative_times
                )
            else:
                negative_embeds = self._filled(negative_embeds, length, name, in_force)
                uncond[name] = Branch(negative_embeds, negative.pooled, negative_times)
        tokens, negative_tokens = seen["base"]
        return Conditioning(
            cond,
            uncond if order.guided else None,
            TokenReport(
                prompt=tokens, negative_prompt=None if order.negative_prompt is None else negative_tokens
            ),
        )

    def question(self, order: Order, prompt: ParsedPrompt) -> Conditioning:
        """What a picture of that size is scored by: the base told `prompt`, and told nothing, and nothing else of the
        order, so that all arms have one judge.

        Raises:
            InvalidPrompt: as `conditioning`.
        """
        size = order.height, order.width
        return self.conditioning(
            replace(
                order,
                prompt=prompt,
                negative_prompt=None,
                guidance_scale=2.0,
                hand_over=None,
                original_size=size,
                crops_coords_top_left=(0, 0),
                target_size=size,
                negative_original_size=None,
                negative_target_size=None,
                loras=(),
            )
        )

    def _encode(
        self, prompt: ParsedPrompt, in_force: TextInForce = NOTHING, field: str = "prompt"
    ) -> _Encoded:
        key = prompt, in_force
        if (known := self._cache.get(key)) is not None:
            self._cache.move_to_end(key)
            return known
        with self._encoders(in_force) as (one, two):
            counts = [_allowed_tokens(encoder, prompt, field) for encoder in (one, two)]
            hidden_1, count_1 = _weighted(one, prompt, counts[0])
            hidden_2, count_2 = _weighted(two, prompt, counts[1])
            length = max(hidden_1.shape[1], hidden_2.shape[1])
            encoded = _Encoded(
                _padded(one, hidden_1, length),
                _padded(two, hidden_2, length),
                two.conditioning_provider.get_pooled_embeddings([prompt.plain], device=self._models.device),
                PromptTokens(text_encoder=count_1, text_encoder_2=count_2),
            )
        self._cache[prompt, in_force.detached()] = encoded
        while len(self._cache) > 1 and sum(e.size_bytes for e in self._cache.values()) > self._cache_bytes:
            self._cache.popitem(last=False)
        return encoded

    @contextmanager
    def _encoders(self, in_force: TextInForce) -> Iterator[tuple[Compel, Compel]]:
        """Both encoders as compel takes them, bent inside the block as `in_force` says."""
        models = self._models
        if not in_force:
            # As a rule they are so already; where they could not be put back, nobody may be encoded under them.
            models.weights["text_encoder"].apply(EMPTY)
            models.weights["text_encoder_2"].apply(EMPTY)
            yield self._pristine
            return
        with ExitStack() as undo:
            undo.enter_context(models.weights["text_encoder"].applied(in_force.text_encoder))
            undo.enter_context(models.weights["text_encoder_2"].applied(in_force.text_encoder_2))
            tokenizers = []
            parts: tuple[tuple[Component, Any, Any], ...] = (
                ("text_encoder", models.tokenizer, models.text_encoder),
                ("text_encoder_2", models.tokenizer_2, models.text_encoder_2),
            )
            for component, tokenizer, encoder in parts:
                vectors = in_force.vectors_for(component)
                if vectors:
                    undo.enter_context(embedded(encoder, list(vectors.values())))
                    tokenizer = TokenizerWithTokens(tokenizer, vectors)
                tokenizers.append(tokenizer)
            # Made anew: compel keeps the encoding of the empty prompt, which these weights change.
            yield _compels(models, *tokenizers)

    def _hidden(self, encoded: _Encoded, name: UNetName) -> torch.Tensor:
        if name == "refiner":
            return encoded.hidden_2
        return torch.cat([encoded.hidden_1, encoded.hidden_2], dim=-1)

    def _filled(
        self, embeds: torch.Tensor, length: int, name: UNetName, in_force: TextInForce
    ) -> torch.Tensor:
        """Filled up with windows of the empty prompt."""
        if embeds.shape[1] == length:
            return embeds
        return _filled(embeds, self._hidden(self._encode(self._empty, in_force), name), length)

    def _time_ids(self, order: Order, name: UNetName) -> tuple[torch.Tensor, torch.Tensor]:
        if name == "base":
            ids, negative_ids = base_time_ids(order)
        else:
            assert order.hand_over is not None
            score = self._models.requires_aesthetics_score
            ids, negative_ids = refiner_time_ids(order, order.hand_over if score else None)
        dtype, device = self._models.dtype, self._models.device
        both = torch.tensor([ids, negative_ids], dtype=dtype, device=device)
        return both[:1], both[1:]


def base_time_ids(order: Order) -> tuple[list[float], list[float]]:
    """Micro-conditioning of the base, (cond, uncond), by the rule of `StableDiffusionXLPipeline`."""
    ids = _flat(order.original_size, order.crops_coords_top_left, order.target_size)
    if order.negative_original_size is None or order.negative_target_size is None:
        return ids, ids
    return ids, _flat(
        order.negative_original_size, order.negative_crops_coords_top_left, order.negative_target_size
    )


def refiner_time_ids(order: Order, scores: HandOver | None) -> tuple[list[float], list[float]]:
    """Micro-conditioning of the refiner, (cond, uncond), by the rule of `StableDiffusionXLImg2ImgPipeline`."""
    negative_original = order.negative_original_size or order.original_size
    if scores is None:
        negative_target = order.negative_target_size or order.target_size
        return (
            _flat(order.original_size, order.crops_coords_top_left, order.target_size),
            _flat(negative_original, order.crops_coords_top_left, negative_target),
        )
    return (
        [*_flat(order.original_size, order.crops_coords_top_left), scores.aesthetic_score],
        [
            *_flat(negative_original, order.negative_crops_coords_top_left),
            scores.negative_aesthetic_score,
        ],
    )


def _flat(*sizes: Size) -> list[float]:
    return [float(edge) for size in sizes for edge in size]


def _compels(models: Models, tokenizer: object, tokenizer_2: object) -> tuple[Compel, Compel]:
    return (
        _compel(tokenizer, models.text_encoder, models.device),
        _compel(tokenizer_2, models.text_encoder_2, models.device),
    )


def _compel(tokenizer: object, text_encoder: object, device: torch.device) -> Compel:
    return Compel(
        tokenizer=tokenizer,
        text_encoder=text_encoder,
        returned_embeddings_type=ReturnedEmbeddingsType.PENULTIMATE_HIDDEN_STATES_NON_NORMALIZED,
        truncate_long_prompts=False,
        device=device,
    )


def _weighted(encoder: Compel, prompt: ParsedPrompt, tokens: int) -> tuple[torch.Tensor, TokenCount]:
    """compel's embedding mathematics on fragments that we parsed ourselves: (1, 77k, D) and what was seen."""
    provider = encoder.conditioning_provider
    hidden, _ = provider.get_embeddings_for_weighted_prompt_fragments(
        text_batch=[[fragment.text for fragment in prompt.fragments]],
        fragment_weights_batch=[[fragment.weight for fragment in prompt.fragments]],
        should_return_tokens=True,
        device=encoder.device,
    )
    return hidden, TokenCount(tokens=tokens, chunks=hidden.shape[1] // provider.max_token_count)


def _allowed_tokens(encoder: Compel, prompt: ParsedPrompt, field: str) -> int:
    """How many tokens the prompt has for this encoder.

    Raises:
        InvalidPrompt: more than may be encoded, or with too many lowered weights.
    """
    provider = encoder.conditioning_provider
    texts = [fragment.text for fragment in prompt.fragments]
    tokens = sum(len(part) for part in provider.get_token_ids(texts, include_start_and_end_markers=False))
    per_window = provider.max_token_count - 2  # start and end
    if tokens > MAX_WINDOWS * per_window:
        raise InvalidPrompt(
            f"the prompt has {tokens} tokens and {MAX_WINDOWS * per_window} are allowed; shorten it",
            position=0,
            field=field,
        )
    lowered = sum(fragment.weight < 1 for fragment in prompt.fragments)
    if (1 + lowered) * math.ceil(tokens / per_window) > MAX_ENCODER_PASSES:
        raise InvalidPrompt(
            f"{lowered} lowered weights are too many for a prompt of {tokens} tokens; group some, or shorten it",
            position=0,
            field=field,
        )
    return tokens


def _padded(encoder: Compel, hidden: torch.Tensor, length: int) -> torch.Tensor:
    return _filled(hidden, encoder.conditioning_provider.empty_z, length)


def _filled(hidden: torch.Tensor, empty: torch.Tensor, length: int) -> torch.Tensor:
    windows = (length - hidden.shape[1]) // empty.shape[1]
    return torch.cat([hidden, *[empty] * windows], dim=1) if windows else hidden
