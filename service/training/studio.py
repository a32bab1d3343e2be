"""The engine in a training's own process: bad pictures, class pictures, and the study of what was learnt are made by
the very code that serves.
"""

import hashlib
import io
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch

from darkroom.types import GenerateRequest, LoraScope
from lora_registry import BaseModel
from lora_registry.inspection import plan
from service.engine import memory
from service.engine.engine import Engine
from service.engine.loras import files
from service.engine.loras.arranged import Arranged, arrange
from service.engine.loras.stacks import EMPTY
from service.engine.models import Models
from service.engine.orders import Done, Event, Failed, LoraOrder
from service.errors import IncompatibleLora
from service.training.report import Stop
from service.translation import order_from

AT_ONCE: Final = 16
"""Orders that are handed to the engine together."""


@dataclass(frozen=True)
class Worn:
    """A LoRA that was not published yet, and how it is used."""

    adapter: Arranged
    weight: float = 1.0
    scope: LoraScope = "both"


class Studio:
    """Makes pictures, one call at a time. `opened` closes it again and leaves the models pristine."""

    def __init__(self, engine: Engine, base: BaseModel, stop: Stop, wait_turn: Callable[[], None]) -> None:
        self._engine, self._base, self._stop, self._wait_turn = engine, base, stop, wait_turn

    @classmethod
    @contextmanager
    def opened(
        cls, models: Models, base: BaseModel, stop: Stop, wait_turn: Callable[[], None] = lambda: None
    ) -> Iterator["Studio"]:
        """A studio with an engine of its own on these models, which nobody else may use meanwhile.

        `wait_turn` is called between its steps, and may take as long as others need the device.
        """
        profile = memory.profile_for("auto", models.device)
        engine = Engine(models, profile, observe_step=lambda _unet, _seconds: wait_turn())
        engine.start()
        try:
            yield cls(engine, base, stop, wait_turn)
            engine.run(lambda: [weights.apply(EMPTY) for weights in models.weights.values()]).result()
        finally:
            engine.close()

    def worn(self, file: bytes, *, weight: float = 1.0, scope: LoraScope = "both") -> Worn:
        """A LoRA file ready to be worn. Raises IncompatibleLora: it is not for this model."""
        header, found = plan(io.BytesIO(file), len(file), (self._base,))
        if not found.accepted:
            raise IncompatibleLora("; ".join(reason.message for reason in found.reasons))
        models = self._engine.models
        digest = f"sha256:{hashlib.sha256(file).hexdigest()}"
        adapter = files.read(digest, io.BytesIO(file), header, found, dtype=models.dtype)
        return Worn(arrange(adapter, models.layout), weight, scope)

    def draw(self, requests: Sequence[GenerateRequest], worn: Worn | None = None) -> list[np.ndarray]:
        """The first picture of each request, uint8 (H, W, 3). Equal calls give equal pictures, to the bit.

        Raises:
            Stopped: the job is to end. DarkroomError: what the engine failed with.
        """
        pictures: list[np.ndarray] = []
        for first in range(0, len(requests), AT_ONCE):
            self._wait_turn()
            self._stop.check()
            pictures += self._together(requests[first : first + AT_ONCE], worn)
        return pictures

    def _together(self, requests: Sequence[GenerateRequest], worn: Worn | None) -> list[np.ndarray]:
        events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
        # Pictures that share a forward pass are rounded together: all must be there before the first step is made.
        all_in = threading.Event()
        self._engine.run(all_in.wait)
        for place, request in enumerate(requests):
            order = order_from(request, self._engine.models, first_seed=request.seed or 0)
            adapters = {}
            if worn is not None and worn.weight:
                digest = worn.adapter.digest
                lora = LoraOrder("trained@0", "trained", digest, weight=worn.weight, scope=worn.scope)
                order, adapters = replace(order, loras=(lora,)), {digest: worn.adapter}

            def hear(event: Event, place: int = place) -> None:
                events.put((place, event))

            self._engine.submit(order, hear, adapters)
        all_in.set()
        done: dict[int, np.ndarray] = {}
        while len(done) < len(requests):
            place, event = events.get()
            if isinstance(event, Failed):
                raise event.error
            if isinstance(event, Done):
                done[place] = event.pictures[0].pixels_HWC
        return [done[place] for place in range(len(requests))]


def as_tensor(pictures: Sequence[np.ndarray]) -> torch.Tensor:
    """uint8 pictures (N, H, W, 3) of one size as a tensor, to be kept in a safetensors file."""
    return torch.from_numpy(np.ascontiguousarray(np.stack(pictures)))
