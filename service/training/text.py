"""Captions as the UNet takes them: the embeddings that diffusers' `encode_prompt` gives, with gradients where asked.

Learned tokens are those of the engine (`service.engine.loras.tokens`): what is trained is read in the same way when
it is served. Shapes: B captions, D1 and D2 the widths of the two encoders, P the projection.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch

from lora_registry.records import Component
from service.engine.loras.tokens import TokenizerWithTokens, embedded
from service.engine.models import Models

Vectors = Mapping[Component, torch.Tensor]


class Captions:
    """Encodes captions with the models' encoders as they are now, and with the learned vectors of `token`."""

    def __init__(self, models: Models, token: str = "", vectors: Vectors | None = None) -> None:
        self._models, self._token, self._vectors = models, token, vectors or {}

    def encode(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Embeddings (B, 77, D1 + D2) and pooled ones (B, P). Longer captions are cut, as in all trainers."""
        models = self._models
        hidden_1, _ = self._through("text_encoder", models.tokenizer, models.text_encoder, captions)
        hidden_2, pooled = self._through(
            "text_encoder_2", models.tokenizer_2, models.text_encoder_2, captions
        )
        assert pooled is not None
        return torch.cat([hidden_1, hidden_2], dim=-1), pooled

    def _through(
        self, component: Component, tokenizer: object, encoder: torch.nn.Module, captions: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        with ExitStack() as undo:
            vectors = self._vectors.get(component)
            known = {self._token: vectors} if vectors is not None else {}
            if vectors is not None:
                undo.enter_context(embedded(encoder, [vectors]))
            reader = TokenizerWithTokens(tokenizer, known)
            length = reader.model_max_length
            ids = [
                row + [reader.pad_token_id] * (length - len(row))
                for row in reader(captions, truncation=True)["input_ids"]
            ]
            device = next(encoder.parameters()).device
            output = encoder(torch.tensor(ids, device=device), output_hidden_states=True)
            return output.hidden_states[-2], getattr(output, "text_embeds", None)


class FrozenCaptions:
    """Encodings of captions that nothing of the training changes: each caption once, in the host's memory."""

    def __init__(self, captions: Captions) -> None:
        self._captions = captions
        self._known: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}

    @torch.no_grad()
    def encode(self, captions: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """As `Captions.encode`."""
        for caption in dict.fromkeys(captions):
            if caption not in self._known:
                embeds, pooled = self._captions.encode([caption])
                self._known[caption] = embeds[0].cpu(), pooled[0].cpu()
        found = [self._known[caption] for caption in captions]
        return torch.stack([embeds for embeds, _ in found]), torch.stack([pooled for _, pooled in found])
