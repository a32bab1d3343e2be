"""An engine that does what a test tells it to: it accepts orders, says nothing by itself, and remembers."""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from darkroom.types import PromptTokens, Timings, TokenCount, TokenReport
from service.adapters import Adapters
from service.engine.orders import Done, Event, Failed, Picture, Progress

TIMINGS = Timings(queue=0.1, encode=0.2, base=0.3, refiner=0.4, decode=0.5, encode_image=0.0, total=1.5)
_COUNT = PromptTokens(
    text_encoder=TokenCount(tokens=3, chunks=1), text_encoder_2=TokenCount(tokens=3, chunks=1)
)
TOKENS = TokenReport(prompt=_COUNT, negative_prompt=None)


@dataclass(eq=False)
class Work:
    """One order that the engine was given."""

    order: Any
    listener: Callable[[Event], None]
    adapters: Mapping[str, Any] = field(default_factory=dict)
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True

    def progress(self, index: int, step: int, steps: int) -> None:
        self.listener(Progress(index, step, steps))

    def fail(self, error: Exception) -> None:
        self.listener(Failed(error))

    def finish(self) -> None:
        """Every image done: noise, of the size and seeds of the order."""
        shape = (getattr(self.order, "height", 8), getattr(self.order, "width", 8), 3)
        pictures = tuple(
            Picture(index, seed, np.random.default_rng(seed).integers(0, 255, shape, np.uint8), 4, 1)
            for index, seed in enumerate(self.order.seeds)
        )
        self.listener(Done(pictures, TOKENS, TIMINGS))


def no_loras() -> Adapters:
    """What a service has whose requests name no LoRA."""

    def unasked() -> Any:
        raise AssertionError("no request names a LoRA")

    return Adapters(unasked, unasked, ThreadPoolExecutor(1))


@dataclass
class FakeEngine:
    """`seconds` is what every order costs that does not say so itself."""

    seconds: float = 1.0
    works: list[Work] = field(default_factory=list)
    refuses_with: Exception | None = None
    alive: bool = False
    closed: bool = False
    models: SimpleNamespace = field(
        default_factory=lambda: SimpleNamespace(
            name="fake",
            fingerprint="f" * 64,
            default_edge=64,
            has_refiner=True,
            dtype="torch.float32",
            device=SimpleNamespace(type="cpu"),
        )
    )

    @property
    def costs(self) -> SimpleNamespace:
        return SimpleNamespace(estimate=lambda order: getattr(order, "seconds", self.seconds))

    def submit(
        self, order: Any, listener: Callable[[Event], None], adapters: Mapping[str, Any] | None = None
    ) -> Work:
        if self.refuses_with is not None:
            raise self.refuses_with
        self.works.append(Work(order, listener, adapters or {}))
        return self.works[-1]

    def has_on_device(self, digest: str) -> bool:
        return False

    def start(self) -> None:
        self.alive = True

    def close(self) -> None:
        self.alive, self.closed = False, True

    def memory_bytes(self) -> int:
        return 0
