"""The contenders of `benchmarks.gpu`: the engine, plain diffusers, and diffusers as its documentation recommends."""

import copy
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch

from benchmarks import stock
from benchmarks.orders import files, pillow_files, run
from service.engine.engine import Engine
from service.engine.loras.arranged import Arranged
from service.engine.loras.weights import Weights
from service.engine.memory import MemoryProfile
from service.engine.models import Models
from service.engine.orders import Order, Progress

SETTLING_STEPS = 3
"""First steps of a job that are not counted into the time of a step."""


class Side(Protocol):
    """One way to make pictures on the device."""

    def job(self, order: Order) -> list[bytes]:
        """Prompt to encoded files."""

    def step_seconds(self, order: Order) -> float:
        """Of one step of an order without hand-over, after the first few."""

    def bypassed(self) -> Any:
        """A context in which the UNets cost nothing and answer their input."""

    def close(self) -> None:
        """Free what the side holds of the device."""


class EngineSide:
    """Darkroom's engine over its own copy of the UNets."""

    def __init__(
        self, models: Models, profile: MemoryProfile, *, compiling: dict[str, Any] | None = None
    ) -> None:
        if compiling is not None:
            for unet in models.unets.values():
                unet.compile_repeated_blocks(fullgraph=True, **compiling)
        self.models = models
        self.engine = Engine(models, profile, pad=compiling is not None)
        self.engine.start()

    def job(self, order: Order) -> list[bytes]:
        (done,) = run(self.engine, order)
        return files(order, done)

    def run(self, order: Order, adapters: Mapping[str, Arranged]) -> None:
        """An order with LoRAs, to pixels."""
        run(self.engine, order, adapters=adapters)

    def step_seconds(self, order: Order, adapters: Mapping[str, Arranged] | None = None) -> float:
        at: dict[int, float] = {}

        def note(progress: Progress) -> None:  # the engine has waited for the device before it says so
            at[progress.step] = time.perf_counter()

        run(self.engine, order, listening=note, adapters=adapters)
        last = order.num_inference_steps
        return (at[last] - at[SETTLING_STEPS]) / (last - SETTLING_STEPS)

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        unets = self.models.unets
        before = dict(unets)
        unets.update({name: Bypass(unet) for name, unet in before.items()})
        try:
            yield
        finally:
            unets.update(before)

    def close(self) -> None:
        self.engine.close()


@dataclass
class StockSide:
    """Stock pipelines and Pillow."""

    pipelines: stock.Stock
    settle: Callable[[], None]

    def job(self, order: Order) -> list[bytes]:
        return pillow_files(self.pipelines.pictures(order))

    def step_seconds(self, order: Order) -> float:
        started = 0.0

        def note(_pipeline: Any, step: int, _timestep: Any, given: dict[str, Any]) -> dict[str, Any]:
            nonlocal started
            if step == SETTLING_STEPS - 1:
                self.settle()
                started = time.perf_counter()
            return given

        self.pipelines.pictures(order, output_type="latent", callback_on_step_end=note)
        self.settle()
        return (time.perf_counter() - started) / (order.num_inference_steps - SETTLING_STEPS)

    @contextmanager
    def bypassed(self) -> Iterator[None]:
        both = (self.pipelines.base, self.pipelines.refiner)
        before = [pipeline.unet for pipeline in both]
        for pipeline, unet in zip(both, before, strict=True):
            pipeline.unet = Bypass(unet)
        try:
            yield
        finally:
            for pipeline, unet in zip(both, before, strict=True):
                pipeline.unet = unet

    def close(self) -> None:
        """Nothing runs on when a job is done."""


class Bypass(torch.nn.Module):
    """A UNet that costs nothing, for the time of everything else; it answers its input."""

    def __init__(self, unet: torch.nn.Module) -> None:
        super().__init__()
        self.config, self.dtype, self.device = unet.config, unet.dtype, unet.device
        self.add_embedding = unet.add_embedding  # pipelines ask it how long the time ids are

    def forward(self, sample: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        return (sample,)


def plain(models: Models, settle: Callable[[], None]) -> StockSide:
    """As a first script has it: half precision, and the VAE as published, which must be upcast in float16."""
    vae = _own(models.vae)
    vae.register_to_config(force_upcast=True)
    return StockSide(stock.from_models(models, unets=_own_unets(models), vae=vae), settle)


def recommended(
    models: Models, settle: Callable[[], None], *, compiling: dict[str, Any] | None = None
) -> StockSide:
    """As diffusers' documentation on speed has it: channels last, fused projections, a VAE that needs no upcast.

    With `compiling`, UNets and VAE decoder are compiled with these options of `torch.compile`.
    """
    pipelines = stock.from_models(models, unets=_own_unets(models), vae=_own(models.vae))
    for pipeline in (pipelines.base, pipelines.refiner):
        pipeline.unet.to(memory_format=torch.channels_last)
        pipeline.unet.fuse_qkv_projections()
    pipelines.base.vae.to(memory_format=torch.channels_last)
    pipelines.base.vae.fuse_qkv_projections()
    if compiling is not None:
        for pipeline in (pipelines.base, pipelines.refiner):
            pipeline.unet = torch.compile(pipeline.unet, fullgraph=True, **compiling)
        pipelines.base.vae.decode = torch.compile(pipelines.base.vae.decode, fullgraph=True, **compiling)
    return StockSide(pipelines, settle)


def engine_compiled(models: Models, profile: MemoryProfile, compiling: dict[str, Any]) -> EngineSide:
    """The engine with the UNets' repeated blocks compiled, over a copy of the UNets."""
    unets = {name: copy.deepcopy(unet) for name, unet in models.unets.items()}
    weights = {**models.weights, "unet": Weights("unet", unets["base"])}
    return EngineSide(replace(models, unets=unets, weights=weights), profile, compiling=compiling)


class TookTooLong(Exception):
    """A side was not ready in its time."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Raise `TookTooLong` in the main thread when the time is up; compiling has no time limit of its own."""

    def ring(_number: int, _frame: object) -> None:
        raise TookTooLong(f"not ready within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _own(module: Any) -> Any:
    """A copy in torch's default memory format, as `from_pretrained` leaves it."""
    return copy.deepcopy(module).to(memory_format=torch.contiguous_format)


def _own_unets(models: Models) -> dict[Any, Any]:
    return {name: _own(unet) for name, unet in models.unets.items()}
