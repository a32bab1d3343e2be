"""Textual inversion: learned vectors that stand for a token, there while one prompt is encoded and gone after it.

Neither the tokenizer nor the embedding table is changed. A token's vectors get ids below zero: SDXL's second encoder
finds the end of a prompt as its highest id, and ids above the vocabulary would be taken for it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from service.engine.loras.words import pattern

Encoder: TypeAlias = "CLIPTextModel | CLIPTextModelWithProjection"


class TokenizerWithTokens:
    """A CLIP tokenizer that knows some more tokens, each of as many ids as it has vectors: -1, -2, … in order.

    It is what compel asks of a tokenizer, and no more.
    """

    def __init__(self, tokenizer: CLIPTokenizer, vectors: Mapping[str, torch.Tensor]) -> None:
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        following = -1
        for token, rows in vectors.items():
            self._ids[token.casefold()] = list(range(following, following - len(rows), -1))
            following -= len(rows)
        self._pattern = pattern(vectors)
        self.bos_token_id = tokenizer.bos_token_id
        self.eos_token_id = tokenizer.eos_token_id
        self.pad_token_id = tokenizer.pad_token_id
        self.model_max_length = tokenizer.model_max_length

    def __call__(
        self, texts: Sequence[str], *, truncation: bool, **_options: Any
    ) -> dict[str, list[list[int]]]:
        """Ids of each text with start and end; `truncation` keeps one window of them."""
        room = self.model_max_length - 2
        found = [self._ids_of(text) for text in texts]
        return {
            "input_ids": [
                [self.bos_token_id, *(ids[:room] if truncation else ids), self.eos_token_id] for ids in found
            ]
        }

    def convert_ids_to_tokens(self, ids: Sequence[int]) -> list[str]:
        """Words of the vocabulary; a learned token ends a word."""
        return [self._tokenizer.convert_ids_to_tokens(number) if number >= 0 else "</w>" for number in ids]

    def _ids_of(self, text: str) -> list[int]:
        ids: list[int] = []
        for place, piece in enumerate(self._pattern.split(text)):
            if place % 2:
                ids += self._ids[piece.casefold()]
            elif piece.strip():
                ids += self._tokenizer(piece, add_special_tokens=False)["input_ids"]
        return ids


@contextmanager
def embedded(encoder: Encoder, vectors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Inside the block the encoder reads the ids -1, -2, … as these vectors, (n, width) each, one after another."""
    table = encoder.get_input_embeddings()
    encoder.set_input_embeddings(_Embedding(table, torch.cat(list(vectors))))
    try:
        yield
    finally:
        encoder.set_input_embeddings(table)


class _Embedding(nn.Module):
    def __init__(self, table: nn.Module, vectors: torch.Tensor) -> None:
        super().__init__()
        self._table, self._vectors = table, vectors

    @property
    def weight(self) -> torch.Tensor:
        """As of the table: transformers looks at its device and dtype."""
        weight = self._table.weight
        assert isinstance(weight, torch.Tensor)
        return weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        known = self._table(ids.clamp(min=0))
        vectors = self._vectors.to(known)
        learned = vectors[(-1 - ids).clamp(0, len(vectors) - 1)]
        return torch.where((ids < 0).unsqueeze(-1), learned, known)
