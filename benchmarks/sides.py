"""The contenders of `benchmarks.cpu`, each prepared in a process of its own (`apart`)."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from benchmarks import stock
from benchmarks.orders import run
from benchmarks.quiet import quiet
from darkroom.types import GenerateRequest
from service import pocket
from service.engine.orders import Order
from service.settings import Settings
from service.wiring import build

Pixels = list[np.ndarray]


@contextmanager
def darkroom(threads: int | None) -> Iterator[Callable[[GenerateRequest | tuple[Order, ...]], Pixels]]:
    """The service's parts without HTTP, brought up as the service brings them up.

    A request goes through `Generation`, to encoded files; orders go to the engine, all at once, to pixels.
    """
    quiet()
    components = build(
        Settings(model="pocket", offline=True, threads=threads, max_queue_seconds=3600, timeout_seconds=600)
    )
    components.start()
    while not components.ready().ready:
        if not components.alive():
            raise RuntimeError(f"the engine could not start: {components.ready().reason}")
        time.sleep(0.05)
    runner = asyncio.Runner()

    def work(job: GenerateRequest | tuple[Order, ...]) -> Pixels:
        if isinstance(job, GenerateRequest):
            runner.run(components.generation.generate(job))
            return []
        return [picture.pixels_HWC for done in run(components.engine(), *job) for picture in done.pictures]

    try:
        yield work
    finally:
        components.close()


@contextmanager
def plain(threads: int | None) -> Iterator[Callable[[Order], Pixels]]:
    """Stock diffusers over the same files: every seed of the order in one call, prompt to pixels."""
    quiet()
    if threads:
        torch.set_num_threads(threads)
    pipelines = stock.from_folders(
        pocket.WEIGHTS / "base",
        pocket.WEIGHTS / "refiner",
        dtype=torch.float32,
        device=torch.device("cpu"),
    )
    yield lambda order: [np.asarray(picture) for picture in pipelines.pictures(order)]
