"""The composition root of a training, as `service.wiring` is of the service. It reads the same settings."""

import io
from collections.abc import Callable
from contextlib import closing, nullcontext
from dataclasses import asdict, replace

import torch

from darkroom.types import TrainRequest
from lora_registry import Registry
from service import __version__, wiring
from service.datasets.datasets import Datasets
from service.engine import models, presets
from service.engine.models import Models
from service.engine.presets import Preset
from service.jobs.claims import Claim
from service.jobs.sharing import Turnstile
from service.jobs.worker import Finished, Stop
from service.settings import Settings
from service.training.errors import TrainingTooLarge
from service.training.estimates import estimate, too_large
from service.training.model import free_bytes, trained_model
from service.training.session import Lineage, Session

_DTYPES = {"no": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def trained(settings: Settings, datasets: Datasets, claim: Claim, stop: Stop) -> Finished:
    """What the job has published.

    Raises:
        Stopped, DarkroomError, RegistryError
    """
    stop.check()
    with (
        closing(Turnstile(settings.data / "sharing")) as turnstile,
        wiring.connect_registry(settings) as registry,
        # The device is asked for before anything is put on it.
        turnstile.device(stop.asked) if settings.gpu_sharing == "pause" else nullcontext(),
    ):
        stop.check()
        device = models.pick_device(settings.training_device or settings.device)
        room_bytes = free_bytes(device)
        preset, loaded = _loaded(settings, claim, device)
        _check_room(claim.job.request, loaded, room_bytes)
        session = Session(
            claim.job.id,
            claim.job.request,
            claim.job.dataset,
            loaded,
            trained_model(loaded),
            wiring.base_model(preset),
            datasets,
            claim,
            stop,
            lambda file, lineage: _publish(registry, claim, file, lineage),
            version=__version__,
            wait_turn=_turn(settings, turnstile, stop),
        )
        try:
            return Finished(*session.run())
        except torch.OutOfMemoryError as exc:
            raise TrainingTooLarge(
                "the device ran out of memory. Set `gradient_checkpointing`, a `train_batch_size` of 1, or take a "
                "smaller `resolution` or `rank`; what was learnt up to the last checkpoint is kept"
            ) from exc


def _check_room(request: TrainRequest, loaded: Models, room_bytes: int | None) -> None:
    """Raise TrainingTooLarge where others have so much of the device that this one would fail in the middle."""
    model = replace(trained_model(loaded), memory_bytes=room_bytes)
    needed = estimate(request, model, picture_count=0)
    if not needed.fits:
        raise TrainingTooLarge(too_large(needed))


def _loaded(settings: Settings, claim: Claim, device: torch.device) -> tuple[Preset, Models]:
    preset = presets.choose(settings.model, cuda=device.type == "cuda")
    loaded = models.load(
        preset,
        device=device,
        dtype=_DTYPES[claim.job.request.recipe.mixed_precision or "no"],
        refiner=settings.refiner,
        pristine_on_host=device.type == "cuda",
        offline=settings.offline,
        token=settings.hf_token.get_secret_value() if settings.hf_token else None,
    )
    torch.set_num_threads(settings.threads or models.pick_threads(loaded))
    return preset, loaded


def _turn(settings: Settings, turnstile: Turnstile, stop: Stop) -> Callable[[], None]:
    if settings.gpu_sharing != "share":
        return lambda: None

    def wait() -> None:
        turnstile.wait(stop.asked)

    return wait


def _publish(registry: Registry, claim: Claim, file: bytes, lineage: Lineage) -> tuple[str, str]:
    """Through the one door. The same file under the same name is the version that it was, so a second try is none.

    A process that stood still meanwhile must not even move an alias: whether it has the job is asked last of all.
    """
    request = claim.job.request
    triggers = [request.token or request.instance_prompt or ""]
    version = registry.publish(
        request.name,
        io.BytesIO(file),
        alias=request.alias,
        triggers=[word for word in triggers if word],
        tags=(*request.tags, request.kind),
        description=request.description,
        lineage={
            "origin": "train-job",
            **asdict(lineage),
            "request": request.model_dump(mode="json", exclude={"recipe": {"sample_prompts"}}),
        },
        permit=claim.check,
    )
    return version.ref, version.digest
