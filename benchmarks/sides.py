"""The contenders of `benchmarks.cpu`, each prepared in a process of its own (`apart`)."""

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from benchmarks import stock
from benchmarks.orders import run
from benchmarks.quiet import quiet
from darkroom.types import GenerateRequest
from service import pocket
from service.engine import memory, models, presets
from service.engine.engine import Engine
from service.engine.orders import Order
from service.settings import Settings
from service.wiring import build

Pixels = list[np.ndarray]
_CPU = torch.device("cpu")


def engine() -> Callable[[tuple[Order, ...]], Pixels]:
    """The engine on the pocket model, without HTTP: all orders at once, prompt to pixels."""
    quiet()
    engine = Engine(models.load(presets.POCKET, device=_CPU, dtype=torch.float32), memory.PROFILES["24"])
    engine.start()

    def work(orders: tuple[Order, ...]) -> Pixels:
        return [picture.pixels_HWC for done in run(engine, *orders) for picture in done.pictures]

    return work


def plain() -> Callable[[Order], Pixels]:
    """Stock diffusers over the same files: every seed of the order in one call, prompt to pixels."""
    quiet()
    pipelines = stock.from_folders(
        pocket.WEIGHTS / "base", pocket.WEIGHTS / "refiner", dtype=torch.float32, device=_CPU
    )
    return lambda order: [np.asarray(picture) for picture in pipelines.pictures(order)]


def direct() -> Callable[[GenerateRequest], Any]:
    """The built service without its HTTP: `Generation.generate`, request to encoded files."""
    quiet()
    components = build(Settings(model="pocket", offline=True, max_queue_seconds=3600))
    components.start()
    runner = asyncio.Runner()

    async def until_ready() -> None:
        while not components.ready().ready:
            if not components.alive():
                raise RuntimeError(f"the service could not start: {components.ready().reason}")
            await asyncio.sleep(0.05)

    async def generate(request: GenerateRequest) -> None:
        await components.generation.generate(request)

    runner.run(until_ready())
    return lambda request: runner.run(generate(request))
