"""The training set of the UNets: latents, two captions and an aesthetic score for each drawn picture.

Shapes: N pictures; latents (N, 4, 16, 16) in unit variance, token ids (N, 2, 77), scores (N,).
"""

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from safetensors.torch import load_file, save_file

from .config import Config
from .render import render
from .team import Team
from .tokenizers import load_tokenizers, token_ids
from .world import caption, sample_scene

SHARD_PICTURES = 2000


@dataclass(frozen=True)
class Dataset:
    """All shards in memory."""

    latents: torch.Tensor
    ids: torch.Tensor
    scores: torch.Tensor

    def __len__(self) -> int:
        return len(self.scores)


def write_dataset(team: Team, config: Config, out: Path, device: str) -> None:
    """Draw, encode and tokenise the pictures, shard by shard; shards that exist are kept."""
    vae = AutoencoderKL.from_pretrained(out / "vae").to(device, memory_format=torch.channels_last).eval()
    tokenizer, _ = load_tokenizers(out)
    shards = -(-config.pictures // SHARD_PICTURES)
    for shard in range(team.rank, shards, team.size):
        path = out / "dataset" / f"{shard:04}.safetensors"
        if path.exists():
            continue
        size = min(SHARD_PICTURES, config.pictures - shard * SHARD_PICTURES)
        rng = random.Random(config.seed * 1_000_003 + shard)
        scenes = [sample_scene(rng) for _ in range(size)]
        latents = []
        with torch.no_grad():
            for start in range(0, size, 50):
                pictures = render(scenes[start : start + 50]).to(device, memory_format=torch.channels_last)
                latents.append(
                    vae.encode(pictures * 2 - 1).latent_dist.mean.cpu() * vae.config.scaling_factor
                )
        captions = [caption(scene, rng) for _ in range(2) for scene in scenes]
        tensors = {
            "latents": torch.cat(latents).half().contiguous(),
            "ids": token_ids(tokenizer, captions).view(2, size, -1).transpose(0, 1).short().contiguous(),
            "scores": torch.tensor([scene.aesthetic_score for scene in scenes]),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
        print(f"dataset: shard {shard + 1} of {shards} drawn", flush=True)
    team.wait()


def load_dataset(folder: Path) -> Dataset:
    """The shards in `folder` as one."""
    parts = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return Dataset(*(torch.cat([part[key] for part in parts]) for key in ("latents", "ids", "scores")))
