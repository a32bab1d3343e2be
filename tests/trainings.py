"""Trainings for tests: a recipe that takes seconds, and pictures of noise."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from darkroom.types import TrainRequest
from service.engine import models, presets
from service.engine.models import Models
from service.training.data import Example
from service.training.learned import Learned
from service.training.loop import Training
from service.training.model import trained_model
from service.training.prepared import prepare
from service.training.recipes import TrainedModel, filled_in

NO_DATASET = "sha256:" + "0" * 64
SHORT: dict[str, Any] = {"max_train_steps": 6, "train_batch_size": 2, "rank": 4, "learning_rate": 2e-3}


def fresh_models() -> Models:
    """The pocket base, whose modules a test may train."""
    return models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32, refiner=False)


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
    linear_layers={
        **{f"down.0.attn1.{name}": (64, 64) for name in ("to_q", "to_k", "to_v", "to_out.0")},
        "down.0.ff.net.2": (64, 256),
        "time_embedding.linear_1": (128, 32),
    },
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
    made = prepare(loaded, model, request, examples, fingerprint="a test")
    return made.training, made.learned
