"""Keeps watch over a running engine: the weights' sums at every look, the canary picture now and then."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Literal

import numpy as np
import structlog
import torch

from service.engine import canary
from service.engine.audit import Auditor
from service.engine.engine import Engine
from service.errors import DarkroomError, DeviceLent, EngineStopped

log = structlog.get_logger()

Watched = Literal["weights", "canary"]

PATIENCE_SECONDS = 1.5
"""How long a look waits for the engine to finish its step; the deployment's readiness probe waits for three seconds."""
CANARY_LEVELS = 2
"""A canary that shared its passes with other work may differ by a rounding, in levels of 255."""


class Guard:
    """Finds out whether the engine still has the weights that it loaded and makes the picture that it made at first.

    What is found is final: memory that has changed by itself is not to be trusted again.
    """

    def __init__(
        self,
        engine: Engine,
        first_picture_HWC: np.ndarray,
        *,
        audit_seconds: float,
        canary_seconds: float,
        observe: Callable[[Watched, bool], None] = lambda _what, _sound: None,
    ) -> None:
        self._engine = engine
        self._first_picture = first_picture_HWC
        self._audit_seconds, self._canary_seconds = audit_seconds, canary_seconds
        self._observe = observe
        self._auditor = engine.run(lambda: Auditor(engine.models)).result()
        self._looking = threading.Lock()
        self._audited_at = -float("inf")
        self._pictured_at = time.monotonic()
        self.damage: str | None = None
        """What is wrong, once something is."""
        observe("weights", True)
        observe("canary", True)

    def look(self) -> str | None:
        """The damage, looked for again where the last look is old enough; for any thread.

        It waits for the engine's step, 1.5 s at the most, and for the canary picture where that is due and nothing else
        is being made.
        """
        if self.damage is None and self._looking.acquire(blocking=False):
            try:
                self._look()
            finally:
                self._looking.release()
        return self.damage

    def _look(self) -> None:
        now = time.monotonic()
        if now - self._audited_at >= self._audit_seconds:
            self._audit()
            self._audited_at = now
        if self.damage is None and now - self._pictured_at >= self._canary_seconds and self._engine.idle:
            self._pictured_at = now
            self._picture()

    def _audit(self) -> None:
        try:
            asked = self._engine.run(self._auditor.inspect)
            try:
                found = asked.result(timeout=PATIENCE_SECONDS)
            finally:
                asked.cancel()  # so that looks during one long step do not all follow it
        except (FutureTimeoutError, torch.OutOfMemoryError, EngineStopped, DeviceLent):
            return  # it is in the middle of a long step, or of a large one, or lent, or gone; the next look will tell
        if not found.sound:
            self._declare(
                "weights", f"{len(found.damaged)} tensors are not as they were loaded", found.damaged[:5]
            )

    def _picture(self) -> None:
        try:
            picture = canary.picture(self._engine).pictures[0].pixels_HWC
        except (EngineStopped, DeviceLent):
            return  # which says nothing about the weights, and is found out by whoever asks the engine
        except DarkroomError as exc:
            self._declare("canary", f"the canary picture cannot be made any more: {exc}", ())
            return
        difference = int(np.abs(picture.astype(int) - self._first_picture.astype(int)).max())
        if difference > CANARY_LEVELS:
            self._declare("canary", f"the canary picture has changed by {difference} levels", ())

    def _declare(self, what: Watched, damage: str, tensors: tuple[str, ...]) -> None:
        self.damage = damage
        self._observe(what, False)
        log.error("weights found damaged", damage=damage, first=tensors)
