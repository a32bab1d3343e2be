"""Trainings for the benchmarks, and a bare loop beside which a step of ours is measured.

Shapes: B rows of a batch, C latent channels, h, w latent size, D width of an embedding, P of a pooled one.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler
from peft import LoraConfig

from benchmarks.interleave import Rounds, interleave
from benchmarks.report import Row, row
from darkroom.types import TrainRequest
from service.engine import models, presets
from service.engine.models import Models
from service.training.data import Curriculum, Example
from service.training.learned import Learned
from service.training.loop import Training
from service.training.model import trained_model
from service.training.prepared import prepare
from service.training.recipes import ATTENTION, TrainedModel, filled_in
from service.training.text import Captions, FrozenCaptions

GOAL = 1.02
BATCH_SIZES = (8, 1)
"""What a subject has on the pocket model by default, for which the goal is, and the shortest step that there is."""


def measure(rounds: int) -> tuple[dict[str, Any], list[Row]]:
    """The pocket's base, attention LoRA of rank 8, AdamW: a step of ours over one of the bare loop.

    In seconds of the process's cores, step by step: whoever else uses them does not count.
    """
    figures: dict[str, Any] = {}
    rows: list[Row] = []
    for batch_size in BATCH_SIZES:
        taken, apart = _beside_bare(rounds, batch_size)
        ratio = taken.ratio("darkroom", "bare")
        figures[f"batch_{batch_size}"] = taken.figures("darkroom") | {
            "darkroom_over_bare": asdict(ratio),
            "largest_difference_of_losses": apart,
        }
        goal = GOAL if batch_size == BATCH_SIZES[0] else None
        rows.append(row(f"train step over a bare loop, batch {batch_size}", ratio, "", goal=goal))
    return figures, rows


def _beside_bare(rounds: int, batch_size: int) -> tuple[Rounds, float]:
    """Seconds of both, and how far their losses were apart: at 0 they did the very same work."""
    warm_ups = 3
    request = a_request(steps=rounds + warm_ups, rank=8, train_batch_size=batch_size, learning_rate=1e-3)
    examples = pictures(16, 64)
    ours = ready(_pocket(), request, examples)
    bare_steps = bare_losses(_pocket(), ours, batches(ours))
    our_steps = (done.loss for done in ours.training.run())
    losses: dict[str, list[float]] = {"darkroom": [], "bare": []}

    def cpu_seconds(name: str, steps: Iterator[float]) -> float:
        started = time.process_time()
        losses[name].append(next(steps))
        return time.process_time() - started

    taken = interleave(
        {
            "darkroom": lambda _number: cpu_seconds("darkroom", our_steps),
            "bare": lambda _number: cpu_seconds("bare", bare_steps),
        },
        rounds,
        warm_ups=warm_ups,
    )
    apart = np.abs(np.subtract(losses["darkroom"], losses["bare"])).max()
    return taken, float(apart)


def _pocket() -> Models:
    return models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32, refiner=False)


def a_request(**recipe: Any) -> TrainRequest:
    """A subject at a constant rate, its recipe not filled in."""
    steps = recipe.pop("steps")
    return TrainRequest.model_validate(
        {
            "kind": "subject",
            "name": "benchmark",
            "dataset": "sha256:" + "0" * 64,
            "instance_prompt": "a photo of sks",
            "recipe": {
                "max_train_steps": steps,
                "lr_scheduler": "constant",
                "lr_warmup_steps": 0,
                **recipe,
            },
        }
    )


def pictures(count: int, edge: int) -> list[Example]:
    """Squares of noise: what a step costs does not depend on what is seen."""
    rng = np.random.default_rng(0)

    def picture(place: int) -> Example:
        pixels_HWC = rng.integers(0, 256, (edge, edge, 3), dtype=np.uint8)
        return Example(f"noise {place}", "a photo of sks", edge, edge, lambda: pixels_HWC)

    return [picture(place) for place in range(count)]


@dataclass(frozen=True)
class Ready:
    """A training before its first step, and what it was made of."""

    training: Training
    learned: Learned
    curriculum: Curriculum
    loaded: Models
    request: TrainRequest
    """The recipe filled in."""
    model: TrainedModel


def ready(loaded: Models, request: TrainRequest, examples: Sequence[Example]) -> Ready:
    """As a train job does it: latents and embeddings are made here, once."""
    model = trained_model(loaded)
    request = filled_in(request, model)
    made = prepare(loaded, model, request, examples, fingerprint="a benchmark")
    return Ready(made.training, made.learned, made.curriculum, loaded, request, model)


@dataclass(frozen=True)
class Batch:
    """Everything of a batch that no step changes."""

    mean_BChw: torch.Tensor
    deviation_BChw: torch.Tensor
    embeds_B77D: torch.Tensor
    pooled_BP: torch.Tensor
    time_ids_B6: torch.Tensor


@torch.no_grad()
def batches(ours: Ready) -> list[Batch]:
    """The batches that a training will see, each made before the clock runs; the rows of a batch are whole pictures."""
    vae, encode = ours.loaded.vae, FrozenCaptions(Captions(ours.loaded)).encode
    scale = float(vae.config.scaling_factor)
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    found = []
    for number in range(ours.training.steps):
        rows = ours.curriculum.batch(number)
        for example in (one.example for one in rows if one.example.digest not in moments):
            pixels_1CHW = torch.from_numpy(example.pixels_HWC()).permute(2, 0, 1)[None] / 127.5 - 1
            distribution = vae.encode(pixels_1CHW).latent_dist
            moments[example.digest] = distribution.mean[0] * scale, distribution.std[0] * scale
        embeds, pooled = encode([row.example.caption for row in rows])
        found.append(
            Batch(
                torch.stack([moments[one.example.digest][0] for one in rows]),
                torch.stack([moments[one.example.digest][1] for one in rows]),
                embeds,
                pooled,
                torch.tensor([row.crop.time_ids for row in rows]),
            )
        )
    return found


def bare_losses(loaded: Models, like: Ready, seen: Sequence[Batch]) -> Iterator[float]:
    """The loss of each step of the loop that one would write with torch, diffusers and peft, and nothing of ours.

    It begins with the same numbers as `like` and draws the same noise, so that the losses are the same.
    """
    recipe, unet = like.request.recipe, loaded.unets["base"]
    schedule = DDPMScheduler.from_config(loaded.scheduler_config)
    timestep_count = int(schedule.config.num_train_timesteps)
    unet.requires_grad_(False)
    torch.manual_seed(recipe.seed)
    unet.add_adapter(
        LoraConfig(
            r=recipe.rank,
            lora_alpha=recipe.alpha,
            target_modules=list(ATTENTION),
            init_lora_weights="gaussian",
        )
    )
    unet.train()
    learnt = [parameter for parameter in unet.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learnt, lr=recipe.learning_rate, weight_decay=recipe.weight_decay)
    for number, batch in enumerate(seen):
        generator = torch.Generator().manual_seed(recipe.seed * 1_000_003 + number)
        size = len(batch.mean_BChw)
        drawn = torch.randn(batch.mean_BChw.shape, generator=generator)
        latents = batch.mean_BChw + batch.deviation_BChw * drawn
        noise = torch.randn(latents.shape, generator=generator)
        slices = (torch.randperm(size, generator=generator) + torch.rand(size, generator=generator)) / size
        timesteps = (slices * timestep_count).long().clamp(max=timestep_count - 1)
        predicted = unet(
            schedule.add_noise(latents, noise, timesteps),
            timesteps,
            batch.embeds_B77D,
            added_cond_kwargs={"text_embeds": batch.pooled_BP, "time_ids": batch.time_ids_B6},
        ).sample
        loss = torch.nn.functional.mse_loss(predicted, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, recipe.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()
