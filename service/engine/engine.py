"""The engine's thread: the only one that touches the device.

Orders come in through `submit`, their images become trajectories, the step loop advances every active trajectory by
one step at a time, and events go out through each order's listener.
"""

import atexit
import itertools
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import structlog
import torch

from lora_registry.records import Component
from service.engine.conditioning import Conditioner
from service.engine.costs import Costs
from service.engine.lending import Lent
from service.engine.loop import StepLoop
from service.engine.loras.arranged import Arranged
from service.engine.loras.residency import NOBODY, DeviceResidency, Watch
from service.engine.loras.stacks import Stacks
from service.engine.memory import MemoryProfile
from service.engine.models import Models, UNetName
from service.engine.orders import Failed, Listener, Order, Picture, Progress
from service.engine.pictures import Decoder, defect
from service.engine.trajectory import Trajectory
from service.engine.work import Work
from service.errors import (
    Cancelled,
    DarkroomError,
    DeviceLent,
    EngineStopped,
    OutOfDeviceMemory,
    UnusableImage,
)

log = structlog.get_logger()

ObserveStep = Callable[[UNetName, float], None]
"""Told how many seconds every step of a UNet took, whoever shared it."""
Result = TypeVar("Result")


class Errand(NamedTuple):
    """Something to be done on the engine's thread, for whoever waits for the future."""

    what: Callable[[], Any]
    future: "Future[Any]"

    def run(self) -> None:
        """Do it, unless it was given up meanwhile."""
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            self.future.set_result(self.what())
        except Exception as exc:  # the errand's, and not the engine's
            self.future.set_exception(exc)

    def fail(self, error: Exception) -> None:
        """Tell whoever waits that it will not be done."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


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
        device_bytes: int = 2 << 30,
        watch: Watch = NOBODY,
    ) -> None:
        self.models = models
        self.costs = Costs()
        self._conditioner = Conditioner(models)
        self._loop = StepLoop(
            models, profile, pad=pad, observe_swap=lambda seconds: watch.activated("device", seconds)
        )
        self._on_device = DeviceResidency(models.device, budget_bytes=device_bytes, watch=watch)
        self._profile = profile
        self._max_active = max_active
        self._observe_step = observe_step
        self._inbox: queue.SimpleQueue[Work | Errand | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        self._works: list[Work] = []
        self._active: list[tuple[Work, Trajectory]] = []
        self._gate = threading.Lock()
        """Held while the inbox closes, so that no order slips in behind the last look into it."""
        self._closing = False
        self._lent = Lent()
        self._lent_since: float | None = None
        self._died: Exception | None = None
        self._thread = threading.Thread(target=self._main, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()
        atexit.register(self.close)  # a thread inside torch while the interpreter goes aborts the process

    @cached_property
    def _decoder(self) -> Decoder:
        # Made on the engine's thread: a second thread that has used torch keeps OpenMP threads of its own, and on the
        # CPU the two sets get into each other's way (about 1.5 times the seconds a step).
        return Decoder(self.models, self._profile)

    @property
    def alive(self) -> bool:
        """Whether the thread runs and the device still answers."""
        return self._thread.is_alive() and self._died is None

    def memory_bytes(self) -> int:
        """Bytes in use on the device; 0 on the CPU, whose memory is the process's own."""
        cuda = self.models.device.type == "cuda"
        return torch.cuda.memory_allocated(self.models.device) if cuda else 0

    def submit(
        self, order: Order, listener: Listener, adapters: Mapping[str, Arranged] | None = None
    ) -> Work:
        """Take an order in. The listener hears `Progress` for every step, then one `Done` or `Failed`.

        `adapters` has every digest that the order's LoRAs name, in the host's memory.

        Raises:
            DeviceLent: the device is somebody else's now.
            EngineStopped: the engine is closed or has died.
        """
        work = Work(order, listener, next(self._numbers), adapters or {})
        self._put(work)
        return work

    def run(self, what: Callable[[], Result]) -> "Future[Result]":
        """Have the engine's thread do something between two steps; it must be short. Cancel the future to give it up.

        Raises:
            DeviceLent: the device is somebody else's now.
            EngineStopped: the engine is closed or has died; the future raises it where that happens later.
        """
        return self._errand(what)

    def pristine_of(self, component: Component, layer: str) -> torch.Tensor:
        """A copy of W0 of a layer that LoRAs may bend, on the CPU; waits for the engine's thread."""
        return self.run(lambda: self.models.weights[component].pristine_of(layer)).result()

    def lend(self) -> bool:
        """Move all that is resident into the host's memory, for somebody else to have the device; True once it is so.

        False, and nothing is lent, while something is being worked on. From here until `take_back` whatever asks for
        the device is refused with DeviceLent. Waits for the engine's thread.

        Raises:
            EngineStopped
            RuntimeError: the host has no room for it; nothing is lent.
        """
        with self._gate:
            if self._lent_since is not None:
                return True
            # From here on, so that no order slips in behind the look at what is being worked on.
            self._lent_since = time.monotonic()
        lent = False
        try:
            lent = self._errand(self._move_out, though_lent=True).result()
        finally:
            if not lent:
                self._lent_since = None
        return lent

    def take_back(self) -> None:
        """Move all back that was lent. Waits for the engine's thread.

        Raises:
            EngineStopped
            torch.OutOfMemoryError: somebody else has too much of the device; it is lent as before.
        """
        if self._lent_since is not None:
            self._errand(self._move_in, though_lent=True).result()
            self._lent_since = None

    def _errand(self, what: Callable[[], Result], *, though_lent: bool = False) -> "Future[Result]":
        future: Future[Result] = Future()
        self._put(Errand(what, future), though_lent=though_lent)
        return future

    def _move_out(self) -> bool:
        if self._works:
            return False
        for weights in self.models.weights.values():
            weights.lay_bare()
        self._on_device.clear()
        self._lent = Lent.moved_out(self.models.tensors())
        if self.models.device.type == "cuda":
            torch.cuda.empty_cache()
        return True

    def _move_in(self) -> None:
        self._lent.come_back()
        self._settle()

    @property
    def idle(self) -> bool:
        """Whether it could begin at once; another thread's answer is old as soon as it is given."""
        return not self._works and self._lent_since is None

    def has_on_device(self, digest: str) -> bool:
        """Whether that adapter need not be moved to be put in force."""
        return digest in self._on_device

    def _put(self, item: "Work | Errand", *, though_lent: bool = False) -> None:
        with self._gate:
            if self._closing:
                raise EngineStopped("the engine has stopped")
            if self._lent_since is not None and not though_lent:
                raise DeviceLent(time.monotonic() - self._lent_since)
            self._inbox.put(item)

    def close(self) -> None:
        """Stop after the present step; orders that are not finished fail. Idempotent."""
        with self._gate:
            self._closing = True
            self._inbox.put(None)
        atexit.unregister(self.close)
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
            item = self._inbox.get()
            if isinstance(item, Work):
                self._works.append(item)
            elif item is not None:
                item.fail(EngineStopped("the engine has stopped"))
        for work in list(self._works):
            self._fail(work, EngineStopped("the engine stopped before the images were done"))

    def _take_in(self) -> None:
        """Collect new orders and run errands; wait for one if there is nothing else to do."""
        idle = not self._works
        while idle or not self._inbox.empty():
            item = self._inbox.get()
            idle = False
            if isinstance(item, Work):
                self._works.append(item)
            elif item is not None:
                item.run()

    def _drop_cancelled(self) -> None:
        for work in [work for work in self._works if work.cancelled]:
            self._fail(work, Cancelled("the work was cancelled"))

    def _admit(self) -> None:
        """Put waiting images on their way while there is room, one at a time, fewest active first."""
        while len(self._active) < self._max_active:
            waiting = [work for work in self._works if work.waiting]
            if not waiting:
                return
            work = min(waiting, key=lambda work: (work.active, work.number))
            try:
                trajectory = self._trajectory(work)
            except (DarkroomError, RuntimeError, ValueError, OSError) as exc:
                self._fail_alone(work, exc)
                continue
            work.waiting.popleft()
            work.active += 1
            self._active.append((work, trajectory))

    def _trajectory(self, work: Work) -> Trajectory:
        """The next image of an order, its adapters on the device and its prompts encoded under them."""
        started = time.perf_counter()
        if work.stacks is None:
            work.begin()
            adapters = {digest: self._on_device.bring(adapter) for digest, adapter in work.adapters.items()}
            work.stacks = Stacks(work.order.loras, adapters)
        if work.order.question is not None and work.question is None:
            work.question = self._conditioner.question(work.order, work.order.question)
        trajectory = Trajectory(
            work.order, work.waiting[0], work.conditioning, self.models, work.stacks, work.question
        )
        for in_force in work.stacks.texts(trajectory.denoising_steps):
            if not work.is_conditioned(in_force):
                work.condition(in_force, self._conditioner.conditioning(work.order, *in_force))
        work.spend("encode", time.perf_counter() - started)
        return trajectory

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
        evaluated = [work.order.pixels * trajectory.row_count for work, trajectory in group]
        steps = self._loop.advance([trajectory for _, trajectory in group])
        self._settle()
        seconds = time.perf_counter() - started
        self.costs.learn(name, sum(evaluated), seconds)
        self._observe_step(name, seconds)
        for (work, _), pixels in zip(group, evaluated, strict=True):
            work.spend(name, seconds * pixels / sum(evaluated))
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
        sizes: dict[tuple[int, int, object], list[tuple[Work, Trajectory]]] = {}
        for work, trajectory in list(self._active):
            if not trajectory.finished or work.cancelled:
                continue
            if work.order.until is not None or work.order.question is not None:
                self._leave(work, trajectory)
            else:
                owner = trajectory if work.order.apart else None
                key = work.order.width, work.order.height, owner
                sizes.setdefault(key, []).append((work, trajectory))
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
            work.spend("decode", seconds / len(group))
            if (found := defect(pixels_HWC, trajectory.latents)) is not None:
                self._fail(work, UnusableImage(found, seed=trajectory.seed))
                continue
            work.keep(
                Picture(
                    trajectory.index,
                    trajectory.seed,
                    pixels_HWC,
                    trajectory.base_steps,
                    trajectory.refiner_steps,
                )
            )
            self._leave(work, trajectory)

    def _leave(self, work: Work, trajectory: Trajectory) -> None:
        """An image is not on its way any more; with the last one its order has ended."""
        self._active.remove((work, trajectory))
        work.active -= 1
        if work.order.apart and len(work.order.seeds) == 1:
            work.stop_at(trajectory.snapshot(), trajectory.adherence)
        if work.complete:
            self._works.remove(work)
            work.listener(work.done())

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
