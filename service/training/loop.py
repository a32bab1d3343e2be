"""The training loop: one page. What it learns from, learns, and is judged by are made before it and given to it.

Everything that a step draws at random comes from the seed and the step's number, and everything else is in the
checkpoint: a training that was stopped goes on to the very same weights.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from accelerate import Accelerator

from darkroom.types import TrainRecipe
from service.engine.models import Models
from service.training.checkpoint import Checkpoint
from service.training.data import Curriculum, Latents, Row
from service.training.errors import TrainingDiverged
from service.training.learned import Learned
from service.training.objective import Objective
from service.training.optimizers import optimizer_for, rate_factor


class Encoder(Protocol):
    """Captions to embeddings (B, 77, D) and pooled embeddings (B, P): frozen, or with gradients."""

    def encode(self, captions: list[str]) -> tuple[torch.Tensor, torch.Tensor]: ...


@dataclass(frozen=True)
class StepDone:
    """An optimiser step was made."""

    step: int
    loss: float
    learning_rate: float
    seconds: float


class Training:
    """Makes optimiser steps. `models` bear what is `learned`; `fingerprint` names the training in checkpoints."""

    def __init__(
        self,
        models: Models,
        learned: Learned,
        curriculum: Curriculum,
        latents: Latents,
        encoder: Encoder,
        recipe: TrainRecipe,
        *,
        fingerprint: str,
    ) -> None:
        assert recipe.train_batch_size is not None
        assert recipe.max_train_steps is not None
        self._models, self._unet = models, models.unets["base"]
        self._learned, self._curriculum, self._latents, self._encoder = learned, curriculum, latents, encoder
        self._recipe, self._fingerprint = recipe, fingerprint
        self.steps = recipe.max_train_steps
        self.step, self.losses = 0, []  # type: int, list[float]
        self._objective = Objective(models.scheduler_config, recipe)
        self._accelerator = Accelerator(
            mixed_precision=recipe.mixed_precision or "no", cpu=models.device.type == "cpu"
        )
        self._bare = optimizer_for(recipe, learned)
        self._optimizer: Any = self._accelerator.prepare(self._bare)
        self._rates = [group["lr"] for group in self._bare.param_groups]
        self._ema = (
            {name: value.clone() for name, value in learned.values().items()} if recipe.ema_decay else {}
        )
        self._unet.train()
        if recipe.gradient_checkpointing:
            self._unet.enable_gradient_checkpointing()

    def run(self, before_step: Callable[[], None] = lambda: None) -> Iterator[StepDone]:
        """All steps that are left. `before_step` may wait, or raise to end the training where it is.

        Raises:
            TrainingDiverged: the loss or its gradient is no number any more; nothing was learnt from that step.
        """
        while self.step < self.steps:
            before_step()
            began = time.perf_counter()
            rate = self._set_rates()
            loss = 0.0
            for micro in range(self._recipe.gradient_accumulation_steps):
                loss += self._backward(self.step * self._recipe.gradient_accumulation_steps + micro)
            self._check(loss)
            norm = self._accelerator.clip_grad_norm_(
                self._learned.parameters.values(), self._recipe.max_grad_norm
            )
            if self._accelerator.scaler is None:  # it leaves out steps of infinite gradients by itself
                self._check(norm)
            self._optimizer.step()
            self._optimizer.zero_grad()
            self.step += 1
            self.losses.append(loss)
            self._follow()
            yield StepDone(self.step, loss, rate, time.perf_counter() - began)

    def best_values(self) -> dict[str, torch.Tensor]:
        """What is to be published: the moving average where there is one, else the values as they are."""
        return self._ema or self._learned.values()

    def checkpoint(self) -> Checkpoint:
        scaler = self._accelerator.scaler
        return Checkpoint(
            step=self.step,
            learned=self._learned.values(),
            ema=self._ema,
            optimizer=self._bare.state_dict(),
            losses=self.losses,
            recipe=self._fingerprint,
            scale=scaler.get_scale() if scaler is not None else 0.0,
        )

    def go_on_from(self, checkpoint: Checkpoint) -> None:
        """Raises ValueError where it is a checkpoint of another training."""
        if checkpoint.recipe != self._fingerprint:
            raise ValueError("the checkpoint is of another training")
        self._learned.put(checkpoint.learned)
        self._ema = {name: checkpoint.ema[name].to(value.device) for name, value in self._ema.items()}
        self._bare.load_state_dict(checkpoint.optimizer)
        self.step, self.losses = checkpoint.step, list(checkpoint.losses)
        if (scaler := self._accelerator.scaler) is not None and checkpoint.scale:
            scaler.load_state_dict({**scaler.state_dict(), "scale": checkpoint.scale})

    def _backward(self, number: int) -> float:
        """Gradients of one batch; the loss that they are of, as its share of the step's."""
        rows = self._curriculum.batch(number)
        generator = torch.Generator().manual_seed(self._recipe.seed * 1_000_003 + number)
        noised = self._objective.noised(self._latents.draw(rows, generator), generator)
        device = self._models.device
        with self._accelerator.autocast():
            embeds, pooled = self._encoder.encode(self._captions(rows, generator))
            predicted = self._unet(
                noised.latents_BChw.to(device),
                noised.timesteps_B.to(device),
                embeds.to(device),
                added_cond_kwargs={
                    "text_embeds": pooled.to(device),
                    "time_ids": torch.tensor([row.crop.time_ids for row in rows], device=device),
                },
            ).sample
        weights = torch.tensor(
            [self._recipe.prior_loss_weight if row.example.is_class else 1.0 for row in rows]
        )
        loss, _ = self._objective.loss(predicted, noised, weights)
        share = loss / self._recipe.gradient_accumulation_steps
        self._accelerator.backward(share)
        return float(share.detach())

    def _captions(self, rows: list[Row], generator: torch.Generator) -> list[str]:
        dropped = torch.rand(len(rows), generator=generator) < self._recipe.caption_dropout
        return ["" if drop else row.example.caption for row, drop in zip(rows, dropped.tolist(), strict=True)]

    def _set_rates(self) -> float:
        factor = rate_factor(self._recipe, self.step)
        for group, rate in zip(self._bare.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor
        return float(self._bare.param_groups[0]["lr"])

    def _check(self, number: float) -> None:
        if not math.isfinite(number):
            self._optimizer.zero_grad()
            raise TrainingDiverged(self.step + 1)

    def _follow(self) -> None:
        if (decay := self._recipe.ema_decay) is not None:
            # Young averages follow fast, or they would remember the beginning for ever.
            weight = 1 - min(decay, (1 + self.step) / (10 + self.step))
            for name, value in self._learned.values().items():
                self._ema[name].lerp_(value, weight)
