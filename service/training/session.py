"""One train job from beginning to end: prepare, train, study, publish. What a crash interrupts goes on from here.

It is told everything it uses: the models, where pictures come from, where news and files go, who publishes.
"""

import io
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, Protocol

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load, save

from darkroom.types import Dataset, DatasetPicture, GenerateRequest, Refiner, SynthesizeRequest, TrainRequest
from lora_registry import BaseModel
from service.datasets import recipes as synthesis
from service.engine.models import Models
from service.images import encode_png
from service.jobs.worker import Stopped
from service.training import checkpoint as checkpoints
from service.training.data import Example
from service.training.errors import NothingToLearn
from service.training.learned import Learned
from service.training.loop import StepDone, Training
from service.training.objective import Objective
from service.training.prepared import Prepared, prepare
from service.training.recipes import TrainedModel
from service.training.report import Report, Stop
from service.training.samples import sample
from service.training.sheets import loss_curve
from service.training.studio import Studio, as_tensor
from service.training.study import Candidate, Errors, Studied, study
from service.training.text import Captions

STATE: Final = "state.safetensors"
CLASS_PICTURES: Final = "class-pictures.safetensors"
REPORT_SECONDS: Final = 0.5
SAFETENSORS: Final = "application/x-safetensors"
PNG: Final = "image/png"


class Pictures(Protocol):
    """The store of datasets, as far as a training uses it."""

    def add_pictures(
        self,
        pictures: Iterable[tuple[str, bytes, str]],
        *,
        name: str = "",
        synthesis: SynthesizeRequest | None = None,
        model: str = "",
    ) -> Dataset: ...

    def made_by(self, synthesis: SynthesizeRequest, model: str) -> Dataset | None: ...

    def get(self, id: str) -> Dataset: ...

    def pictures(self, id: str) -> list[tuple[DatasetPicture, Callable[[], bytes]]]: ...


@dataclass(frozen=True)
class Lineage:
    """Where a LoRA comes from."""

    job: str
    dataset: str
    model: str
    """Fingerprint of the weights that it was trained on."""
    code: str
    """Version of this program."""
    seed: int
    step: int
    pictures: int


Publish = Callable[[bytes, Lineage], tuple[str, str]]
"""Publishes a file, with what is known of its making: its ref and its digest."""


