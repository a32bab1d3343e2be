"""The composition root: builds every part from the settings, and is the only file that knows them all."""

import platform
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import get_args

import structlog
import torch

from darkroom.types import CompareMetric, ImageFormat, Limits, ModelInfo, SchedulerName, ServiceInfo
from darkroom.types import generate as limits
from darkroom.types.loras import MAX_LORAS
from lora_registry import BaseModel, Registry, families
from lora_registry.blobs import Blobs
from lora_registry.database import Database
from lora_registry.disk_cache import DiskCache
from lora_registry.registry import MAX_LORA_BYTES
from service import __version__
from service.adapters import Adapters
from service.blending import Blending
from service.clip_scores import ClipScorer
from service.compare.drawing import Scorer, Tools
from service.compare.runner import ComparisonRunner
from service.compare.table import ComparisonTable
from service.comparisons import Bounds, Comparisons
from service.dataset_library import DatasetLibrary
from service.datasets.datasets import Datasets
from service.datasets.recipes import planned
from service.engine import canary, memory, models, presets
from service.engine.engine import Engine
from service.engine.guard import Guard
from service.engine.loras.residency import NOBODY, HostResidency, Watch
from service.errors import (
    DarkroomError,
    EngineStopped,
    ModelLoading,
    ModelNotFound,
    WeightsDamaged,
)
from service.generation import Generation
from service.jobs.launcher import LocalLauncher
from service.jobs.launching import Launching
from service.jobs.table import JobTable
from service.loras import Loras
from service.metrics import Metrics
from service.pocket.accuracy import pocket_scores
from service.production import check_no_faults
from service.runs import Runs
from service.settings import Settings
from service.sharing import Sharing
from service.store import database, files
from service.synthesis import Synthesis
from service.train_jobs import TrainJobs
from service.training.model import trained_model
from service.training.recipes import TrainedModel

log = structlog.get_logger()

LOADING_RETRY_SECONDS = 5.0


@dataclass(frozen=True)
class Readiness:
    """Whether a picture can be made now, and if not, why."""

    ready: bool
    reason: str


class Resident:
    """The engine on its way to being ready: loading, then ready, or failed for good."""

    def __init__(
        self,
        load: Callable[[], Engine],
        metrics: Metrics,
        *,
        audit_seconds: float = 5.0,
        canary_seconds: float = 300.0,
        became_ready: Callable[[], object] = lambda: None,
    ) -> None:
        self._load, self._became_ready = load, became_ready
        self._metrics = metrics
        self._audit_seconds, self._canary_seconds = audit_seconds, canary_seconds
        self._engine: Engine | None = None
        self._guard: Guard | None = None
        self._failure: str | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._bring_up, name="loading", daemon=True)

    def start(self) -> None:
        """Load the weights in a thread of their own; returns at once."""
        self._thread.start()

    def engine(self) -> Engine:
        """The engine, once it has made its canary picture.

        Raises:
            ModelLoading: not yet. EngineStopped, WeightsDamaged: never, without a restart.
        """
        if self._failure is not None:
            raise EngineStopped(f"the engine could not start: {self._failure}")
        if self._engine is None:
            raise ModelLoading(retry_after_seconds=LOADING_RETRY_SECONDS)
        if not self._engine.alive:
            raise EngineStopped("the engine has died; the service must be restarted")
        if self._guard is not None and self._guard.damage is not None:
            raise WeightsDamaged(
                "the weights in memory have changed by themselves; the service must be restarted"
            )
        return self._engine

    def inspect(self) -> None:
        """Have the weights and the canary looked at again, where that is due. Blocks for a second or two at most."""
        if self._guard is not None and self.failure is None:
            self._guard.look()

    @property
    def loaded(self) -> Engine | None:
        return self._engine

    @property
    def failure(self) -> str | None:
        if self._failure is None and self._engine is not None and not self._engine.alive:
            return "the engine has died"
        if self._failure is None and self._guard is not None and self._guard.damage is not None:
            return f"damaged: {self._guard.damage}"
        return self._failure

    def close(self) -> None:
        """Stop the engine; one that is still loading stops as soon as it has come up."""
        self._closed = True
        if self._engine is not None:
            self._engine.close()

    def _bring_up(self) -> None:
        try:
            engine = self._load()
            first = _first_picture(engine)
            self._guard = Guard(
                engine,
                first.pixels_HWC,
                audit_seconds=self._audit_seconds,
                canary_seconds=self._canary_seconds,
                observe=self._metrics.observe_soundness,
            )
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
            log.info("engine became ready", model=engine.models.name, canary_seconds=round(first.seconds, 3))
            self._became_ready()
            if self._closed:
                engine.close()


