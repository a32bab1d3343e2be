"""The composition root: builds every part from the settings, and is the only file that knows them all."""

import platform
import threading
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from typing import get_args

import structlog
import torch

from darkroom.types import ImageFormat, Limits, ModelInfo, SchedulerName, ServiceInfo
from darkroom.types import generate as limits
from service import __version__
from service.engine import canary, memory, models, presets
from service.engine.engine import Engine
from service.errors import DarkroomError, EngineStopped, ModelLoading
from service.generation import Generation
from service.metrics import Metrics
from service.runs import Runs
from service.settings import Settings

log = structlog.get_logger()

LOADING_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Readiness:
    """Whether a picture can be made now, and if not, why."""

    ready: bool
    reason: str


class Resident:
    """The engine on its way to being ready: loading, then ready, or failed for good."""

    def __init__(self, load: Callable[[], Engine], metrics: Metrics) -> None:
        self._load = load
        self._metrics = metrics
        self._engine: Engine | None = None
        self._failure: str | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._bring_up, name="loading", daemon=True)

    def start(self) -> None:
        """Load the weights in a thread of their own; returns at once."""
        self._thread.start()

    def engine(self) -> Engine:
        """The engine, once it has made its canary picture.

        Raises:
            ModelLoading: not yet. EngineStopped: never, without a restart.
        """
        if self._failure is not None:
            raise EngineStopped(f"the engine could not start: {self._failure}")
        if self._engine is None:
            raise ModelLoading(retry_after_seconds=LOADING_RETRY_SECONDS)
        if not self._engine.alive:
            raise EngineStopped("the engine has died; the service must be restarted")
        return self._engine

    @property
    def loaded(self) -> Engine | None:
        return self._engine

    @property
    def failure(self) -> str | None:
        if self._failure is None and self._engine is not None and not self._engine.alive:
            return "the engine has died"
        return self._failure

    def close(self) -> None:
        """Stop the engine; one that is still loading stops as soon as it has come up."""
        self._closed = True
        if self._engine is not None:
            self._engine.close()

    def _bring_up(self) -> None:
        try:
            engine = self._load()
            seconds = _first_picture(engine)
        except DarkroomError as exc:
            self._failure = str(exc)
            log.error("model failed to load", reason=self._failure)
        except Exception as exc:  # a thread's main: whatever it was, the probes must hear of it
            self._failure = f"{type(exc).__name__}"
            log.error("model failed to load", exc_info=True)
        else:
            self._engine = engine
            self._metrics.ready.set(1)
            self._metrics.model.info({"name": engine.models.name, "fingerprint": engine.models.fingerprint})
            self._metrics.device_memory_bytes.set_function(engine.memory_bytes)
            log.info("engine became ready", model=engine.models.name, canary_seconds=round(seconds, 3))
            if self._closed:
                engine.close()


def _first_picture(engine: Engine) -> float:
    """Start the engine and have it make its canary picture, in seconds; one that cannot does not stay running.

    Raises:
        DarkroomError: what it failed with.
    """
    with ExitStack() as undo:
        engine.start()
        undo.callback(engine.close)
        seconds = canary.develop(engine)
        undo.pop_all()
    return seconds


class Components:
    """The built service. `start` loads, `drain` refuses new work, `close` stops."""

    def __init__(
        self,
        settings: Settings,
        generation: Generation,
        metrics: Metrics,
        resident: Resident,
        runs: Runs,
        encoding: Executor,
        versions: dict[str, str],
    ) -> None:
        self.settings = settings
        self.generation = generation
        self.metrics = metrics
        self._resident = resident
        self._runs = runs
        self._encoding = encoding
        self._versions = versions

    def start(self) -> None:
        self._resident.start()

    def drain(self) -> None:
        self._runs.drain()
        self.metrics.ready.set(0)

    def close(self) -> None:
        self._resident.close()
        self._encoding.shutdown(wait=False, cancel_futures=True)

    def ready(self) -> Readiness:
        if self._runs.draining:
            return Readiness(False, "draining")
        if (failure := self._resident.failure) is not None:
            return Readiness(False, f"failed: {failure}")
        if self._resident.loaded is None:
            return Readiness(False, "loading")
        return Readiness(True, "ready")

    def alive(self) -> bool:
        """False only where a restart would help: the load has failed or the engine's thread has died."""
        return self._resident.failure is None

    def info(self) -> ServiceInfo:
        return ServiceInfo(
            name="darkroom",
            version=__version__,
            ready=self.ready().ready,
            model=self._model_info(),
            schedulers=list(get_args(SchedulerName)),
            formats=list(get_args(ImageFormat)),
            limits=Limits(
                max_edge=limits.MAX_EDGE,
                max_steps=limits.MAX_STEPS,
                max_images=limits.MAX_IMAGES,
                max_prompt_characters=limits.MAX_PROMPT_CHARACTERS,
                max_body_bytes=self.settings.max_body_bytes,
                max_queue_seconds=self.settings.max_queue_seconds,
            ),
            versions=self._versions,
        )

    def _model_info(self) -> ModelInfo | None:
        if (engine := self._resident.loaded) is None:
            return None
        loaded = engine.models
        return ModelInfo(
            name=loaded.name,
            fingerprint=loaded.fingerprint,
            width=loaded.default_edge,
            height=loaded.default_edge,
            refiner=loaded.has_refiner,
            dtype=str(loaded.dtype).removeprefix("torch."),
            device=str(loaded.device.type),
        )


def build(settings: Settings) -> Components:
    """All parts, joined. Loads nothing and starts nothing."""
    metrics = Metrics()
    versions = {
        "darkroom": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "compel")},
        "python": platform.python_version(),
    }
    resident = Resident(lambda: load_engine(settings, metrics), metrics)
    runs = Runs(max_queue_seconds=settings.max_queue_seconds, metrics=metrics)
    encoding = ThreadPoolExecutor(2, thread_name_prefix="encode-image")
    generation = Generation(
        engine=resident.engine,
        runs=runs,
        encoding=encoding,
        metrics=metrics,
        versions=versions,
        default_timeout_seconds=settings.timeout_seconds,
    )
    return Components(settings, generation, metrics, resident, runs, encoding, versions)


def load_engine(settings: Settings, metrics: Metrics) -> Engine:
    """The engine that the settings describe, its weights resident, not yet started.

    Raises:
        ModelNotFound, InvalidSettings: the settings name what is not there.
    """
    device = models.pick_device(settings.device)
    preset = presets.choose(settings.model, cuda=device.type == "cuda")
    profile = memory.profile_for(settings.memory_profile, device)
    dtype = models.pick_dtype(settings.dtype, device)
    log.info(
        "loading model",
        model=preset.name,
        chosen="by the auto setting" if settings.model == "auto" else "by name",
        device=str(device),
        dtype=str(dtype),
        memory_profile=profile.name,
    )
    loaded = models.load(
        preset,
        device=device,
        dtype=dtype,
        refiner=settings.refiner,
        compile_unets=settings.compile,
        offline=settings.offline,
        token=settings.hf_token.get_secret_value() if settings.hf_token else None,
    )
    # Before the engine's thread first uses torch: a thread keeps the number that it began with.
    torch.set_num_threads(settings.threads or models.pick_threads(loaded))
    return Engine(
        loaded,
        profile,
        pad=settings.compile,
        observe_step=lambda unet, seconds: metrics.step_seconds.labels(unet).observe(seconds),
    )
