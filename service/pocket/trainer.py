"""The loop that all three trainings share: pace, gradient step, moving average, log line, resumable state."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .config import Pace
from .team import Team


def learning_rate(pace: Pace, step: int, progress: float) -> float:
    """A linear rise over `warmup_steps`, then half a cosine over `progress` 0..1 to `floor` of the peak."""
    rise = min(1.0, (step + 1) / pace.warmup_steps)
    fall = pace.floor + (1 - pace.floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return pace.learning_rate * rise * fall


class Trainer:
    """Trains `parameters` at a `pace`; iterate over it, and call `update` with the loss of each step.

    Its state (weights, moving average, Adam's moments, step, seconds) is saved to `state` at every
    `save_seconds`, so that a stopped training goes on where it was. The random numbers of a step depend on
    seed, rank and step alone.
    """

    def __init__(
        self,
        name: str,
        parameters: dict[str, torch.nn.Parameter],
        pace: Pace,
        team: Team,
        state: Path,
        *,
        seed: int,
        save_seconds: float,
        log_steps: int,
    ) -> None:
        self.name, self.pace, self.team, self.state = name, pace, team, state
        self.names, self.parameters = list(parameters), list(parameters.values())
        self.seed, self.save_seconds, self.log_steps = seed, save_seconds, log_steps
        plain = [p for n, p in parameters.items() if p.ndim < 2 or "embedding" in n]
        decayed = [p for n, p in parameters.items() if not (p.ndim < 2 or "embedding" in n)]
        # Embeddings do not decay: the rows of spare tokens must stay as they were drawn.
        groups = [{"params": decayed, "weight_decay": 1e-2}, {"params": plain, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=pace.learning_rate, betas=(0.9, 0.99), fused=True)
        for parameter in self.parameters:
            # Encoder 1's last layer is beyond the penultimate state and never gets a gradient.
            parameter.grad = torch.zeros_like(parameter)
        self.average = [p.detach().clone() for p in self.parameters]
        self.step, self.seconds = 0, 0.0
        self.losses: list[float] = []
        if state.exists():
            self._load()

    def __iter__(self) -> Iterator[torch.Generator]:
        """A freshly seeded generator for each step that is left to train."""
        began, saved = time.monotonic() - self.seconds, time.monotonic()
        while True:
            # The team's mean of the clock, so that all processes stop at the same step.
            (self.seconds,) = self.team.average([], [time.monotonic() - began])
            limit = self.pace.seconds
            self.progress = max(self.step / self.pace.steps, self.seconds / limit if limit else 0.0)
            if self.progress >= 1.0:
                break
            yield torch.Generator().manual_seed((self.seed * 1_000_003 + self.step) * 64 + self.team.rank)
            if self.team.leads and time.monotonic() - saved > self.save_seconds:
                self.save()
                saved = time.monotonic()
        if self.team.leads:
            self.save()
        self.team.wait()

    def update(self, loss: torch.Tensor, **figures: float) -> None:
        """One step down the gradient of `loss`; `figures` are averaged and logged beside it."""
        rate = learning_rate(self.pace, self.step, self.progress)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=False)
        loss.backward()
        seen = self.team.average(self.parameters, [loss.item(), *figures.values()])
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        decay = min(self.pace.ema_decay, (self.step + 1) / (self.step + 10))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)
        self.losses.append(seen[0])
        if self.team.leads and self.step % self.log_steps == 0:
            recent = self.losses[-self.log_steps :]
            mean = sum(recent) / len(recent)
            more = " ".join(f"{k} {v:.4f}" for k, v in zip(figures, seen[1:], strict=True))
            pace = f"{self.seconds:.0f} s, {self.seconds / self.step:.3f} s a step"
            print(
                f"{self.name} step {self.step} ({self.progress:.0%}, {pace}): loss {mean:.4f} {more} "
                f"norm {norm:.2f} rate {rate:.1e}",
                flush=True,
            )

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model wears its moving average inside this context, and its own weights again after it."""
        own = [p.detach().clone() for p in self.parameters]
        with torch.no_grad():
            for parameter, average in zip(self.parameters, self.average, strict=True):
                parameter.copy_(average)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self.parameters, own, strict=True):
                    parameter.copy_(weight)

    def save(self) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
            moments = self.optimiser.state[parameter]
            tensors[f"weight.{name}"] = parameter.detach().contiguous()
            tensors[f"average.{name}"] = average.contiguous()
            tensors[f"first.{name}"] = moments["exp_avg"].contiguous()
            tensors[f"second.{name}"] = moments["exp_avg_sq"].contiguous()
        self.state.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.state.with_suffix(".new")
        save_file(tensors, fresh, {"step": str(self.step), "seconds": str(self.seconds)})
        fresh.replace(self.state)

    def _load(self) -> None:
        with safe_open(self.state, "pt") as saved, torch.no_grad():
            facts = saved.metadata()
            self.step, self.seconds = int(facts["step"]), float(facts["seconds"])
            for name, parameter, average in zip(self.names, self.parameters, self.average, strict=True):
                parameter.copy_(saved.get_tensor(f"weight.{name}"))
                average.copy_(saved.get_tensor(f"average.{name}"))
                self.optimiser.state[parameter] = {
                    "step": torch.tensor(float(self.step)),
                    "exp_avg": saved.get_tensor(f"first.{name}").to(parameter.device),
                    "exp_avg_sq": saved.get_tensor(f"second.{name}").to(parameter.device),
                }
