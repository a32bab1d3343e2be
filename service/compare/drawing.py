"""One comparison on its way: its steps are made once, batch by batch, its pictures measured and kept as they come."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from typing import Final, TypeVar

import numpy as np
import structlog
from PIL import Image

from darkroom.types import CompareCell
from lora_registry.errors import StorageUnavailable
from service import images
from service.adapters import Adapters
from service.compare.claims import ComparisonClaim
from service.compare.failures import BUSY, EVERYBODYS, problem_of
from service.compare.forest import Ready, Segment, alone
from service.compare.planning import Prepared
from service.engine.engine import Engine
from service.engine.loras.arranged import Arranged
from service.engine.orders import Done, Order, Picture
from service.engine.prompts import parse
from service.engine.snapshots import Snapshot
from service.measurements.pictures import distances, measured, pixels_digest
from service.reports.differences import difference_map
from service.reports.thumbnails import thumbnail
from service.runs import Runs
from service.translation import receipt_for

log = structlog.get_logger()

Scorer = Callable[[np.ndarray, str], Mapping[str, float]]
"""Measures a picture, uint8 (H, W, 3), against the prompt that it was to answer. Is called in threads."""
T = TypeVar("T")

AT_ONCE: Final = 2
"""Segments in the engine's hands: while one is handed over, the device works on the other."""
PATIENCE: Final = 20.0
"""How many times its estimate a segment may take, as others are served meanwhile."""
LEAST_PATIENCE_SECONDS: Final = 600.0
PIXELS_KEPT: Final = 100_000_000
"""Of pictures in memory, until they are held against the baseline's; others are read again."""
BUSY_SECONDS: Final = 2.0
TRIES: Final = 3
"""Of a store that cannot give a LoRA just now."""


@dataclass(frozen=True)
class Tools:
    """What pictures are drawn and measured with."""

    engine: Engine
    runs: Runs
    adapters: Adapters
    threads: Executor
    versions: dict[str, str]
    """Of the libraries, for receipts."""
    scorers: Sequence[Scorer] = ()
    made: Callable[[], object] = lambda: None
    """Is told of every picture that was drawn, however many cells it is the picture of."""


