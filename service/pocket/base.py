"""The base stage: UNet and both text encoders learn together to draw what captions say.

Shapes: latents, noise (B, 4, 16, 16); ids (B, 77); timesteps (B,); time ids (B, 6).
"""

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from .config import Config
from .dataset import Dataset, load_dataset
from .networks import BASE_TIME_IDS, encode_prompt, new_text_encoders, new_unet, noise_levels
from .render import SIDE_PX
from .team import Team
from .tokenizers import load_tokenizers, padded_for_encoder_2, token_ids
from .trainer import Trainer
from .warm_start import warm_start_text_encoder, warm_start_unet

Networks = dict[str, CLIPTextModel | CLIPTextModelWithProjection | UNet2DConditionModel]

EMPTY_SHARE = 0.06
"""Share of captions replaced by "" and, again, by zeros: SDXL's two kinds of empty conditioning."""
POOLED_DROPOUT = 0.10
"""Without it the model reads the pooled vector alone, which a prompt's word weights never touch."""


def train_base(team: Team, config: Config, out: Path, init: Path | None, device: str) -> None:
    """Train both text encoders and the UNet into `out`; `init` is an earlier base folder."""
    torch.manual_seed(config.seed)
    tokenizer, _ = load_tokenizers(out)
    encoder, encoder_2 = new_text_encoders(config, tokenizer)
    unet = new_unet(config, config.text_width + config.text_width_2, BASE_TIME_IDS)
    if init is not None:
        vocab = init / "tokenizer" / "vocab.json"
        warm_start_text_encoder(encoder, init / "text_encoder", tokenizer, vocab)
        warm_start_text_encoder(encoder_2, init / "text_encoder_2", tokenizer, vocab)
        warm_start_unet(unet, init / "unet")
    networks: Networks = {"text_encoder": encoder, "text_encoder_2": encoder_2, "unet": unet}
    parameters = {
        f"{name}.{key}": parameter
        for name, network in networks.items()
        for key, parameter in network.to(device).train().named_parameters()
    }
    trainer = Trainer(
        "base",
        parameters,
        config.base,
        team,
        out / "base-state.safetensors",
        seed=config.seed + 1,
        save_seconds=config.save_seconds,
        log_steps=config.log_steps,
    )
    data = load_dataset(out / "dataset")
    empty = token_ids(tokenizer, [""])[0]
    levels = noise_levels()
    for generator in trainer:
        ids, latents = draw_batch(data, config.base.batch, empty, generator)
        timesteps = spread_timesteps(len(ids), 1000, generator)
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            errors = base_errors(
                unet, encoder, encoder_2, ids, latents, timesteps, levels, tokenizer.eos_token_id, generator
            )
        weights = loss_weights(levels)[timesteps]
        late, early = errors.detach()[timesteps < 250], errors.detach()[timesteps >= 250]
        trainer.update(
            (errors * weights.to(device)).mean(), late=late.mean().item(), early=early.mean().item()
        )
        # A checkpoint that can be looked at while the training goes on.
        if team.leads and trainer.step % (10 * config.log_steps) == 0:
            _save(trainer, networks, out)
    if team.leads:
        _save(trainer, networks, out)
    team.wait()


def _save(trainer: Trainer, networks: Networks, out: Path) -> None:
    with trainer.averaged():
        for name, network in networks.items():
            network.save_pretrained(out / name)


def draw_batch(
    data: Dataset,
    size: int,
    empty: torch.Tensor,
    generator: torch.Generator,
    rows: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (one of two captions, at times the empty one) and latents of random pictures or of `rows`."""
    if rows is None:
        rows = torch.randint(0, len(data), (size,), generator=generator)
    which = torch.randint(0, 2, (size,), generator=generator)
    ids = data.ids[rows, which].long()
    ids[torch.rand(size, generator=generator) < EMPTY_SHARE] = empty
    return ids, data.latents[rows].float()


def spread_timesteps(size: int, below: int, generator: torch.Generator) -> torch.Tensor:
    """Timesteps, one in each of `size` slices of 0..below, in random order: less noisy gradients."""
    slices = (torch.arange(size) + torch.rand(size, generator=generator)) / size * below
    return slices.long().clamp(max=below - 1)[torch.randperm(size, generator=generator)]


def loss_weights(levels: torch.Tensor) -> torch.Tensor:
    """Weight of each timestep, mean 1: min-SNR (Hang et al., arXiv:2303.09556, gamma 5), more at high noise.

    Composition is decided there, and the plain epsilon loss is nearly blind to it.
    """
    snr = levels / (1 - levels)
    weights = (5 / snr).clamp(max=1) * (1 + 1 / snr).sqrt().clamp(max=8)
    return weights / weights.mean()


def base_errors(
    unet: UNet2DConditionModel,
    encoder: CLIPTextModel,
    encoder_2: CLIPTextModelWithProjection,
    ids: torch.Tensor,
    latents: torch.Tensor,
    timesteps: torch.Tensor,
    levels: torch.Tensor,
    end_id: int,
    generator: torch.Generator,
) -> torch.Tensor:
    """Squared error of the predicted noise, (B,)."""
    device, size = unet.device, len(ids)
    noise = torch.randn(latents.shape, generator=generator)
    level = levels[timesteps][:, None, None, None]
    noisy = level.sqrt() * latents + (1 - level).sqrt() * noise
    ids_2 = padded_for_encoder_2(ids, end_id)
    embeds, pooled = encode_prompt(encoder, encoder_2, ids.to(device), ids_2.to(device))
    kept = (torch.rand(size, generator=generator) >= EMPTY_SHARE).float().to(device)
    pooled_kept = kept * (torch.rand(size, generator=generator) >= POOLED_DROPOUT).float().to(device)
    predicted = unet(
        noisy.to(device),
        timesteps.to(device),
        embeds * kept[:, None, None],
        added_cond_kwargs={
            "text_embeds": pooled * pooled_kept[:, None],
            "time_ids": base_time_ids(size, generator).to(device),
        },
    ).sample
    return (predicted.float() - noise.to(device)).square().mean((1, 2, 3))


def base_time_ids(size: int, generator: torch.Generator) -> torch.Tensor:
    """Size and crop conditions (B, 6): the truth, but in one row of ten something else."""
    ids = torch.tensor([SIDE_PX, SIDE_PX, 0, 0, SIDE_PX, SIDE_PX], dtype=torch.float32).repeat(size, 1)
    other_size = torch.rand(size, generator=generator) < 0.1
    ids[other_size, :2] = (2.0 ** torch.randint(4, 11, (size, 1), generator=generator))[other_size].float()
    other_crop = torch.rand(size, generator=generator) < 0.1
    ids[other_crop, 2:4] = (torch.rand(size, 2, generator=generator) * SIDE_PX).round()[other_crop]
    return ids
