"""SDXL in its true sizes with random weights: what it costs does not depend on what it has learnt.

The sizes are those that Stability AI published in the config.json files of SDXL base 1.0 and refiner 1.0. Tokenizers
are the pocket model's: their vocabulary is smaller, the embedding tables are not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from service import pocket
from service.engine.models import Models, bendable


@dataclass(frozen=True)
class Sizes:
    """Configs of all parts, by the names that diffusers and transformers have for them."""

    name: str
    text_encoder: dict[str, Any]
    text_encoder_2: dict[str, Any]
    unet: dict[str, Any]
    refiner_unet: dict[str, Any]
    vae: dict[str, Any]


_DOWN, _CROSS_DOWN = "DownBlock2D", "CrossAttnDownBlock2D"
_UP, _CROSS_UP = "UpBlock2D", "CrossAttnUpBlock2D"
_EVERY_UNET = {"addition_embed_type": "text_time", "use_linear_projection": True}
_EVERY_VAE = {"latent_channels": 4, "scaling_factor": 0.13025, "force_upcast": True}
_EVERY_CLIP = {"vocab_size": 49408, "max_position_embeddings": 77}


def _vae_blocks(count: int) -> dict[str, Any]:
    return {
        "down_block_types": ("DownEncoderBlock2D",) * count,
        "up_block_types": ("UpDecoderBlock2D",) * count,
    }


FULL = Sizes(
    name="sdxl",
    text_encoder=_EVERY_CLIP
    | {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "projection_dim": 768,
        "hidden_act": "quick_gelu",
    },
    text_encoder_2=_EVERY_CLIP
    | {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_attention_heads": 20,
        "projection_dim": 1280,
        "hidden_act": "gelu",
    },
    unet=_EVERY_UNET
    | {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN),
        "up_block_types": (_CROSS_UP, _CROSS_UP, _UP),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 6 * 256,
    },
    refiner_unet=_EVERY_UNET
    | {
        "sample_size": 128,
        "block_out_channels": (384, 768, 1536, 1536),
        "down_block_types": (_DOWN, _CROSS_DOWN, _CROSS_DOWN, _DOWN),
        "up_block_types": (_UP, _CROSS_UP, _CROSS_UP, _UP),
        "transformer_layers_per_block": 4,
        "attention_head_dim": (6, 12, 24, 24),
        "cross_attention_dim": 1280,
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 1280 + 5 * 256,
    },
    vae=_EVERY_VAE
    | _vae_blocks(4)
    | {"sample_size": 1024, "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2},
)

_TINY_CLIP = _EVERY_CLIP | {"num_hidden_layers": 2, "num_attention_heads": 2}
_TINY_UNET = _EVERY_UNET | {
    "sample_size": 32,
    "block_out_channels": (16, 32),
    "down_block_types": (_DOWN, _CROSS_DOWN),
    "up_block_types": (_CROSS_UP, _UP),
    "layers_per_block": 1,
    "transformer_layers_per_block": 1,
    "attention_head_dim": (1, 2),
    "norm_num_groups": 8,
    "addition_time_embed_dim": 8,
}
TINY = Sizes(
    name="tiny",
    text_encoder=_TINY_CLIP
    | {"hidden_size": 16, "intermediate_size": 32, "projection_dim": 16, "hidden_act": "quick_gelu"},
    text_encoder_2=_TINY_CLIP
    | {"hidden_size": 32, "intermediate_size": 64, "projection_dim": 32, "hidden_act": "gelu"},
    unet=_TINY_UNET | {"cross_attention_dim": 16 + 32, "projection_class_embeddings_input_dim": 32 + 6 * 8},
    refiner_unet=_TINY_UNET
    | {"cross_attention_dim": 32, "projection_class_embeddings_input_dim": 32 + 5 * 8},
    vae=_EVERY_VAE
    | _vae_blocks(2)
    | {"sample_size": 64, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4},
)
"""The same shape in a few thousand weights at 64 px, so that `--tiny` goes through every line on a CPU."""


def modules(sizes: Sizes) -> dict[str, Any]:
    """Every part with random weights, on torch's default device and in its default dtype."""
    return {
        "text_encoder": CLIPTextModel(_clip_config(sizes.text_encoder, "tokenizer")),
        "text_encoder_2": CLIPTextModelWithProjection(_clip_config(sizes.text_encoder_2, "tokenizer_2")),
        "unet": UNet2DConditionModel(**sizes.unet),
        "refiner_unet": UNet2DConditionModel(**sizes.refiner_unet),
        "vae": AutoencoderKL(**sizes.vae),
    }


def build(sizes: Sizes, *, device: torch.device, dtype: torch.dtype, seed: int = 0) -> Models:
    """Random weights made on the device, laid out as `models.load` would. The same seed gives the same weights."""
    torch.manual_seed(seed)
    with _defaults(device, dtype):
        parts = modules(sizes)
    for part in parts.values():
        part.requires_grad_(False).eval()
    _give_contrast(parts["vae"])
    # As the sdxl preset has it: its VAE is the one that needs no upcast in float16.
    parts["vae"].register_to_config(force_upcast=False)
    if device.type == "cuda":
        for name in ("unet", "refiner_unet", "vae"):
            parts[name].to(memory_format=torch.channels_last)
    return Models(
        name=sizes.name,
        fingerprint="0" * 64,
        device=device,
        dtype=dtype,
        tokenizer=_tokenizer("tokenizer"),
        text_encoder=parts["text_encoder"],
        tokenizer_2=_tokenizer("tokenizer_2"),
        text_encoder_2=parts["text_encoder_2"],
        unets={"base": parts["unet"], "refiner": parts["refiner_unet"]},
        vae=parts["vae"],
        scheduler_config=dict(EulerDiscreteScheduler.from_pretrained(_BASE, subfolder="scheduler").config),
        force_zeros_for_empty_prompt=frozenset({"base"}),
        requires_aesthetics_score=True,
        weights=bendable(parts["unet"], parts["text_encoder"], parts["text_encoder_2"]),
    )


_BASE: Path = pocket.WEIGHTS / "base"


def _tokenizer(name: str) -> CLIPTokenizer:
    return CLIPTokenizer.from_pretrained(_BASE / name)


def _clip_config(config: dict[str, Any], tokenizer: str) -> CLIPTextConfig:
    """With the tokens by which the pooled state is found: CLIP takes the one at the first end of text."""
    tokens = _tokenizer(tokenizer)
    return CLIPTextConfig(
        **config,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
    )


@contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            yield
    finally:
        torch.set_default_dtype(before)


@torch.inference_mode()
def _give_contrast(vae: AutoencoderKL) -> None:
    """Scale the last convolution until pictures have the spread of a photo; as they come they are flat grey."""
    noise = torch.randn(1, vae.config.latent_channels, 16, 16, generator=torch.Generator().manual_seed(0))
    last = vae.decoder.conv_out
    decoded = vae.decode(noise.to(vae.device, vae.dtype) / vae.config.scaling_factor).sample.float()
    last.weight.mul_(0.4 / decoded.std())
    last.bias.zero_()