def _first_picture(engine: Engine) -> canary.Developed:
    """Start the engine and have it make its canary picture; one that cannot does not stay running.

    Raises:
        DarkroomError: what it failed with.
    """
    with ExitStack() as undo:
        engine.start()
        undo.callback(engine.close)
        first = canary.develop(engine)
        undo.pop_all()
    return first


class Training:
    """Datasets and train jobs, and who starts the jobs on this machine (nobody, where the settings say so)."""

    def __init__(
        self,
        library: DatasetLibrary,
        synthesis: Synthesis,
        jobs: TrainJobs,
        launching: Launching | None,
        sharing: Sharing,
        *,
        patience_seconds: float,
    ) -> None:
        self.library, self.synthesis, self.jobs = library, synthesis, jobs
        self._launching, self._sharing = launching, sharing
        self._patience_seconds = patience_seconds

    def start(self) -> None:
        self._sharing.start()
        if self._launching is not None:
            self._launching.start()

    def drain(self) -> None:
        self.library.drain()
        self.jobs.drain()

    def close(self) -> None:
        """Jobs of this machine come to a checkpoint and leave; the next start of the service takes them up again."""
        if self._launching is not None:
            self._launching.stop(patience_seconds=self._patience_seconds)
        self._sharing.close()
        self.jobs.close()
        self.library.close()


class Comparing:
    """Comparisons, and who draws them on this machine."""

    def __init__(self, comparisons: Comparisons, runner: ComparisonRunner) -> None:
        self.comparisons, self._runner = comparisons, runner

    def start(self) -> None:
        self._runner.start()

    def wake(self) -> None:
        """Pictures can be made from now on."""
        self._runner.wake()

    def drain(self) -> None:
        self._runner.drain()
        self.comparisons.drain()

    def close(self) -> None:
        """What is being drawn is let go of; the next start of the service, or another replica, goes on with it."""
        self._runner.close()
        self.comparisons.close()