class Session:
    """A job at work. `run` it once."""

    def __init__(
        self,
        job_id: str,
        request: TrainRequest,
        dataset: str | None,
        models: Models,
        model: TrainedModel,
        base: BaseModel,
        pictures: Pictures,
        report: Report,
        stop: Stop,
        publish: Publish,
        *,
        version: str,
        wait_turn: Callable[[], None] = lambda: None,
    ) -> None:
        self._job_id, self._request, self._dataset = job_id, request, dataset
        self._recipe = request.recipe
        self._models, self._model, self._base = models, model, base
        self._pictures, self._report, self._stop, self._publish = pictures, report, stop, publish
        self._version, self._wait_turn = version, wait_turn

    def run(self) -> tuple[str, str]:
        """The ref and the digest of what was published.

        Raises:
            Stopped: the job is to end; what was learnt is in a checkpoint.
            DarkroomError, RegistryError: it has failed.
        """
        self._report.stage("preparing")
        dataset = self._pictures.get(self._dataset) if self._dataset else self._synthesized()
        examples = self._examples(dataset)
        if self._recipe.prior_preservation:
            examples += self._class_examples()
        with torch.random.fork_rng(devices=[]):
            candidates, likeness = self._trained(examples, dataset)
        subject = [example for example in examples if not example.is_class]
        chosen = self._studied(candidates, subject, likeness) if self._request.evaluate else candidates[-1]
        self._report.stage("publishing")
        return self._publish(
            chosen.file,
            Lineage(
                job=self._job_id,
                dataset=dataset.id,
                model=self._models.fingerprint,
                code=self._version,
                seed=self._recipe.seed,
                step=chosen.step,
                pictures=len(subject),
            ),
        )

    # Prepare

    def _synthesized(self) -> Dataset:
        asked = self._request.synthesis or SynthesizeRequest(recipe="wrong")
        filled = synthesis.filled_in(asked, pocket=self._model.is_pocket)
        found = self._pictures.made_by(filled, self._models.fingerprint)
        made = self._drawn(filled) if found is None else found
        self._report.dataset_made(made.id)
        return made

    def _drawn(self, filled: SynthesizeRequest) -> Dataset:
        plan = synthesis.planned(filled)
        self._report.log(f"making {len(plan)} pictures to learn from")
        with Studio.opened(self._models, self._base, self._stop, self._wait_turn) as studio:
            drawn = studio.draw([picture.request for picture in plan])
        return self._pictures.add_pictures(
            ((one.file, encode_png(pixels), one.caption) for one, pixels in zip(plan, drawn, strict=True)),
            name=f"made for {self._request.name}"[:64],
            synthesis=filled,
            model=self._models.fingerprint,
        )

    def _examples(self, dataset: Dataset) -> list[Example]:
        return [
            Example(
                digest=picture.digest,
                caption=picture.caption or self._request.instance_prompt or "",
                width=picture.width,
                height=picture.height,
                pixels_HWC=partial(_pixels, png_bytes),
            )
            for picture, png_bytes in self._pictures.pictures(dataset.id)
        ]

    def _class_examples(self) -> list[Example]:
        """Pictures of the class, made by the model as it is, and kept for when the job is taken up again."""
        prompts = class_prompts(self._request)
        if (kept := self._report.read(CLASS_PICTURES)) is None:
            self._report.log(f"making {len(prompts)} pictures of the class")
            edge = self._model.edge
            with Studio.opened(self._models, self._base, self._stop, self._wait_turn) as studio:
                drawn = studio.draw(
                    [
                        GenerateRequest(
                            prompt=prompt,
                            seed=synthesis.seed_of(self._recipe.seed, place),
                            width=edge,
                            height=edge,
                            num_inference_steps=12 if self._model.small else 30,
                            guidance_scale=5.0,
                            refiner=Refiner(enabled=False),  # it is the base that must not forget
                        )
                        for place, prompt in enumerate(prompts)
                    ]
                )
            self._report.put(CLASS_PICTURES, save({"pictures": as_tensor(drawn)}), SAFETENSORS)
        else:
            drawn = list(load(kept)["pictures"].numpy())
        return [
            Example(
                digest=f"class {place}",
                caption=prompt,
                width=pixels.shape[1],
                height=pixels.shape[0],
                pixels_HWC=partial(np.asarray, pixels),
                is_class=True,
            )
            for place, (prompt, pixels) in enumerate(zip(prompts, drawn, strict=True))
        ]

    # Train

    def _trained(
        self, examples: Sequence[Example], dataset: Dataset
    ) -> tuple[list[Candidate], dict[int, float]]:
        """The kept checkpoints, the last step among them, and how well each knows the pictures."""
        self._report.stage("training")
        models = self._models
        made = prepare(
            models,
            self._model,
            self._request,
            examples,
            fingerprint=checkpoints.fingerprint(self._request, models.fingerprint, dataset.id),
            check=self._stop.check,
        )
        try:
            if (kept := self._report.read(STATE)) is not None:
                self._go_on(made.training, kept)
            self._steps(made)
            return self._measured(made, examples)
        finally:
            made.learned.remove()
            models.unets["base"].eval().requires_grad_(False)

    def _go_on(self, training: Training, kept: bytes) -> None:
        try:
            training.go_on_from(checkpoints.from_bytes(kept))
        except ValueError as exc:
            self._report.log(f"begins again: {exc}")
        else:
            self._report.log(f"goes on from step {training.step}")

    def _steps(self, made: Prepared) -> None:
        recipe, training, learned = self._recipe, made.training, made.learned
        assert recipe.checkpoint_every is not None
        assert recipe.sample_every is not None
        pace = Pace(self._report, training.steps)
        if training.step == 0:
            self._sample(0, made.captions)

        def before_step() -> None:
            self._wait_turn()
            self._stop.check()

        try:
            for done in training.run(before_step):
                pace.tell(done)
                last = done.step == training.steps
                if done.step % recipe.checkpoint_every == 0 or last:
                    self._keep(training, learned)
                if done.step % recipe.sample_every == 0 or last:
                    with learned.wearing(training.best_values()):
                        self._sample(done.step, made.captions)
                    self._curve(training)
        except Stopped:
            self._keep_state(training)
            raise

    def _keep(self, training: Training, learned: Learned) -> None:
        """First what was learnt, then the state that points past it: a crash between repeats a checkpoint, no more."""
        step = training.step
        file = learned.file(training.best_values(), dtype=self._file_dtype())
        self._report.put(_checkpoint_name(step), file, SAFETENSORS, step=step)
        self._keep_state(training)
        for old in self._checkpoint_steps(step)[: -self._recipe.checkpoints_kept][-1:]:
            self._report.drop(_checkpoint_name(old))

    def _keep_state(self, training: Training) -> None:
        data = checkpoints.to_bytes(training.checkpoint())
        self._report.put(STATE, data, SAFETENSORS, step=training.step)

    def _sample(self, step: int, captions: Captions) -> None:
        recipe = self._recipe
        drawn = sample(
            self._models,
            captions,
            recipe.sample_prompts or (),
            seed=recipe.seed,
            steps=20 if self._model.small else 30,
            edge=self._model.edge,
            wait_turn=self._wait_turn,
        )
        for place, pixels in enumerate(drawn):
            self._report.put(f"samples/{step:06d}-{place}.png", encode_png(pixels), PNG, step=step)

    def _curve(self, training: Training) -> None:
        curve = loss_curve(training.losses, f"{self._request.name}: loss by step")
        self._report.put("loss.png", curve, PNG, step=training.step)

    def _file_dtype(self) -> torch.dtype:
        return torch.float32 if self._recipe.mixed_precision == "no" else torch.float16

    # Study

    def _measured(
        self, made: Prepared, examples: Sequence[Example]
    ) -> tuple[list[Candidate], dict[int, float]]:
        """All kept checkpoints with their likeness: the share of the base's error that they take away."""
        steps = self._checkpoint_steps(made.training.steps)[-self._recipe.checkpoints_kept :]
        candidates = [Candidate(step, self._read(_checkpoint_name(step))) for step in steps]
        if not self._request.evaluate:
            return candidates, {}
        subject = [example for example in examples if not example.is_class]
        errors = Errors(self._models, Objective(self._models.scheduler_config, self._recipe), subject)
        shown = {one.example.digest: one for one in made.curriculum.shown}
        rows = [shown[example.digest] for example in errors.examples]
        if len({row.size for row in rows}) > 1:  # of one size, so that they are measured in one go
            common = max({row.size for row in rows}, key=[row.size for row in rows].count)
            rows = [row for row in rows if row.size == common]
            errors.examples = tuple(row.example for row in rows)
        drawn = made.latents.means([(row.example, row.crops[0]) for row in rows])
        time_ids = torch.tensor([row.crops[0].time_ids for row in rows])
        likeness: dict[int, float] = {}
        self._models.unets["base"].eval()
        with made.learned.wearing(made.learned.first_values):
            before = errors.of(drawn, made.captions, time_ids)
        for candidate in candidates:
            self._stop.check()
            with made.learned.wearing(made.learned.from_file(candidate.file)):
                after = errors.of(drawn, made.captions, time_ids)
            likeness[candidate.step] = 1 - after / before
        return candidates, likeness

    def _studied(
        self, candidates: Sequence[Candidate], subject: Sequence[Example], likeness: Mapping[int, float]
    ) -> Candidate:
        self._report.stage("evaluating")
        with Studio.opened(self._models, self._base, self._stop, self._wait_turn) as studio:
            studied: Studied = study(
                studio,
                candidates,
                subject,
                likeness,
                instance_prompts=self._instance_prompts(subject),
                pocket=self._model.is_pocket,
                edge=self._model.edge,
                num_inference_steps=12 if self._model.small else 30,
                ended=self._report.log,
            )
        self._report.put("card.json", studied.card.model_dump_json(indent=1).encode(), "application/json")
        self._report.put("contact-sheet.png", studied.sheet, PNG)
        for warning in studied.card.warnings:
            self._report.log(warning)
        return studied.chosen

    def _instance_prompts(self, subject: Sequence[Example]) -> list[str]:
        captions = list(dict.fromkeys(example.caption for example in subject if example.caption))
        return (captions or [self._request.instance_prompt or ""])[:3]

    def _checkpoint_steps(self, until: int) -> list[int]:
        """The steps up to this one that leave a checkpoint: every so many, and the last of all."""
        every, last = self._recipe.checkpoint_every or 1, self._recipe.max_train_steps or 1
        return [step for step in range(1, until + 1) if step % every == 0 or step == last]

    def _read(self, name: str) -> bytes:
        data = self._report.read(name)
        if data is None:
            raise NothingToLearn(f"the job's file '{name}' is gone")
        return data


