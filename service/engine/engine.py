"""The engine's thread: the only one that touches the device.

Orders come in through `submit`, their images become trajectories, the step loop advances every active trajectory by
one step at a time, and events go out through each order's listener.
"""

import itertools
import queue
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import structlog
import torch

from darkroom.types import Timings
from service.engine.conditioning import Conditioner, Conditioning
from service.engine.costs import Costs
from service.engine.loop import StepLoop
from service.engine.memory import MemoryProfile
from service.engine.models import Models, UNetName
from service.engine.orders import Done, Failed, Listener, Order, Picture, Progress
from service.engine.pictures import Decoder, defect
from service.engine.trajectory import Trajectory
from service.errors import Cancelled, EngineStopped, OutOfDeviceMemory, UnusableImage

log = structlog.get_logger()

ObserveStep = Callable[[UNetName, float], None]
"""Told how many seconds every step of a UNet took, whoever shared it."""


@dataclass(eq=False)
class Work:
    """An order in the engine's hands. Other threads may only `cancel` it and read `cancelled`."""

    order: Order
    listener: Listener
    submitted_at: float
    id: int
    started_at: float | None = None
    conditioning: Conditioning | None = None
    waiting: list[int] = field(default_factory=list)
    """Indices of images that are not on their way yet."""
    active: int = 0
    pictures: dict[int, Picture] = field(default_factory=dict)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))
    _cancelled: threading.Event = field(default_factory=threading.Event)

    def cancel(self) -> None:
        """Free the order's trajectories before their next step. Idempotent, from any thread, in any state."""
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()


