"""An order in the engine's hands: what of it waits, is on its way and is done, and what it has cost."""

import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from typing import Literal

from darkroom.types import Timings
from service.engine.conditioning import Conditioning
from service.engine.costs import Stage
from service.engine.loras.arranged import Arranged
from service.engine.loras.stacks import Stacks, TextInForce
from service.engine.orders import Done, Listener, Order, Picture
from service.engine.snapshots import Snapshot


class Work:
    """One submitted order. It belongs to the engine's thread; others may only `cancel` it and read `cancelled`."""

    def __init__(
        self, order: Order, listener: Listener, number: int, adapters: Mapping[str, Arranged]
    ) -> None:
        self.order = order
        self.adapters = adapters
        """By digest, in the host's memory; held until the order ends, whatever is evicted meanwhile."""
        self.listener = listener
        self.number = number
        """Orders are numbered as they come."""
        self.waiting = deque(range(len(order.seeds)))
        """Indices of images that are not on their way yet."""
        self.active = 0
        """Images on their way."""
        self.stacks: Stacks | None = None
        """Once the adapters are on the device."""
        self.question: Conditioning | None = None
        """Of the prompt that the image is scored by, where the order asks."""
        self._snapshot: Snapshot | None = None
        self._adherence: float | None = None
        self._conditionings: dict[tuple[TextInForce, TextInForce], Conditioning] = {}
        self._pictures: dict[int, Picture] = {}
        self._seconds: defaultdict[Stage | Literal["encode"], float] = defaultdict(float)
        self._submitted_at = time.perf_counter()
        self._queue_seconds = 0.0
        self._cancelled = threading.Event()

    def cancel(self) -> None:
        """Free the order's trajectories before their next step. Idempotent, from any thread, in any state."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    @property
    def complete(self) -> bool:
        """Whether every image has come to the end that the order wants of it."""
        return not (self.waiting or self.active)

    def begin(self) -> None:
        """Note that it waits no longer."""
        self._queue_seconds = time.perf_counter() - self._submitted_at

    def is_conditioned(self, in_force: tuple[TextInForce, TextInForce]) -> bool:
        """Whether that conditioning is there."""
        return in_force in self._conditionings

    def condition(self, in_force: tuple[TextInForce, TextInForce], conditioning: Conditioning) -> None:
        """Take in the conditioning for what is in force for the two prompts."""
        self._conditionings[in_force] = conditioning

    def conditioning(self, cond: TextInForce, uncond: TextInForce) -> Conditioning:
        """The conditioning for what is in force for the two prompts."""
        return self._conditionings[cond, uncond]

    def spend(self, stage: Stage | Literal["encode"], seconds: float) -> None:
        """Note its share of the device's time."""
        self._seconds[stage] += seconds

    def keep(self, picture: Picture) -> None:
        """Take a finished image in."""
        self._pictures[picture.index] = picture

    def stop_at(self, snapshot: Snapshot, adherence: float | None) -> None:
        """Take in how far its image got, and its score."""
        self._snapshot, self._adherence = snapshot, adherence

    def done(self) -> Done:
        """The order's end, once it is complete."""
        conditioning = next(iter(self._conditionings.values()))
        return Done(
            pictures=tuple(self._pictures[index] for index in sorted(self._pictures)),
            tokens=conditioning.tokens,
            timings=Timings(
                queue=self._queue_seconds,
                encode=self._seconds["encode"],
                base=self._seconds["base"],
                refiner=self._seconds["refiner"],
                decode=self._seconds["decode"],
                encode_image=0.0,
                total=time.perf_counter() - self._submitted_at,
            ),
            snapshot=self._snapshot,
            adherence=self._adherence,
        )
