"""What work costs, learnt from what it has cost: seconds of the device per pixel evaluated."""

import threading
from typing import Literal

from service.engine import adherence
from service.engine.orders import Order

Stage = Literal["base", "refiner", "decode"]

_MEMORY = 0.1
"""Weight of the newest measurement in the running mean."""


class Costs:
    """Running means of seconds per pixel by stage; written by the engine's thread, read by any.

    Until the canary has been measured an order counts as nothing, and nothing is accepted before the canary.
    """

    def __init__(self) -> None:
        self._seconds_per_pixel: dict[Stage, float] = {}
        self._lock = threading.Lock()

    def learn(self, stage: Stage, pixels: int, seconds: float) -> None:
        """Note that `pixels` (rows × pixels of a row, or decoded pixels) took `seconds`."""
        measured = seconds / pixels
        with self._lock:
            known = self._seconds_per_pixel.get(stage, measured)
            self._seconds_per_pixel[stage] = known + _MEMORY * (measured - known)

    def forget(self) -> None:
        """Start learning anew."""
        with self._lock:
            self._seconds_per_pixel.clear()

    def seconds(self, stage: Stage, pixels: int) -> float:
        with self._lock:
            return pixels * self._seconds_per_pixel.get(stage, 0.0)

    def estimate(self, order: Order) -> float:
        """Seconds of the device that an order will take, were it alone."""
        rows = 2 if order.guided else 1
        base_share = 1.0 if order.hand_over is None else order.hand_over.denoising_end
        base_end = base_share * order.num_inference_steps
        first = 0 if order.start is None else order.start.step
        end = order.num_inference_steps if order.until is None else order.until
        one = self.of(
            order.pixels,
            base_rows=max(0.0, min(end, base_end) - first) * rows,
            refiner_rows=max(0.0, end - max(first, base_end)) * rows,
            pictures=int(order.until is None and order.question is None),
            judgements=int(order.question is not None),
        )
        return one * len(order.seeds)

    def of(
        self, pixels: int, *, base_rows: float, refiner_rows: float, pictures: int, judgements: int
    ) -> float:
        """Seconds of so many evaluations of either UNet, decoded pictures and scored ones, each of these pixels."""
        base_rows += judgements * adherence.STEPS * 2
        return (
            self.seconds("base", round(base_rows * pixels))
            + self.seconds("refiner", round(refiner_rows * pixels))
            + self.seconds("decode", pictures * pixels)
        )
