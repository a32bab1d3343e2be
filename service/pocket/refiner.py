"""The refiner stage: a second UNet for the last timesteps, with encoder 2 alone and an aesthetic score.

Shapes: latents, noise (B, 4, 16, 16); ids (B, 77); timesteps, scores (B,); time ids (B, 5).
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModelWithProjection

from .base import EMPTY_SHARE, draw_batch, spread_timesteps
from .config import Config
from .dataset import load_dataset
from .networks import REFINER_TIME_IDS, new_unet, noise_levels
from .render import SIDE_PX
from .team import Team
from .tokenizers import load_tokenizers, padded_for_encoder_2, token_ids
from .trainer import Trainer
from .warm_start import refiner_from_base

CLEAN_SCORE = 6.4
SCORE_JITTER = 0.15
"""Scores are known to about this much, so that those between the trained ones mean something too."""


def train_refiner(team: Team, config: Config, out: Path, device: str) -> None:
    """Train into `out/refiner-unet`, starting from the base UNet; encoder 2 stays as it is."""
    torch.manual_seed(config.seed)
    tokenizer, _ = load_tokenizers(out)
    encoder_2 = CLIPTextModelWithProjection.from_pretrained(out / "text_encoder_2").to(device).eval()
    encoder_2.requires_grad_(False)
    unet = new_unet(config, config.text_width_2, REFINER_TIME_IDS)
    refiner_from_base(unet, UNet2DConditionModel.from_pretrained(out / "unet"))
    trainer = Trainer(
        "refiner",
        dict(unet.to(device).train().named_parameters()),
        config.refiner,
        team,
        out / "refiner-state.safetensors",
        seed=config.seed + 2,
        save_seconds=config.save_seconds,
        log_steps=config.log_steps,
    )
    data = load_dataset(out / "dataset")
    clean = (data.scores > CLEAN_SCORE).nonzero().flatten()
    empty = token_ids(tokenizer, [""])[0]
    levels = noise_levels()
    size = config.refiner.batch
    for generator in trainer:
        rows = torch.randint(0, len(data), (size,), generator=generator)
        # Half of the batch is faultless: that is what the refiner is for.
        rows[: size // 2] = clean[torch.randint(0, len(clean), (size // 2,), generator=generator)]
        ids, latents = draw_batch(data, size, empty, generator, rows)
        timesteps = spread_timesteps(size, config.refiner_timesteps, generator)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            errors = refiner_errors(
                unet,
                encoder_2,
                padded_for_encoder_2(ids, tokenizer.eos_token_id),
                latents,
                data.scores[rows],
                timesteps,
                levels,
                generator,
            )
        snr = levels[timesteps] / (1 - levels[timesteps])
        trainer.update(
            (errors * ((20 / snr).clamp(max=1)).to(device)).mean(), error=errors.detach().mean().item()
        )
    if team.leads:
        with trainer.averaged():
            unet.save_pretrained(out / "refiner-unet")
    team.wait()


def refiner_errors(
    unet: UNet2DConditionModel,
    encoder_2: CLIPTextModelWithProjection,
    ids_2: torch.Tensor,
    latents: torch.Tensor,
    scores: torch.Tensor,
    timesteps: torch.Tensor,
    levels: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Squared error of the predicted noise, (B,)."""
    device, size = unet.device, len(ids_2)
    noise = torch.randn(latents.shape, generator=generator)
    level = levels[timesteps][:, None, None, None]
    noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
    with torch.no_grad():
        output = encoder_2(ids_2.to(device), output_hidden_states=True)
    kept = (torch.rand(size, generator=generator) >= EMPTY_SHARE).float().to(device)
    judged = scores + SCORE_JITTER * torch.randn(size, generator=generator)
    time_ids = torch.tensor([SIDE_PX, SIDE_PX, 0, 0, 0], dtype=torch.float32).repeat(size, 1)
    time_ids[:, 4] = judged
    predicted = unet(
        noisy.to(device),
        timesteps.to(device),
        output.hidden_states[-2] * kept[:, None, None],
        added_cond_kwargs={
            "text_embeds": output.text_embeds * kept[:, None],
            "time_ids": time_ids.to(device),
        },
    ).sample
    return (predicted.float() - noise.to(device)).square().mean((1, 2, 3))
