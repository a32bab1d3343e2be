"""Comparisons are drawn here, one after another, in a thread with an event loop of its own.

They are rows: one that a dead process has left behind is taken up by whoever looks next, this one after a restart or
another replica, and goes on with the cells that are not done.
"""

import asyncio
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

import structlog

from darkroom.types import Comparison, Problem
from lora_registry.errors import CatalogUnavailable, RegistryError, StorageFull, StorageUnavailable
from service.compare.claims import ComparisonClaim
from service.compare.drawing import Drawing, Tools
from service.compare.failures import EVERYBODYS, problem_of
from service.compare.findings import files, found
from service.compare.pinning import unpinned
from service.compare.planning import prepared
from service.compare.table import ComparisonTable
from service.errors import DarkroomError
from service.store.errors import LeaseLost

log = structlog.get_logger()

LEASE_SECONDS: Final = 30.0
HEARTBEAT_SECONDS: Final = 2.0
LOOK_SECONDS: Final = 5.0
"""Between two looks for comparisons that others have left; one of this process is heard of at once."""

CLEAN_SECONDS: Final = 3600.0
LONGEST_PAUSE_SECONDS: Final = 60.0
WAITING: Final = (*EVERYBODYS, CatalogUnavailable, StorageFull, StorageUnavailable)
"""Nothing is wrong with the comparison: it is let go of, and taken up again."""


