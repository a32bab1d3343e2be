"""An order in the engine's hands: what of it waits, is on its way and is done, and what it has cost."""

import threading
import time
from collections import defaultdict, deque
from typing import Literal

from darkroom.types import Timings
from service.engine.conditioning import Conditioning
from service.engine.costs import Stage
from service.engine.orders import Done, Listener, Order, Picture


class Work:
    """One submitted order. It belongs to the engine's thread; others may only `cancel` it and read `cancelled`."""

    def __init__(self, order: Order, listener: Listener, number: int) -> None:
        self.order = order
        self.listener = listener
        self.number = number
        """Orders are numbered as they come."""
        self.waiting = deque(range(len(order.seeds)))
        """Indices of images that are not on their way yet."""
        self.active = 0
        """Images on their way."""
        self.conditioning: Conditioning | None = None
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
        """Whether every image is finished."""
        return len(self._pictures) == len(self.order.seeds)

    def begin(self) -> None:
        """Note that it waits no longer."""
        self._queue_seconds = time.perf_counter() - self._submitted_at

    def spend(self, stage: Stage | Literal["encode"], seconds: float) -> None:
        """Note its share of the device's time."""
        self._seconds[stage] += seconds

    def keep(self, picture: Picture) -> None:
        """Take a finished image in."""
        self._pictures[picture.index] = picture

    def done(self) -> Done:
        """The order's end, once it is complete."""
        assert self.conditioning is not None
        return Done(
            pictures=tuple(self._pictures[index] for index in sorted(self._pictures)),
            tokens=self.conditioning.tokens,
            timings=Timings(
                queue=self._queue_seconds,
                encode=self._seconds["encode"],
                base=self._seconds["base"],
                refiner=self._seconds["refiner"],
                decode=self._seconds["decode"],
                encode_image=0.0,
                total=time.perf_counter() - self._submitted_at,
            ),
        )
