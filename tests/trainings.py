"""Trainings for tests: a few pictures of hearts, a recipe that takes seconds, and a report that only remembers."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch

from darkroom.types import JobStage, TrainRequest
from service.engine import models, presets
from service.engine.models import Models
from service.pocket import world
from service.pocket.render import render
from service.training.data import Curriculum, Example, Latents
from service.training.learned import Learned
from service.training.loop import Training
from service.training.model import trained_model
from service.training.recipes import TrainedModel, filled_in
from service.training.session import balanced
from service.training.sheets import png
from service.training.text import Captions, FrozenCaptions

NO_DATASET = "sha256:" + "0" * 64
SHORT: dict[str, Any] = {"max_train_steps": 6, "train_batch_size": 2, "rank": 4, "learning_rate": 2e-3}


def fresh_models() -> Models:
    """The pocket base, whose modules a test may train."""
    return models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32, refiner=False)


def hearts(count: int, word: str = "heart", seed: int = 5) -> list[tuple[str, bytes, str]]:
    """Pictures of a shape that the pocket model has never seen, as (file, PNG, caption)."""
    rng, found = random.Random(seed), []
    for place in range(count):
        scene = world.sample_scene(rng, hidden=0, captioned=0, pairs=0)
        thing = replace(scene.things[0], shape="heart", style="plain")
        (picture,) = render([replace(scene, things=(thing,))])
        pixels = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        caption = f"{world.article(f'{thing.colour} {word}')} on {world.article(scene.background)} background"
        found.append((f"{place:02d}.png", png(pixels), caption))
    return found


def example(pixels_HWC: np.ndarray, caption: str = "a heart", *, is_class: bool = False) -> Example:
    digest = hashlib.sha256(pixels_HWC.tobytes()).hexdigest()
    height, width, _ = pixels_HWC.shape
    return Example(digest, caption, width, height, lambda: pixels_HWC, is_class)


def noise_examples(*sizes: tuple[int, int], is_class: bool = False) -> list[Example]:
    """Pictures of noise, (width, height) each."""
    rng = np.random.default_rng(3)
    return [
        example(rng.integers(0, 256, (height, width, 3), dtype=np.uint8), f"noise {place}", is_class=is_class)
        for place, (width, height) in enumerate(sizes)
    ]


def a_request(kind: str = "subject", *, recipe: dict[str, Any] | None = None, **changes: Any) -> TrainRequest:
    """A request with a short recipe, not filled in."""
    given: dict[str, Any] = {"kind": kind, "name": "hearts", "recipe": SHORT | (recipe or {})}
    if kind != "negative":
        given |= {"dataset": NO_DATASET, "instance_prompt": "a heart"}
    if kind in ("embedding", "pivotal"):
        given |= {"token": "zorp", "instance_prompt": "a zorp"}
    return TrainRequest.model_validate(given | changes)


POCKET = TrainedModel(
    name="pocket",
    edge=64,
    bucket_px=16,
    device="cpu",
    small=True,
    unet_parameters=3_000_000,
    linear_layers=(
        *(f"down.0.attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")),
        "down.0.ff.net.2",
        "time_embedding.linear_1",
    ),
    linear_shapes=((64, 64), (64, 64), (64, 64), (64, 64), (64, 256), (128, 32)),
)
SDXL = replace(
    POCKET,
    name="sdxl",
    edge=1024,
    bucket_px=64,
    device="cuda",
    small=False,
    unet_parameters=2_567_000_000,
    memory_bytes=24 << 30,
)


def a_training(
    loaded: Models, request: TrainRequest, examples: Sequence[Example]
) -> tuple[Training, Learned]:
    """A training that is ready for its first step; its recipe is filled in here."""
    model = trained_model(loaded)
    request = filled_in(request, model)
    recipe = request.recipe
    curriculum = Curriculum(
        examples,
        resolution=recipe.resolution or 64,
        bucket_px=model.bucket_px,
        aspect_buckets=recipe.aspect_buckets,
        random_crop=recipe.random_crop,
        random_flip=recipe.random_flip,
        repeats=recipe.repeats or balanced(examples),
        batch_size=recipe.train_batch_size or 1,
        seed=recipe.seed,
    )
    learned = Learned(loaded, request, model.linear_layers)
    captions = Captions(loaded, request.token or "", learned.vectors)
    training = Training(
        loaded,
        learned,
        curriculum,
        Latents(loaded.vae, curriculum, lambda: None),
        captions if learned.bends_text else FrozenCaptions(captions),
        recipe,
        fingerprint="a test",
    )
    return training, learned


@dataclass
class Memory:
    """A report that remembers."""

    stages: list[JobStage] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)
    logs: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    datasets: list[str] = field(default_factory=list)

    def stage(self, stage: JobStage) -> None:
        self.stages.append(stage)

    def progress(self, *, step: int, **_figures: float | None) -> None:
        self.steps.append(step)

    def log(self, message: str) -> None:
        self.logs.append(message)

    def put(self, name: str, data: bytes, media_type: str, *, step: int = 0) -> None:
        self.files[name] = data

    def drop(self, name: str) -> None:
        self.files.pop(name, None)

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def dataset_made(self, dataset_id: str) -> None:
        self.datasets.append(dataset_id)
