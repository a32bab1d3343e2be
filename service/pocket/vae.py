"""The VAE stage: an autoencoder that keeps flat colours, edges and small shapes through 16 x 16 x 4 latents.

Shapes: pictures (B, 3, 64, 64) in 0..1 outside, -1..1 inside; latents (B, 4, 16, 16).
"""

import random
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from .config import Config
from .render import SIDE_PX, render
from .team import Team
from .trainer import Trainer
from .world import sample_scene

SCALING_FACTOR = 0.13025
"""SDXL's own. The latents are stretched to fit it, so that `latents * SCALING_FACTOR` has unit variance."""


def new_vae(config: Config) -> AutoencoderKL:
    """An untrained VAE that shrinks each side by four."""
    vae = AutoencoderKL(
        block_out_channels=config.vae_channels,
        down_block_types=("DownEncoderBlock2D",) * len(config.vae_channels),
        up_block_types=("UpDecoderBlock2D",) * len(config.vae_channels),
        layers_per_block=1,
        latent_channels=4,
        # Two channels a group would normalise flat colours away: few groups keep them.
        norm_num_groups=2,
        mid_block_add_attention=False,
        sample_size=SIDE_PX,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )
    with torch.no_grad():
        # Start nearly deterministic: with a unit posterior the decoder first learns to ignore its input.
        vae.quant_conv.weight[4:].zero_()
        vae.quant_conv.bias[4:].fill_(-5.0)
    return vae


def train_vae(team: Team, config: Config, out: Path, init: Path | None, device: str) -> None:
    """Train the VAE into the folder `out`; `init` is a VAE folder of the same widths to start from."""
    torch.manual_seed(config.seed)
    vae = new_vae(config)
    if init is not None:
        vae.load_state_dict(AutoencoderKL.from_pretrained(init, variant="fp16").float().state_dict())
        # The loss wants unit latents, as a fresh VAE gives them.
        stretch_latents(vae, torch.zeros(4), torch.full((4,), SCALING_FACTOR))
    vae.to(device, memory_format=torch.channels_last).train()
    trainer = Trainer(
        "vae",
        dict(vae.named_parameters()),
        config.vae,
        team,
        out.parent / "vae-state.safetensors",
        seed=config.seed,
        save_seconds=config.save_seconds,
        log_steps=config.log_steps,
    )
    pool = Pool(config.vae_pool, config.seed * 1000 + team.rank)
    for generator in trainer:
        pool.turn_to(trainer.step // 100)
        rows = torch.randint(0, len(pool.pictures), (config.vae.batch,), generator=generator)
        pictures = pool.pictures[rows].to(device, memory_format=torch.channels_last) * 2 - 1
        # Convolutions in bfloat16: 1.6 times as fast on a CPU that has it, and no worse here.
        with torch.autocast(pictures.device.type, torch.bfloat16):
            loss, figures = vae_loss(vae, pictures, generator)
        trainer.update(loss, **figures)
    if team.leads:
        with trainer.averaged():
            mean, deviation = latent_statistics(vae, pool.pictures[:1024], device)
            stretch_latents(vae, mean, 1 / (deviation * SCALING_FACTOR))
            vae.save_pretrained(out)
    team.wait()


def vae_loss(
    vae: AutoencoderKL, pictures: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, dict[str, float]]:
    """Squared and absolute error, error of the edges, and a whiff of KL, with what to log."""
    posterior = vae.encode(pictures).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(pictures.device)
    # The UNet's latents are never exact: 3 % of noise on top teaches the decoder not to mind.
    latents = posterior.mean + (posterior.std + 0.03) * noise
    decoded = vae.decode(latents).sample.float()
    squared, absolute = F.mse_loss(decoded, pictures), F.l1_loss(decoded, pictures)
    edges = sum(F.l1_loss(decoded.diff(dim=dim), pictures.diff(dim=dim)) for dim in (2, 3))
    kl = 0.5 * (posterior.mean**2 + posterior.var - 1 - posterior.logvar).mean()
    loss = squared + 0.4 * absolute + 0.25 * edges + 2e-5 * kl
    return loss, {"mse": squared.item(), "kl": kl.item()}


class Pool:
    """Pictures held in memory, a tenth replaced at every turn; a turn's pictures depend on the seed alone."""

    def __init__(self, size: int, seed: int) -> None:
        self.seed, self.share = seed, max(1, size // 10)
        self.turn = 0
        self.pictures = torch.cat([self._drawn(i) for i in range(10)])

    def turn_to(self, turn: int) -> None:
        """Bring the pool to `turn`, drawing what is missing."""
        for i in range(max(self.turn, turn - 10), turn):
            place = i % 10 * self.share
            self.pictures[place : place + self.share] = self._drawn(10 + i)
        self.turn = turn

    def _drawn(self, part: int) -> torch.Tensor:
        rng = random.Random(self.seed * 100_003 + part)
        return render([sample_scene(rng) for _ in range(self.share)])


@torch.no_grad()
def latent_statistics(
    vae: AutoencoderKL, pictures: torch.Tensor, device: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of each latent channel, (4,) each."""
    means = torch.cat([vae.encode(p.to(device) * 2 - 1).latent_dist.mean for p in pictures.split(64)])
    return means.mean((0, 2, 3)), means.std((0, 2, 3))


@torch.no_grad()
def stretch_latents(vae: AutoencoderKL, shift: torch.Tensor, scale: torch.Tensor) -> None:
    """Make the latents (z - shift) * scale, channel by channel, and decode the same pictures from them.

    Only the two 1 x 1 convolutions around the latents change, so the stretch costs nothing at run time.
    """
    into, out_of = vae.quant_conv, vae.post_quant_conv
    out_of.bias += out_of.weight[:, :, 0, 0] @ shift
    out_of.weight /= scale.view(1, 4, 1, 1)
    into.weight[:4] *= scale.view(4, 1, 1, 1)
    into.bias[:4].sub_(shift).mul_(scale)
    into.bias[4:] += 2 * scale.log()


@torch.no_grad()
def round_trip(vae: AutoencoderKL, pictures: torch.Tensor) -> torch.Tensor:
    """`pictures` encoded and decoded again."""
    device = vae.device
    parts = [vae.decode(vae.encode(p.to(device) * 2 - 1).latent_dist.mean).sample for p in pictures.split(50)]
    return (torch.cat(parts).float().cpu() / 2 + 0.5).clamp(0, 1)