class Engine:
    """Runs orders on the resident models. `start` it, `submit` to it, `close` it.

    Images of different orders join in turn, the order with the fewest on their way first, so that a short order is
    never stuck behind a long one. At most `max_active` images are on their way at once.
    """

    def __init__(
        self,
        models: Models,
        profile: MemoryProfile,
        *,
        pad: bool = False,
        max_active: int = 16,
        observe_step: ObserveStep = lambda _unet, _seconds: None,
    ) -> None:
        self.models = models
        self.costs = Costs()
        self._conditioner = Conditioner(models)
        self._loop = StepLoop(models, profile, pad=pad)
        self._decoder = Decoder(models, profile)
        self._max_active = max_active
        self._observe_step = observe_step
        self._inbox: queue.SimpleQueue[Work | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._works: list[Work] = []
        self._active: list[tuple[Work, Trajectory]] = []
        self._gate = threading.Lock()
        """Held while the inbox closes, so that no order slips in behind the last look into it."""
        self._closing = False
        self._died: Exception | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs and the device still answers."""
        return self._thread.is_alive() and self._died is None

    def memory_bytes(self) -> int:
        """Bytes in use on the device; 0 on the CPU, whose memory is the process's own."""
        cuda = self.models.device.type == "cuda"
        return torch.cuda.memory_allocated(self.models.device) if cuda else 0

    def submit(self, order: Order, listener: Listener) -> Work:
        """Take an order in. The listener hears `Progress` for every step, then one `Done` or `Failed`.

        Raises:
            EngineStopped: the engine is closed or has died.
        """
        work = Work(
            order, listener, time.perf_counter(), next(self._numbers), waiting=list(range(len(order.seeds)))
        )
        with self._gate:
            if self._closing:
                raise EngineStopped("the engine has stopped")
            self._inbox.put(work)
        return work

    def close(self) -> None:
        """Stop after the present step; orders that are not finished fail. Idempotent."""
        with self._gate:
            self._closing = True
            self._inbox.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def _main(self) -> None:
        try:
            with torch.inference_mode():
                while not self._closing:
                    self._take_in()
                    self._drop_cancelled()
                    self._admit()
                    self._advance()
                    self._finish()
        except Exception as exc:  # whatever it was, the device can no longer be trusted
            self._died = exc
            log.error("engine died", error=str(exc), exc_info=True)
        with self._gate:
            self._closing = True
        while not self._inbox.empty():
            if (work := self._inbox.get()) is not None:
                self._works.append(work)
        for work in list(self._works):
            self._fail(work, EngineStopped("the engine stopped before the images were done"))

    def _take_in(self) -> None:
        """Collect new orders; wait for one if there is nothing else to do."""
        idle = not self._works
        while idle or not self._inbox.empty():
            work = self._inbox.get()
            idle = False
            if work is not None:
                self._works.append(work)

    def _drop_cancelled(self) -> None:
        for work in [work for work in self._works if work.cancelled]:
            self._fail(work, Cancelled("the work was cancelled"))

    def _admit(self) -> None:
        """Put waiting images on their way while there is room, one at a time, fewest active first."""
        while len(self._active) < self._max_active:
            waiting = [work for work in self._works if work.waiting]
            if not waiting:
                return
            work = min(waiting, key=lambda work: (work.active, work.id))
            try:
                trajectory = Trajectory(work.order, work.waiting[0], self._conditioned(work), self.models)
            except (RuntimeError, ValueError) as exc:
                self._fail_alone(work, exc)
                continue
            work.waiting.pop(0)
            work.active += 1
            self._active.append((work, trajectory))

    def _conditioned(self, work: Work) -> Conditioning:
        if work.conditioning is None:
            work.started_at = time.perf_counter()
            work.conditioning = self._conditioner.conditioning(work.order)
            work.seconds["encode"] = time.perf_counter() - work.started_at
        return work.conditioning

    def _advance(self) -> None:
        """One step for all, those of one UNet together."""
        moving: dict[UNetName, list[tuple[Work, Trajectory]]] = {}
        for work, trajectory in self._active:
            if not trajectory.finished:
                moving.setdefault(trajectory.unet, []).append((work, trajectory))
        for name, group in moving.items():
            if alive := [(work, trajectory) for work, trajectory in group if work in self._works]:
                self._advance_group(name, alive)

    def _advance_group(self, name: UNetName, group: Sequence[tuple[Work, Trajectory]]) -> None:
        started = time.perf_counter()
        steps = self._loop.advance([trajectory for _, trajectory in group])
        self._settle()
        seconds = time.perf_counter() - started
        evaluated = {id(work): 0 for work, _ in group}
        for work, _ in group:
            evaluated[id(work)] += work.order.pixels * (2 if work.order.guided else 1)
        total = sum(evaluated.values())
        self.costs.learn(name, total, seconds)
        self._observe_step(name, seconds)
        for work in {id(work): work for work, _ in group}.values():
            work.seconds[name] += seconds * evaluated[id(work)] / total
        for (work, trajectory), step in zip(group, steps, strict=True):
            if work not in self._works:
                continue  # another of its images has just failed
            if step.error is not None:
                self._fail_alone(work, step.error)
            else:
                self._tell_progress(work, trajectory)

    def _settle(self) -> None:
        """Wait for the device, so that times are true and a cancellation is never far behind."""
        if self.models.device.type == "cuda":
            torch.cuda.synchronize(self.models.device)

    def _tell_progress(self, work: Work, trajectory: Trajectory) -> None:
        preview = None
        if work.order.previews and not trajectory.finished:
            estimate = trajectory.denoised if trajectory.denoised is not None else trajectory.latents
            preview = self._decoder.preview(estimate)
        work.listener(Progress(trajectory.index, trajectory.step, trajectory.steps, preview))

    def _finish(self) -> None:
        """Decode the images that have made their last step, those of one size together."""
        sizes: dict[tuple[int, int], list[tuple[Work, Trajectory]]] = {}
        for work, trajectory in self._active:
            if trajectory.finished and not work.cancelled:
                sizes.setdefault((work.order.width, work.order.height), []).append((work, trajectory))
        for group in sizes.values():
            self._decode(group)

    def _decode(self, group: Sequence[tuple[Work, Trajectory]]) -> None:
        started = time.perf_counter()
        try:
            pictures = self._decoder.decode([trajectory.latents for _, trajectory in group])
        except (RuntimeError, OutOfDeviceMemory) as exc:
            for work, _ in group:
                self._fail_alone(work, exc)
            return
        seconds = time.perf_counter() - started
        self.costs.learn("decode", sum(work.order.pixels for work, _ in group), seconds)
        for (work, trajectory), pixels_HWC in zip(group, pictures, strict=True):
            if work not in self._works:
                continue
            self._active.remove((work, trajectory))
            work.active -= 1
            work.seconds["decode"] += seconds / len(group)
            if (found := defect(pixels_HWC, trajectory.latents)) is not None:
                self._fail(work, UnusableImage(found, seed=trajectory.seed))
                continue
            work.pictures[trajectory.index] = Picture(
                trajectory.index,
                trajectory.seed,
                pixels_HWC,
                trajectory.base_steps,
                trajectory.refiner_steps,
            )
            if len(work.pictures) == len(work.order.seeds):
                self._complete(work)

    def _complete(self, work: Work) -> None:
        assert work.started_at is not None
        assert work.conditioning is not None
        self._works.remove(work)
        pictures = tuple(work.pictures[index] for index in sorted(work.pictures))
        timings = Timings(
            queue=work.started_at - work.submitted_at,
            encode=work.seconds["encode"],
            base=work.seconds["base"],
            refiner=work.seconds["refiner"],
            decode=work.seconds["decode"],
            encode_image=0.0,
            total=time.perf_counter() - work.submitted_at,
        )
        work.listener(Done(pictures, work.conditioning.tokens, timings))

    def _fail_alone(self, work: Work, error: Exception) -> None:
        """End one order whose failure is its own; raise if the device has stopped answering, which is everybody's."""
        self._fail(work, error)
        torch.zeros(1, device=self.models.device).add_(1).item()

    def _fail(self, work: Work, error: Exception) -> None:
        """End an order and free its trajectories; a second failure of the same order is silent."""
        if work not in self._works:
            return
        self._works.remove(work)
        self._active = [(owner, trajectory) for owner, trajectory in self._active if owner is not work]
        work.listener(Failed(error))
