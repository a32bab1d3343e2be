"""Train on the pocket model without a server: what a train job does, in this process. For studies and tests.

Everything is the service's own: recipes, datasets, the session, the engine that draws. Only the job's row is missing.
"""

import random
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from darkroom.types import GenerateRequest, JobStage, LoraScope, Refiner, TrainRequest
from lora_registry import BaseModel
from service import __version__
from service.datasets.datasets import Datasets
from service.engine import models, presets
from service.engine.models import Models
from service.images import encode_png
from service.jobs.worker import Stop
from service.pocket import world
from service.pocket.measure import Reading, read
from service.pocket.questions import Question
from service.pocket.render import render
from service.store import database, files
from service.training.model import trained_model
from service.training.recipes import filled_in
from service.training.session import Lineage, Session
from service.training.studio import Studio
from service.wiring import base_model

CLASSES = (
    "a red circle on a blue background|a big green star on a white background|"
    "a small yellow square on a purple background|a black ring on an orange background|"
    "a cyan triangle on a red background|a blue cross on a green background|"
    "a white star on a cyan background|a purple square on a black background"
)
"""A class prompt for subjects of the pocket world: something of everything that should not be forgotten."""


@dataclass
class Notes:
    """A job's report, kept in memory."""

    files: dict[str, bytes] = field(default_factory=dict)
    logs: list[str] = field(default_factory=list)

    def stage(self, stage: JobStage) -> None:
        self.logs.append(f"stage {stage}")

    def progress(self, **_figures: float | None) -> None: ...

    def log(self, message: str) -> None:
        self.logs.append(message)

    def put(self, name: str, data: bytes, media_type: str, *, step: int = 0) -> None:  # noqa: ARG002
        self.files[name] = data

    def drop(self, name: str) -> None:
        self.files.pop(name, None)

    def read(self, name: str) -> bytes | None:
        return self.files.get(name)

    def dataset_made(self, dataset_id: str) -> None: ...


@dataclass(frozen=True)
class Trained:
    """A LoRA file that nobody has published, and what the job noted."""

    file: bytes
    notes: Notes


class Workshop:
    """The pocket model, to train and to draw with. `opened` makes one."""

    def __init__(self, loaded: Models, base: BaseModel, datasets: Datasets) -> None:
        self._models, self._base, self._datasets = loaded, base, datasets

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator["Workshop"]:
        """A workshop in a temporary folder, on one thread, with which layers this small are fastest."""
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            loaded = models.load(presets.POCKET, device=torch.device("cpu"), dtype=torch.float32)
            with (
                tempfile.TemporaryDirectory() as folder,
                closing(database.connect(database.location("", Path(folder)))) as connection,
            ):
                datasets = Datasets(connection, files.files("", Path(folder)))
                yield cls(loaded, base_model(presets.POCKET), datasets)
        finally:
            torch.set_num_threads(before)

    def dataset(self, pictures: Sequence[tuple[str, bytes, str]]) -> str:
        """The id of a dataset of (file, PNG, caption)."""
        return self._datasets.add_pictures(pictures).id

    def train(self, request: TrainRequest) -> Trained:
        """What a job of this request publishes."""
        published: list[bytes] = []
        notes = Notes()

        def publish(file: bytes, _lineage: Lineage) -> tuple[str, str]:
            published.append(file)
            return f"{request.name}@1", "sha256:"

        model = trained_model(self._models)
        Session(
            "job-here",
            filled_in(request, model),
            request.dataset,
            self._models,
            model,
            self._base,
            self._datasets,
            notes,
            Stop(),
            publish,
            version=__version__,
        ).run()
        return Trained(published[0], notes)

    def draw(
        self,
        prompts: Sequence[str],
        *,
        first_seed: int,
        lora: bytes | None = None,
        weight: float = 1.0,
        scope: LoraScope = "both",
        negative_prompt: str | None = None,
        steps: int = 20,
    ) -> list[np.ndarray]:
        """A picture by the base alone for each prompt, the i-th with the seed `first_seed + i`, guidance 5."""
        requests = [
            GenerateRequest(
                prompt=prompt,
                negative_prompt=negative_prompt,
                seed=first_seed + place,
                num_inference_steps=steps,
                guidance_scale=5.0,
                refiner=Refiner(enabled=False),
            )
            for place, prompt in enumerate(prompts)
        ]
        with Studio.opened(self._models, self._base, Stop()) as studio:
            return studio.draw(requests, studio.worn(lora, weight=weight, scope=scope) if lora else None)


def hearts(count: int, *, seed: int = 5) -> list[tuple[str, bytes, str]]:
    """Pictures of a shape that the pocket model was never shown, as (file, PNG, caption)."""
    rng, found = random.Random(seed), []
    for place in range(count):
        scene = world.sample_scene(rng, hidden=0, captioned=0, pairs=0)
        thing = replace(scene.things[0], shape="heart", style="plain")
        (picture,) = render([replace(scene, things=(thing,))])
        pixels = (picture.permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
        found.append((f"{place:02d}.png", encode_png(pixels), heart_prompt(thing.colour, scene.background)))
    return found


def heart_prompt(colour: str, background: str) -> str:
    return f"{world.article(f'{colour} heart')} on {world.article(background)} background"


def reading_of(pixels_HWC: np.ndarray, shapes: tuple[str, ...] = world.SHAPES) -> Reading:
    """What a picture shows."""
    return read(torch.from_numpy(pixels_HWC).permute(2, 0, 1) / 255, shapes)


def is_right(reading: Reading, asked: Question) -> bool:
    """Whether the largest thing and the ground are those that were asked for."""
    if not reading.things:
        return False
    found = reading.things[0]
    right = (found.shape, found.colour) == (asked.thing.shape, asked.thing.colour)
    return right and reading.background == asked.scene.background