class Components:
    """The built service. `start` loads, `drain` refuses new work, `close` stops."""

    def __init__(
        self,
        settings: Settings,
        generation: Generation,
        loras: Loras,
        adapters: Adapters,
        blending: Blending,
        training: "Training",
        comparing: "Comparing",
        metrics: Metrics,
        resident: Resident,
        runs: Runs,
        threads: Sequence[Executor],
        versions: dict[str, str],
    ) -> None:
        self.settings = settings
        self.generation = generation
        self.loras = loras
        self.adapters = adapters
        self.blending = blending
        self.dataset_library = training.library
        self.synthesis = training.synthesis
        self.train_jobs = training.jobs
        self.comparisons = comparing.comparisons
        self.metrics = metrics
        self._training = training
        self._comparing = comparing
        self._resident = resident
        self._runs = runs
        self._threads = threads
        self._versions = versions

    def start(self) -> None:
        self._resident.start()
        self._training.start()
        self._comparing.start()

    def drain(self) -> None:
        self._runs.drain()
        self.loras.drain()
        self._training.drain()
        self._comparing.drain()
        self.metrics.ready.set(0)

    def close(self) -> None:
        self._comparing.close()
        self._training.close()
        self._resident.close()
        for threads in self._threads:
            threads.shutdown(wait=False, cancel_futures=True)
        self.loras.close()

    def engine(self) -> Engine:
        """The engine, once it is ready. Raises ModelLoading, EngineStopped, WeightsDamaged."""
        return self._resident.engine()

    def inspect(self) -> None:
        """Have the weights looked at, where that is due, before `ready` is asked. Call it from a thread."""
        self._resident.inspect()

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
                max_loras=MAX_LORAS,
                max_lora_bytes=MAX_LORA_BYTES,
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
    """All parts, joined. Loads nothing and starts nothing.

    Raises:
        InvalidSettings: fault points of the tests are armed.
    """
    check_no_faults()
    metrics = Metrics()
    versions = {
        "darkroom": __version__,
        **{name: version(name) for name in ("torch", "diffusers", "transformers", "compel")},
        "python": platform.python_version(),
    }
    watch = Watch(metrics.observe_activation, metrics.observe_eviction, metrics.observe_residency)
    resident = Resident(
        lambda: load_engine(settings, metrics, watch),
        metrics,
        audit_seconds=settings.audit_seconds,
        canary_seconds=settings.canary_seconds,
        became_ready=lambda: comparing.wake(),
    )
    loras = Loras(lambda: connect_registry(settings), metrics)
    reading = ThreadPoolExecutor(4, thread_name_prefix="read-lora")
    adapters = Adapters(loras.registry, host_residency(resident.engine, loras, settings, watch), reading)
    blending_thread = ThreadPoolExecutor(1, thread_name_prefix="blend-loras")
    blending = Blending(loras.registry, resident.engine, blending_thread)
    sharing = Sharing(settings.gpu_sharing, settings.data / "sharing", resident.engine)
    runs = Runs(max_queue_seconds=settings.max_queue_seconds, metrics=metrics, serving=sharing.serving)
    encoding = ThreadPoolExecutor(2, thread_name_prefix="encode-image")
    generation = Generation(
        engine=resident.engine,
        adapters=adapters,
        runs=runs,
        encoding=encoding,
        metrics=metrics,
        versions=versions,
        default_timeout_seconds=settings.timeout_seconds,
    )
    work = work_store(settings)
    training = build_training(settings, work, generation, resident.engine, sharing, metrics)
    drawing = ThreadPoolExecutor(2, thread_name_prefix="measure-image")
    comparing = build_comparing(
        settings, work, training, resident.engine, runs, adapters, drawing, versions, metrics
    )
    return Components(
        settings,
        generation,
        loras,
        adapters,
        blending,
        training,
        comparing,
        metrics,
        resident,
        runs,
        (encoding, reading, blending_thread, drawing),
        versions,
    )


@dataclass(frozen=True)
class WorkStore:
    """Where datasets, train jobs and comparisons are. The database is connected when it is first needed."""

    database: Callable[[], Database]
    files: Blobs


def work_store(settings: Settings) -> WorkStore:
    """The store that the settings name."""

    @cache
    def connection() -> Database:
        return database.connect(database.location(settings.database.get_secret_value(), settings.data))

    return WorkStore(connection, files.files(settings.blobs, settings.data))


def build_training(
    settings: Settings,
    work: WorkStore,
    generation: Generation,
    engine: Callable[[], Engine],
    sharing: Sharing,
    metrics: Metrics,
) -> Training:
    """Datasets and train jobs, and the launcher of this machine."""
    library = DatasetLibrary(lambda: Datasets(work.database(), work.files))
    synthesis = Synthesis(generation, library, engine)

    def model() -> TrainedModel:
        device = models.pick_device(settings.training_device) if settings.training_device else None
        at_home = device is None or device == engine().models.device
        holds = at_home and settings.gpu_sharing != "pause"
        return trained_model(engine().models, device, held_bytes=engine().memory_bytes() if holds else 0)

    def launcher(table: JobTable) -> LocalLauncher:
        return LocalLauncher(
            table,
            settings.data / "jobs",
            lambda job_id: [sys.executable, "-m", "service.training", job_id],
            ended=lambda job: metrics.train_jobs_total.labels(job.state).inc(),
        )

    jobs = TrainJobs(
        lambda: JobTable(work.database(), work.files),
        model=model,
        dataset=lambda id: library.datasets().get(id),
        synthesized=lambda request: len(planned(synthesis.filled_in(request))),
        wake=lambda: launching.wake() if launching is not None else None,
        metrics=metrics,
    )
    launching = Launching(jobs.table, launcher) if settings.training == "local" else None
    return Training(
        library,
        synthesis,
        jobs,
        launching,
        sharing,
        patience_seconds=settings.drain_seconds,
    )


