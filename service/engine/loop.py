"""The step loop: all trajectories advance by one step, in as few forward passes as their rows allow.

Mixed timesteps and prompts in one batch are exact, since a UNet treats the rows of its batch independently.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from service.engine.loras.stacks import Stack
from service.engine.memory import MemoryProfile
from service.engine.models import Models
from service.engine.rows import Row
from service.engine.trajectory import Trajectory
from service.errors import DarkroomError, OutOfDeviceMemory

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
"""Compiled code is kept for these batch sizes only; smaller groups are padded."""


@dataclass(frozen=True)
class Step:
    """What one step of a trajectory came to."""

    trajectory: Trajectory
    error: Exception | None


class StepLoop:
    """Advances trajectories by one step at a time.

    `pad` fills groups up to one of `BATCH_SIZES`, so that compiled code is reused. `observe_swap` is told the seconds
    of every change of the stack in force.
    """

    def __init__(
        self,
        models: Models,
        profile: MemoryProfile,
        *,
        pad: bool = False,
        observe_swap: Callable[[float], None] = lambda _seconds: None,
    ) -> None:
        self._models = models
        self._profile = profile
        self._pad = pad
        self._weights = models.weights["unet"]
        self._observe_swap = observe_swap

    def advance(self, trajectories: Sequence[Trajectory]) -> list[Step]:
        """Make one step of each. A pass that fails takes down only the trajectories that were in it."""
        asked = [(trajectory, trajectory.rows()) for trajectory in trajectories]
        answers: dict[int, torch.Tensor | Exception] = {}
        for group in self._groups(row for _, rows in asked for row in rows):
            predictions: Sequence[torch.Tensor | Exception]
            try:
                self._put_in_force(group[0])
                predictions = self._run(group)
            except (DarkroomError, RuntimeError) as exc:
                predictions = [exc] * len(group)
            answers.update({id(row): answer for row, answer in zip(group, predictions, strict=True)})
        return [
            Step(trajectory, _advance(trajectory, [answers[id(row)] for row in rows]))
            for trajectory, rows in asked
        ]

    def _groups(self, rows: Iterable[Row]) -> list[list[Row]]:
        """Rows of one kind together, no group larger than the memory profile allows; one stack after another."""
        kinds: dict[object, list[Row]] = {}
        for row in rows:
            kinds.setdefault(row.kind, []).append(row)
        groups: list[list[Row]] = []
        for same in self._by_stack(kinds.values()):
            size = max(1, min(self._profile.group_pixels // same[0].pixels, BATCH_SIZES[-1]))
            groups.extend(same[start : start + size] for start in range(0, len(same), size))
        return groups

    def _by_stack(self, kinds: Iterable[list[Row]]) -> list[list[Row]]:
        """Those of the stack in force first, so that two stacks that alternate cost one swap a step."""
        stacks: dict[Stack, list[list[Row]]] = {self._weights.in_force: []}
        for same in kinds:
            stacks.setdefault(same[0].stack, []).append(same)
        return [same for of_stack in stacks.values() for same in of_stack]

    def _put_in_force(self, row: Row) -> None:
        started = time.perf_counter()
        if row.unet == "base" and self._weights.apply(row.stack):
            if self._models.device.type == "cuda":
                torch.cuda.synchronize(self._models.device)
            self._observe_swap(time.perf_counter() - started)

    def _run(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        """Noise predictions of a group, each (1, C, h, w); where it does not fit, of its halves.

        Raises:
            OutOfDeviceMemory: a single row does not fit.
        """
        return halving(rows, self._forward, what="a UNet pass")

    def _forward(self, rows: Sequence[Row]) -> list[torch.Tensor]:
        size = next(size for size in BATCH_SIZES if size >= len(rows)) if self._pad else len(rows)
        batch = [*rows, *[rows[0]] * (size - len(rows))]
        device = self._models.device
        branches = [row.branch for row in batch]
        predicted_BCHW = self._models.unets[rows[0].unet](
            torch.cat([row.latents for row in batch]),
            torch.stack([row.timestep for row in batch]).to(device, non_blocking=True),
            encoder_hidden_states=torch.cat([branch.prompt_embeds for branch in branches]),
            added_cond_kwargs={
                "text_embeds": torch.cat([branch.pooled_prompt_embeds for branch in branches]),
                "time_ids": torch.cat([branch.time_ids for branch in branches]),
            },
            return_dict=False,
        )[0]
        return list(predicted_BCHW.split(1))[: len(rows)]


def _advance(trajectory: Trajectory, answers: Sequence[torch.Tensor | Exception]) -> Exception | None:
    """Make the trajectory's own step; what went wrong, if anything did."""
    noise_predictions = [answer for answer in answers if isinstance(answer, torch.Tensor)]
    if len(noise_predictions) < len(answers):
        return next(answer for answer in answers if isinstance(answer, Exception))
    try:
        trajectory.advance(noise_predictions)
    except (RuntimeError, ValueError) as exc:
        return exc
    return None


def halving(
    items: Sequence[Item], run: Callable[[Sequence[Item]], list[Result]], *, what: str
) -> list[Result]:
    """`run(items)`; where the device runs out of memory, of each half.

    Raises:
        OutOfDeviceMemory: a single item does not fit.
    """
    try:
        return run(items)
    except torch.OutOfMemoryError as exc:
        if len(items) == 1:
            raise OutOfDeviceMemory(
                f"{what} of a single image does not fit into the device's memory; ask for a smaller size"
            ) from exc
    # Outside the handler: the failed pass's tensors hang on the exception, and must go before the halves run.
    torch.cuda.empty_cache()
    middle = len(items) // 2
    return [*halving(items[:middle], run, what=what), *halving(items[middle:], run, what=what)]
