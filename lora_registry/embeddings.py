"""Textual-inversion embeddings in the four shapes that SDXL's come in.

`{clip_l, clip_g}` (A1111, ComfyUI) · `text_encoders_0/1` (cog-sdxl) · `bundle_emb.<token>.clip_l/clip_g` (beside LoRA
tensors) · `learned_embeds(_2).safetensors`, where the one tensor's name is the token and its width tells the encoder.
"""

import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Final

from lora_registry.base_model import BaseModel
from lora_registry.findings import Findings
from lora_registry.header import Tensor
from lora_registry.metadata import MAX_WORD_CHARACTERS
from lora_registry.modules import FLOATS
from lora_registry.records import Component, Embedding

MAX_VECTORS: Final = 75
"""More do not fit a prompt of 77 tokens."""
MAX_LEARNED: Final = 64

_FIXED: Final[Mapping[str, tuple[Component, str]]] = {
    "clip_l": ("text_encoder", "clip-l-g"),
    "clip_g": ("text_encoder_2", "clip-l-g"),
    "text_encoders_0": ("text_encoder", "text-encoders"),
    "text_encoders_1": ("text_encoder_2", "text-encoders"),
}
_BUNDLED: Final = re.compile(r"bundle_emb\.([^\s/\\]{1,100})\.(clip_l|clip_g)")
_TOKEN: Final = re.compile(r"[^\x00-\x20\x7f./\\]+|<[^\x00-\x20\x7f<>/\\]+>")


def is_embedding_key(key: str) -> bool:
    """Whether a tensor of this name is an embedding whatever else is in the file."""
    return key in _FIXED or bool(_BUNDLED.fullmatch(key))


def embeddings_of(
    keys: list[str], tensors: Mapping[str, Tensor], base: BaseModel, findings: Findings, warnings: Findings
) -> tuple[tuple[Embedding, ...], str]:
    """The embeddings under these names, and the name of their format."""
    found: list[Embedding] = []
    formats: set[str] = set()
    for key in keys:
        if key in _FIXED:
            (component, format_), token = _FIXED[key], ""
        elif match := _BUNDLED.fullmatch(key):
            component, format_, token = _FIXED[match[2]][0], "bundle-emb", match[1]
        else:
            by_width = _component_by_width(tensors[key], base)
            if by_width is None:
                findings.add(
                    "shape.mismatch", f"an embedding has the shape {list(tensors[key].shape)}", [key]
                )
                continue
            component, format_, token = by_width, "learned-embeds", key
        formats.add(format_)
        if _fits(key, tensors[key], component, base, findings):
            vectors = tensors[key].shape[0] if len(tensors[key].shape) == 2 else 1
            found.append(Embedding(token, component, key, vectors))
    if len(formats) > 1:
        findings.add(
            "format.mixed", f"embeddings in several forms at once ({', '.join(sorted(formats))})", keys
        )
    _check_pairs(found, base, findings, warnings)
    return tuple(found), "+".join(sorted(formats))


def looks_learned(tensors: Mapping[str, Tensor], base: BaseModel) -> bool:
    """Whether a file without any other sign is a `learned_embeds`: few tokens, all as wide as a text encoder."""
    return len(tensors) <= MAX_LEARNED and all(
        _TOKEN.fullmatch(key) and len(key) <= MAX_WORD_CHARACTERS and _component_by_width(tensor, base)
        for key, tensor in tensors.items()
    )


def _component_by_width(tensor: Tensor, base: BaseModel) -> Component | None:
    if not 1 <= len(tensor.shape) <= 2:
        return None
    fitting = [component for component, width in base.token_widths.items() if tensor.shape[-1] == width]
    return fitting[0] if len(fitting) == 1 else None


def _fits(key: str, tensor: Tensor, component: Component, base: BaseModel, findings: Findings) -> bool:
    width = base.token_widths.get(component)
    if not 1 <= len(tensor.shape) <= 2 or tensor.shape[-1] != width:
        message = (
            f"an embedding for {component} has the shape {list(tensor.shape)}; {base.name} needs (n, {width})"
        )
        findings.add("shape.mismatch", message, [key])
    elif len(tensor.shape) == 2 and tensor.shape[0] > MAX_VECTORS:
        findings.add(
            "embedding.too_long",
            f"an embedding has {tensor.shape[0]} vectors; {MAX_VECTORS} fit a prompt",
            [key],
        )
    elif tensor.dtype not in FLOATS:
        findings.add("dtype.unsupported", f"a tensor is {tensor.dtype}; F16, BF16 and F32 are read", [key])
    else:
        return True
    return False


def _check_pairs(found: list[Embedding], base: BaseModel, findings: Findings, warnings: Findings) -> None:
    """Both encoders need the same token with as many vectors; only `learned_embeds` come as two files."""
    by_token: dict[str, list[Embedding]] = defaultdict(list)
    for embedding in found:
        by_token[embedding.token].append(embedding)
    for token, parts in by_token.items():
        keys = [part.key for part in parts]
        if len(parts) < len(base.token_widths):
            if parts[0].token and parts[0].key == token:
                warnings.add(
                    "embedding.one_encoder",
                    f"it steers {parts[0].component} only; the other keeps the plain text",
                    keys,
                )
            else:
                findings.add(
                    "pair.half", "an embedding is there for one text encoder and not for the other", keys
                )
        elif len({part.vectors for part in parts}) > 1:
            findings.add(
                "embedding.lengths",
                "an embedding has more vectors for one text encoder than for the other",
                keys,
            )