class Drawing:
    """Draws and measures what a claim's comparison still lacks."""

    def __init__(self, claim: ComparisonClaim, ready: Prepared, tools: Tools) -> None:
        self._claim, self._ready, self._tools = claim, ready, tools
        self._request = claim.comparison.request
        self._cells: dict[int, CompareCell] = {cell.index: cell for cell in claim.comparison.cells}
        self._evaluations: defaultdict[int, int] = defaultdict(int)
        self._seconds: defaultdict[int, float] = defaultdict(float)
        self._pixels: dict[int, np.ndarray] = {}
        self._pixels_kept = 0
        self._keeping: set[asyncio.Task[None]] = set()
        self.differences: dict[int, bytes] = {}
        """Small maps of where each picture differs from the baseline's, by cell, once they are measured."""

    async def draw(self) -> None:
        """Draw every cell that is not done yet; a failed one is drawn again.

        Raises:
            EngineStopped, WeightsDamaged, ModelLoading, Draining: nothing can be drawn now.
            LeaseLost: another process has the comparison.
            CatalogUnavailable, StorageFull, StorageUnavailable: nothing can be kept now.
        """
        wanted = [cell.index for cell in self._cells.values() if not self._is_whole(cell)]
        ready = Ready(self._ready.forest(wanted))
        try:
            while ready:
                await self._batch(ready)
            await self._kept()
        finally:
            for task in self._keeping:
                task.cancel()
            await asyncio.gather(*self._keeping, return_exceptions=True)

    async def measure(self) -> None:
        """Hold every picture against the baseline's of the same prompt and seed.

        Raises:
            LeaseLost, CatalogUnavailable, StorageFull, StorageUnavailable
        """
        done = {(c.arm, c.prompt, c.seed): c for c in self._cells.values() if c.state == "done"}
        baseline = self._claim.comparison.plan.baseline
        pairs = [
            (cell, base)
            for cell in done.values()
            if cell.arm != baseline and (base := done.get((baseline, cell.prompt, cell.seed)))
        ]
        held = await _all([self._in_thread(partial(self._hold_against, *pair)) for pair in pairs])
        found = {cell.index: one for (cell, _), one in zip(pairs, held, strict=True)}
        await self._in_thread(lambda: self._claim.measure(found))

    def _is_whole(self, cell: CompareCell) -> bool:
        """Its score is taken from latents that are gone after a restart."""
        scored = not self._request.adherence or "prompt_adherence" in cell.measurements
        return cell.state == "done" and scored

    async def _batch(self, ready: Ready) -> None:
        """All segments that bring the same into force; then the judge has its say on the pictures of them."""
        batch = ready.batch()
        ends = await _side_by_side([self._segment(segment, start) for segment, start in batch])
        judged = []
        for (segment, start), end in zip(batch, ends, strict=True):
            if not isinstance(end, Exception):
                ready.follow(segment, end)
                if segment.finished and self._request.adherence:
                    judged += [self._judge(cells, end) for cells in self._by_prompt(segment.finished)]
            elif segment.branches:  # which may be the fault of some of its cells only
                ready.add(
                    [alone(self._ready.ways[cell], cell, segment.start) for cell in segment.cells], start
                )
            else:
                await self._fail(segment, end)
        if judged:
            scores = await _side_by_side(judged)
            await self._kept()
            of_cells = {cell: score for of_one in scores for cell, score in of_one.items()}
            await self._in_thread(lambda: self._claim.measure(of_cells))

    async def _segment(self, segment: Segment, start: Snapshot | None) -> Snapshot | Exception:
        """Where it ended, or why it did not."""
        some = segment.cells[0]
        order = segment.order(self._ready.orders[some], start)
        try:
            done = await self._run(order)
        except EVERYBODYS:
            raise
        except Exception as exc:  # one cell's failure is told in its place, and is not the others'
            return exc
        owner = min(segment.cells)
        self._evaluations[owner] += segment.evaluations
        self._seconds[owner] += done.timings.base + done.timings.refiner + done.timings.decode
        if segment.finished:
            await self._keep_soon(segment, done.pictures[0])
        assert done.snapshot is not None
        return done.snapshot

    def _by_prompt(self, cells: Sequence[int]) -> list[list[int]]:
        """Arms that word the prompt otherwise may have one picture for two prompts."""
        found: defaultdict[str, list[int]] = defaultdict(list)
        for cell in cells:
            found[self._cells[cell].prompt].append(cell)
        return list(found.values())

    async def _judge(self, cells: Sequence[int], finished: Snapshot) -> dict[int, dict[str, float]]:
        """How well their picture fits the comparison's prompt, for cells of one prompt; nothing where that fails."""
        question = parse(self._cells[cells[0]].prompt)
        order = replace(
            self._ready.orders[cells[0]],
            prompt=question,
            negative_prompt=None,
            question=question,
            loras=(),
            start=finished,
            apart=True,
        )
        try:
            done = await self._run(order)
        except EVERYBODYS:
            raise
        except Exception as exc:  # then this measurement is absent, and the rest stands
            log.warning("a picture could not be scored", cell=cells[0], reason=str(exc))
            return {}
        assert done.adherence is not None
        return {cell: {"prompt_adherence": done.adherence} for cell in cells}

    async def _run(self, order: Order) -> Done:
        """The order's end, however long others keep the queue full."""
        tools = self._tools
        patience = max(LEAST_PATIENCE_SECONDS, PATIENCE * tools.engine.costs.estimate(order))

        async def fetch() -> Mapping[str, Arranged]:
            return (await tools.adapters.fetch(order.loras, tools.engine)).adapters

        failures = 0
        while True:
            try:
                events = tools.runs.events(
                    tools.engine, order, timeout_seconds=patience, fetch=fetch if order.loras else None
                )
                async with aclosing(events):
                    async for event in events:
                        if isinstance(event, Done):
                            return event
                raise AssertionError("the events of an order end in Done")
            except BUSY:
                await asyncio.sleep(BUSY_SECONDS)
            except StorageUnavailable:
                failures += 1
                if failures == TRIES:
                    raise
                await asyncio.sleep(BUSY_SECONDS)

    async def _keep_soon(self, segment: Segment, picture: Picture) -> None:
        """Have the picture encoded, measured and kept while the next ones are drawn; no more than a few wait for it."""
        await self._kept(leaving=2 * AT_ONCE)
        work = partial(self._keep, segment, picture)
        self._keeping.add(asyncio.create_task(self._in_thread(work)))

    async def _kept(self, leaving: int = 0) -> None:
        while len(self._keeping) > leaving:
            done, _ = await asyncio.wait(self._keeping, return_when=asyncio.FIRST_COMPLETED)
            self._keeping -= done  # and no others: a segment beside this one may have added to them meanwhile
            for task in done:
                task.result()

    def _keep(self, segment: Segment, picture: Picture) -> None:
        """In a thread: one picture as the picture of every cell that it is of."""
        self._tools.made()
        pixels = picture.pixels_HWC
        digest, small, found = pixels_digest(pixels), thumbnail(pixels), measured(pixels)
        scores: dict[str, dict[str, float]] = {}
        for place in segment.finished:
            cell, order = self._cells[place], self._ready.orders[place]
            if cell.prompt not in scores:
                scores[cell.prompt] = self._scores(pixels, cell.prompt)
            receipt = receipt_for(
                cell.request, order, picture, self._tools.engine.models, self._tools.versions
            )
            file = images.encode(pixels, cell.request.output, receipt)
            kept = cell.model_copy(
                update={
                    "state": "done",
                    "width": order.width,
                    "height": order.height,
                    "pixels_digest": digest,
                    "same_as": None if place == segment.finished[0] else segment.finished[0],
                    "evaluations": self._evaluations[place],
                    "seconds": self._seconds[place],
                    "measurements": {**found, **scores[cell.prompt]},
                    "receipt": receipt,
                    "problem": None,
                }
            )
            self._claim.keep(kept, file.data, small)
            self._cells[place] = kept
            if self._pixels_kept + pixels.nbytes <= PIXELS_KEPT:
                self._pixels[place] = pixels
                self._pixels_kept += pixels.nbytes if place == segment.finished[0] else 0

    def _scores(self, pixels: np.ndarray, prompt: str) -> dict[str, float]:
        found: dict[str, float] = {}
        for scorer in self._tools.scorers:
            try:
                found.update(scorer(pixels, prompt))
            except Exception as exc:  # then its measurement is absent, and the rest stands
                log.warning("a picture could not be scored", scorer=type(scorer).__name__, reason=str(exc))
        return found

    async def _fail(self, segment: Segment, error: Exception) -> None:
        problem = problem_of(error)
        if problem.code == "internal":
            log.error("a cell could not be drawn", comparison=self._claim.comparison.id, exc_info=error)
        for cell in segment.cells:
            await self._in_thread(partial(self._claim.fail, cell, problem))

    def _hold_against(self, cell: CompareCell, base: CompareCell) -> dict[str, float]:
        """In a thread: how far a picture is from the baseline's, in numbers and to look at; none where sizes differ."""
        pixels, others = self._pixels_of(cell.index), self._pixels_of(base.index)
        if found := distances(pixels, others):
            seen = thumbnail(difference_map(pixels, others))
            self._claim.put_file(f"differences/{cell.index}.webp", "image/webp", seen)
            self.differences[cell.index] = seen
        return found

    def _pixels_of(self, place: int) -> np.ndarray:
        if place in self._pixels:
            return self._pixels[place]
        with Image.open(BytesIO(self._claim.picture(place)), formats=["PNG"]) as image:
            return np.asarray(image.convert("RGB"))

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._tools.threads, work)


async def _all(works: Sequence[Coroutine[object, object, T]]) -> list[T]:
    """What each gives. As soon as one fails, or the caller is cancelled, the others are ended."""
    tasks = [asyncio.ensure_future(work) for work in works]
    if not tasks:
        return []
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()
        return [task.result() for task in tasks]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _side_by_side(works: Sequence[Coroutine[object, object, T]]) -> list[T]:
    """The same, `AT_ONCE` at a time and in their order."""
    slots = asyncio.Semaphore(AT_ONCE)

    async def in_turn(work: Coroutine[object, object, T]) -> T:
        try:
            async with slots:
                return await work
        finally:
            work.close()  # one that was never begun

    return await _all([in_turn(work) for work in works])