class Pace:
    """Tells a report of steps, at most every half second, with the mean of what happened since."""

    def __init__(self, report: Report, steps: int) -> None:
        self._report, self._steps = report, steps
        self._told = time.monotonic()
        self._losses: list[float] = []

    def tell(self, done: StepDone) -> None:
        self._losses.append(done.loss)
        now = time.monotonic()
        seconds = now - self._told
        if seconds < REPORT_SECONDS and done.step < self._steps:
            return
        rate = len(self._losses) / max(seconds, 1e-9)
        self._report.progress(
            step=done.step,
            loss=sum(self._losses) / len(self._losses),
            learning_rate=done.learning_rate,
            steps_per_second=rate,
            eta_seconds=(self._steps - done.step) / rate,
        )
        self._told, self._losses = now, []


def class_prompts(request: TrainRequest) -> list[str]:
    """A prompt for each class picture: the alternatives that the class prompt gives between bars, in turn."""
    alternatives = [text.strip() for text in (request.class_prompt or "").split("|") if text.strip()]
    count = request.recipe.num_class_images or 0
    return [alternatives[place % len(alternatives)] for place in range(count)] if alternatives else []


def _checkpoint_name(step: int) -> str:
    return f"checkpoints/{step:06d}.safetensors"


def _pixels(png_bytes: Callable[[], bytes]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png_bytes())).convert("RGB"))