class ComparisonRunner:
    """`start` it, `wake` it, `close` it. `table` and `tools` may raise while there is no database, or no engine.

    `ended` is told of every comparison that came to an end here; `clean_up` is called now and then, in a thread, while
    there is nothing to draw.
    """

    def __init__(
        self,
        table: Callable[[], ComparisonTable],
        tools: Callable[[], Tools],
        *,
        ended: Callable[[Comparison], object] = lambda _comparison: None,
        clean_up: Callable[[], object] = lambda: None,
        lease_seconds: float = LEASE_SECONDS,
        heartbeat_seconds: float = HEARTBEAT_SECONDS,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._table, self._tools, self._ended, self._clean_up = table, tools, ended, clean_up
        self._cleaned_at = time.monotonic()
        self._lease_seconds, self._heartbeat_seconds = lease_seconds, heartbeat_seconds
        self._look_seconds = look_seconds
        self._holder = f"{socket.gethostname()}/{os.getpid()}"
        self._loop: asyncio.AbstractEventLoop | None = None
        self._woken = asyncio.Event()
        self._closing = threading.Event()
        self._cancelled: set[str] = set()
        self._working: asyncio.Task[None] | None = None
        self._thread = threading.Thread(target=self._run, name="comparisons", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """There is something to do. From any thread."""
        self._call(self._woken.set)

    def cancel(self, comparison_id: str) -> None:
        """Its end was asked for: stop at once, where it is drawn here. From any thread."""
        self._call(lambda: self._stop(comparison_id))

    def drain(self) -> None:
        """Begin no other comparison, and leave the present one to whoever comes next."""
        self._closing.set()
        self._call(self._leave)

    def close(self) -> None:
        """Drain, and wait until the present comparison is let go of."""
        self.drain()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, what: Callable[[], object]) -> None:
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(what)

    def _stop(self, comparison_id: str) -> None:
        self._cancelled.add(comparison_id)
        self._woken.set()

    def _leave(self) -> None:
        self._woken.set()
        if self._working is not None:
            self._working.cancel()

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except RuntimeError:
            # Where the interpreter goes, its pools of threads went before.
            if threading.main_thread().is_alive():
                raise

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._closing.is_set():
            self._woken.clear()
            claim = await asyncio.to_thread(self._claimed)
            if claim is None:
                await asyncio.to_thread(self._clean)
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._look_seconds):
                        await self._woken.wait()
                continue
            if self._closing.is_set():
                await self._let_go(claim)
                return
            self._cancelled.clear()
            self._working = asyncio.create_task(self._work(claim))
            with suppress(asyncio.CancelledError):
                await self._working
            self._working = None

    def _claimed(self) -> ComparisonClaim | None:
        """In a thread: the next comparison for the resident model, if there are a model and a database."""
        try:
            model = self._tools().engine.models.fingerprint
            return self._table().claim_next(
                holder=self._holder, lease_seconds=self._lease_seconds, model=model
            )
        except (DarkroomError, RegistryError) as exc:
            log.debug("no comparison can be begun now", reason=str(exc))
        except Exception as exc:  # the edge of a thread: without it no comparison would be begun ever again
            log.error("no comparison could be begun", exc_info=exc)
        return None

    def _clean(self) -> None:
        """In a thread, now and then: what is kept no longer goes."""
        if time.monotonic() - self._cleaned_at < CLEAN_SECONDS:
            return
        self._cleaned_at = time.monotonic()
        try:
            self._clean_up()
        except (DarkroomError, RegistryError) as exc:
            log.warning("what is kept no longer could not be removed", reason=str(exc))
        except Exception as exc:  # as above
            log.error("what is kept no longer could not be removed", exc_info=exc)

    async def _work(self, claim: ComparisonClaim) -> None:
        """One comparison, until it has ended or is another's to go on with."""
        comparison_id = claim.comparison.id
        log.info("comparison began", comparison=comparison_id, attempt=claim.comparison.attempts)
        stopping = asyncio.Event()
        beating = asyncio.create_task(self._beat(claim, stopping))
        try:
            await self._until_stopped(claim, stopping, beating)
        except LeaseLost as exc:
            log.warning("comparison was taken over", comparison=comparison_id, reason=str(exc))
        except WAITING as exc:
            log.warning("comparison must wait", comparison=comparison_id, reason=str(exc))
            await self._let_go(claim)
            if not self._closing.is_set():
                await asyncio.sleep(self._pause_seconds(claim))
        except asyncio.CancelledError:
            await self._let_go(claim)
            raise
        except Exception as exc:  # no second attempt would fare better, and others wait behind it
            log.error("comparison broke off", comparison=comparison_id, exc_info=exc)
            await self._broken(claim, exc)
        finally:
            await _ended(beating)

    async def _until_stopped(
        self, claim: ComparisonClaim, stopping: asyncio.Event, beating: "asyncio.Task[None]"
    ) -> None:
        """Draw, measure and finish; once its end was asked for, finish with what is there."""
        asked = asyncio.create_task(stopping.wait())
        drawing = asyncio.create_task(self._drawn(claim))
        try:
            await asyncio.wait({drawing, asked, beating}, return_when=asyncio.FIRST_COMPLETED)
            if beating.done():  # the lease is gone
                beating.result()
            if drawing.done():
                drawing.result()
                return
            await _ended(drawing)
            await self._told(claim, {}, cancelled=True)
        finally:
            await _ended(asked)
            await _ended(drawing)

    async def _beat(self, claim: ComparisonClaim, stopping: asyncio.Event) -> None:
        """Renew the lease to the end, and say when the comparison's end is asked for.

        Raises:
            LeaseLost, or what the database says at last: it was not renewed for as long as it holds.
        """
        renewed_at = time.monotonic()
        while True:
            if claim.comparison.id in self._cancelled:
                stopping.set()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._heartbeat_seconds):
                    self._woken.clear()
                    await self._woken.wait()
            try:
                if await asyncio.to_thread(claim.renew):
                    stopping.set()
                renewed_at = time.monotonic()
            except RegistryError as exc:
                if time.monotonic() - renewed_at > self._lease_seconds:
                    raise
                log.warning("a lease was not renewed", comparison=claim.comparison.id, reason=str(exc))

    def _pause_seconds(self, claim: ComparisonClaim) -> float:
        """Longer each time: what stands in the way of one stands in the way of all, and is not asked every second."""
        return min(self._heartbeat_seconds * 2.0 ** min(claim.comparison.attempts, 6), LONGEST_PAUSE_SECONDS)

    async def _drawn(self, claim: ComparisonClaim) -> None:
        tools = self._tools()
        versions = unpinned(claim.pinned)
        ready = await asyncio.to_thread(prepared, claim.comparison.cells, versions, tools.engine.models)
        drawing = Drawing(claim, ready, tools)
        await asyncio.to_thread(claim.stage, "drawing")
        await drawing.draw()
        await asyncio.to_thread(claim.stage, "measuring")
        await drawing.measure()
        await self._told(claim, drawing.differences, cancelled=False)

    async def _told(
        self, claim: ComparisonClaim, differences: Mapping[int, bytes], *, cancelled: bool
    ) -> None:
        """Say what was found in the cells that are there, and end it."""
        ended = await asyncio.to_thread(self._finish, claim, differences, cancelled)
        log.info("comparison ended", comparison=ended.id, state=ended.state, cells=ended.done)
        self._ended(ended)

    def _finish(
        self, claim: ComparisonClaim, differences: Mapping[int, bytes], cancelled: bool
    ) -> Comparison:
        """In a thread."""
        comparison = self._table().get(claim.comparison.id)
        done = [cell for cell in comparison.cells if cell.state == "done"]
        if not done:
            problem = None if cancelled else _nothing_drawn(comparison)
            return claim.finish("cancelled" if cancelled else "failed", problem=problem)
        findings = found(comparison, cancelled=cancelled)
        said = {
            "state": "cancelled" if cancelled else "succeeded",
            "stage": comparison.stage if cancelled else "done",
            "verdicts": list(findings.verdicts),
            "conclusion": findings.conclusion,
            "warnings": list(findings.warnings),
        }
        thumbnails = {cell.index: claim.thumbnail(cell.index) for cell in done}
        for file in files(comparison.model_copy(update=said), thumbnails, differences):
            claim.put_file(*file)
        return claim.finish(
            "cancelled" if cancelled else "succeeded",
            verdicts=findings.verdicts,
            conclusion=findings.conclusion,
            warnings=findings.warnings,
        )

    async def _let_go(self, claim: ComparisonClaim) -> None:
        with suppress(DarkroomError, RegistryError):  # then its lease runs out, which comes to the same
            await asyncio.to_thread(claim.release)

    async def _broken(self, claim: ComparisonClaim, error: Exception) -> None:
        problem = problem_of(error)
        if problem.code == "internal":
            detail = "the comparison broke off; the service's log has the cause under its id"
            problem = problem.model_copy(update={"detail": detail})
        with suppress(DarkroomError, RegistryError):
            self._ended(await asyncio.to_thread(lambda: claim.finish("failed", problem=problem)))


async def _ended(task: "asyncio.Task[Any]") -> None:
    """Cancel a task, and wait until it has heard of it; what it fails with is seen."""
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _nothing_drawn(comparison: Comparison) -> Problem:
    first = next(cell.problem for cell in comparison.cells if cell.problem is not None)
    return first.model_copy(update={"detail": f"no cell could be drawn; the first one: {first.detail}"})
