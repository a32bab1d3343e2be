"""Comparisons and who draws them, over a table in memory and an engine that does what a test tells it to."""

import asyncio
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from darkroom.types import CompareRequest, Comparison
from fake_engine import TIMINGS, TOKENS, FakeEngine, Work
from lora_registry import LoraVersion
from service.adapters import Adapters
from service.compare.drawing import Tools
from service.compare.runner import ComparisonRunner
from service.compare.table import ComparisonTable
from service.comparisons import Bounds, Comparisons
from service.engine.costs import Costs
from service.engine.orders import Done, Picture
from service.errors import UnknownLora
from service.metrics import Metrics
from service.runs import Runs
from service.store.database import connect, location
from service.store.files import files

SECONDS = 30.0
ENDED = ("succeeded", "failed", "cancelled")
QUICK = {"num_inference_steps": 2, "refiner": {"enabled": False}}


def draw(work: Work) -> None:
    """What an engine says at the end of an order for one image. The picture is noise, another for each seed."""
    order = work.order
    noise = np.random.default_rng(order.seeds[0]).integers(0, 255, (order.height, order.width, 3), np.uint8)
    pictures = () if order.until or order.question else (Picture(0, order.seeds[0], noise, 2, 0),)
    work.listener(
        Done(
            pictures,
            TOKENS,
            TIMINGS,
            snapshot=SimpleNamespace(step=order.until or order.num_inference_steps),
            adherence=0.25 if order.question else None,
        )
    )


@dataclass
class Easel(FakeEngine):
    """A FakeEngine that answers each order at once; what it costs is learnt, and nothing until then."""

    answer: Callable[[Work], None] = draw
    learnt: Costs = field(default_factory=Costs)

    @property
    def costs(self) -> Costs:
        return self.learnt

    def submit(self, order: Any, listener: Any, adapters: Mapping[str, Any] | None = None) -> Work:
        work = super().submit(order, listener, adapters)
        self.answer(work)
        return work


class Shelf(Adapters):
    """LoRAs by what they are called; they need no bytes, as nothing is drawn with them."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        super().__init__(self._none, self._none, threads)
        self.versions: dict[str, LoraVersion] = {}

    async def resolve(self, uses: Any) -> tuple[LoraVersion, ...]:
        for place, use in enumerate(uses):
            if use.ref not in self.versions:
                raise UnknownLora(f"LoRA '{use.ref}' was not found", pointer=f"/loras/{place}/ref")
        return tuple(self.versions[use.ref] for use in uses)

    async def fetch(self, loras: Any, engine: Any) -> Any:
        return SimpleNamespace(adapters={})

    @staticmethod
    def _none() -> Any:
        raise AssertionError("no file is asked for")


class Desk:
    """A table, an engine, what draws with it, and the use case in front of it."""

    def __init__(self, table: ComparisonTable, models: Any, threads: ThreadPoolExecutor) -> None:
        self.table, self.metrics = table, Metrics()
        self.engine = Easel(models=models)
        self.runs = Runs(max_queue_seconds=3600, metrics=self.metrics)
        self.adapters = Shelf(threads)
        self.tools = Tools(self.engine, self.runs, self.adapters, threads, {})
        self.woken, self.stopped, self.ended = 0, [], []
        self.scored: list[Any] = []
        self.comparisons = Comparisons(
            lambda: self.table,
            engine=lambda: self.engine,
            adapters=self.adapters,
            scored=lambda: self.scored,
            bounds=Bounds(max_cells=100, max_seconds=60),
            wake=self._wake,
            stop=self.stopped.append,
            metrics=self.metrics,
            poll_seconds=0.005,
        )

    def _wake(self) -> None:
        self.woken += 1

    def runner(self, **options: Any) -> ComparisonRunner:
        """One that looks often; `table` and `tools` may be others than the desk's."""
        table, tools = options.pop("table", lambda: self.table), options.pop("tools", lambda: self.tools)
        defaults = {"heartbeat_seconds": 0.01, "look_seconds": 0.01, "ended": self.ended.append}
        return ComparisonRunner(table, tools, **defaults | options)

    def order(self, **fields: Any) -> CompareRequest:
        """A comparison of a prompt and two seeds, of one arm where `fields` name none."""
        said = {"prompts": ("a red circle",), "seeds": (1, 2), "adherence": False, **fields}
        if not {"arms", "axes", "preset"} & said.keys():
            said["arms"] = ({"name": "plain"},)
        return CompareRequest.model_validate({**said, "base": {**QUICK, **fields.get("base", {})}})

    def create(self, **fields: Any) -> str:
        """The id of a new one."""
        return asyncio.run(self.comparisons.create(self.order(**fields)))[0].id

    def waited_for(self, id: str, condition: Callable[[Comparison], object] | None = None) -> Comparison:
        """It, once that holds, by default once it has ended."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            found = self.table.get(id)
            if condition(found) if condition else found.state in ENDED:
                return found
            time.sleep(0.005)
        raise AssertionError(f"still {found.state} ({found.stage}), {found.done} cells")


@contextmanager
def desk(migrated: Path, folder: Path, models: Any) -> Iterator[Desk]:
    """A desk of its own; `migrated` is an empty store in SQLite."""
    shutil.copy(migrated, folder)
    database = connect(location("", folder))
    with ThreadPoolExecutor(4) as threads:
        made = Desk(ComparisonTable(database, files("", folder)), models, threads)
        yield made
        made.comparisons.close()
    database.close()