def build_comparing(
    settings: Settings,
    work: WorkStore,
    training: Training,
    engine: Callable[[], Engine],
    runs: Runs,
    adapters: Adapters,
    threads: Executor,
    versions: dict[str, str],
    metrics: Metrics,
) -> Comparing:
    """Comparisons, and the thread that draws them."""
    clip = ClipScorer(settings.clip, offline=settings.offline) if settings.clip else None

    def has_pocket() -> bool:
        return engine().models.name == presets.POCKET.name

    def scored() -> list[CompareMetric]:
        found: list[CompareMetric] = ["pocket_accuracy", "pocket_quality"] if has_pocket() else []
        return [*found, "clip_score"] if clip is not None and clip.is_there() else found

    def tools() -> Tools:
        scorers: list[Scorer] = [pocket_scores] if has_pocket() else []
        if clip is not None:
            scorers.append(clip)
        return Tools(engine(), runs, adapters, threads, versions, scorers, metrics.images_total.inc)

    def clean_up() -> None:
        comparisons.table().expire(older_than_seconds=settings.compare_keep_days * 86400)
        datasets, compared = training.library.datasets(), comparisons.table()
        training.jobs.table().gc(also=lambda: chain(datasets.digests(), compared.digests()))

    comparisons = Comparisons(
        lambda: ComparisonTable(work.database(), work.files),
        engine=engine,
        adapters=adapters,
        scored=scored,
        bounds=Bounds(settings.compare_max_cells, settings.compare_max_seconds),
        wake=lambda: runner.wake(),
        stop=lambda comparison_id: runner.cancel(comparison_id),
        metrics=metrics,
    )
    runner = ComparisonRunner(
        comparisons.table,
        tools,
        ended=lambda comparison: metrics.comparisons_total.labels(comparison.state).inc(),
        clean_up=clean_up,
    )
    return Comparing(comparisons, runner)


def connect_registry(settings: Settings) -> Registry:
    """The registry that the settings name, for LoRAs of the model that they name.

    Raises:
        CatalogUnavailable, StorageUnavailable: it cannot be reached.
    """
    device = models.pick_device(settings.device)
    preset = presets.choose(settings.model, cuda=device.type == "cuda")
    return Registry.connect(
        [base_model(preset)],
        data=settings.data,
        database=settings.database.get_secret_value(),
        blobs=settings.blobs,
        cache_bytes=settings.lora_disk_bytes // 2,
    )


def base_model(preset: presets.Preset) -> BaseModel:
    """What a preset's base is to LoRA files: read from its folder, or known, where it is SDXL itself.

    Raises:
        ModelNotFound: the folder's configs cannot be read.
    """
    sdxl = families.sdxl()
    if not isinstance(preset.base, Path):
        return sdxl
    try:
        found = BaseModel.from_folder("pocket SDXL" if preset.name == "pocket" else preset.name, preset.base)
    except (OSError, ValueError, KeyError) as exc:
        raise ModelNotFound(f"{preset.base.name} has no configs of an SDXL model: {exc}") from exc
    return sdxl if found.layers == sdxl.layers else found


def host_residency(
    engine: Callable[[], Engine], loras: Loras, settings: Settings, watch: Watch
) -> Callable[[], HostResidency]:
    """The LoRAs in the host's memory, made once the engine's model says what they have to fit."""

    @cache
    def residency() -> HostResidency:
        loaded = engine().models
        return HostResidency(
            loras.registry,
            loaded.layout,
            dtype=loaded.dtype,
            budget_bytes=settings.lora_host_bytes,
            pin_memory=loaded.device.type == "cuda",
            disk=DiskCache(settings.data / "arranged", settings.lora_disk_bytes // 2),
            watch=watch,
        )

    return residency


def load_engine(settings: Settings, metrics: Metrics, watch: Watch = NOBODY) -> Engine:
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
        pristine_on_host=profile.pristine_on_host and device.type == "cuda",
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
        device_bytes=settings.lora_device_bytes,
        watch=watch,
    )
