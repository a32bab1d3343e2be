"""The networks of the pocket SDXL, untrained: SDXL's two text encoders and its UNet at pocket width.

Shapes: token ids (B, 77), prompt embeddings (B, 77, 64 + 96), pooled (B, 96), latents (B, 4, 16, 16).
"""

import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from .config import Config
from .tokenizers import MAX_TOKENS

HEAD_WIDTH = 32
TIME_ID_WIDTH = 32
BASE_TIME_IDS = 6
"""Original height and width, crop top and left, target height and width."""
REFINER_TIME_IDS = 5
"""Original height and width, crop top and left, aesthetic score."""


def new_text_encoders(
    config: Config, tokenizer: CLIPTokenizer
) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Encoder 1 (quick GELU, padded with the end token) and encoder 2 (GELU, projected, padded with 0)."""

    def text_config(width: int, activation: str, pad_id: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=max(1, width // HEAD_WIDTH),
            max_position_embeddings=MAX_TOKENS,
            hidden_act=activation,
            projection_dim=width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=pad_id,
        )

    return (
        CLIPTextModel(text_config(config.text_width, "quick_gelu", tokenizer.eos_token_id)),
        CLIPTextModelWithProjection(text_config(config.text_width_2, "gelu", 0)),
    )


def new_unet(config: Config, cross_width: int, time_ids: int) -> UNet2DConditionModel:
    """SDXL's UNet: no attention at full size, transformers below, size, crop (or score) as conditions."""
    return UNet2DConditionModel(
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=config.unet_channels,
        layers_per_block=config.unet_layers,
        transformer_layers_per_block=list(config.unet_transformers),
        cross_attention_dim=cross_width,
        # In diffusers a list here is the number of heads of each level.
        attention_head_dim=[max(1, width // HEAD_WIDTH) for width in config.unet_channels],
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=TIME_ID_WIDTH,
        projection_class_embeddings_input_dim=config.text_width_2 + TIME_ID_WIDTH * time_ids,
        norm_num_groups=4,
    )


def new_scheduler() -> EulerDiscreteScheduler:
    """SDXL's own scheduler configuration."""
    return EulerDiscreteScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="epsilon",
        timestep_spacing="leading",
        steps_offset=1,
        interpolation_type="linear",
        use_karras_sigmas=False,
    )


def noise_levels() -> torch.Tensor:
    """The share of signal left at each of the 1000 timesteps (alpha bar), (1000,)."""
    return new_scheduler().alphas_cumprod


def encode_prompt(
    encoder: CLIPTextModel,
    encoder_2: CLIPTextModelWithProjection,
    ids: torch.Tensor,
    ids_2: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompt embeddings from both penultimate layers, and the pooled vector of encoder 2."""
    states = encoder(ids, output_hidden_states=True).hidden_states[-2]
    output = encoder_2(ids_2, output_hidden_states=True)
    return torch.cat([states, output.hidden_states[-2]], -1), output.text_embeds
