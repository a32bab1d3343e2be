"""Why a cell has no picture, as a problem that stands in its place."""

from typing import Final

from darkroom.types import Problem
from darkroom.types.faults import bounded
from lora_registry.errors import BlobMissing, RegistryError, StorageUnavailable
from service.errors import (
    DarkroomError,
    DeadlineExceeded,
    DeviceLent,
    Draining,
    EngineStopped,
    IncompatibleLora,
    InvalidPrompt,
    ModelLoading,
    OutOfDeviceMemory,
    Overloaded,
    SwapFailed,
    UnusableImage,
    WeightsDamaged,
)

EVERYBODYS: Final = (EngineStopped, WeightsDamaged, ModelLoading, Draining)
"""No other cell would fare better: the comparison waits for another process, or for this one's restart."""
BUSY: Final = (Overloaded, DeviceLent)
"""It can be asked for again in a moment."""

_SAID: Final[dict[type[Exception], tuple[int, str, str]]] = {
    UnusableImage: (422, "unusable_image", "The model made an unusable image"),
    InvalidPrompt: (422, "invalid_prompt", "The prompt cannot be read"),
    IncompatibleLora: (422, "incompatible_lora", "The LoRA is not for this model"),
    OutOfDeviceMemory: (413, "out_of_device_memory", "The image does not fit the device"),
    SwapFailed: (503, "swap_failed", "The LoRAs could not be put in force"),
    DeadlineExceeded: (504, "deadline_exceeded", "The deadline passed"),
    BlobMissing: (503, "blob_missing", "The file is not in the storage"),
    StorageUnavailable: (503, "storage_unavailable", "The storage cannot be used"),
}
"""As the HTTP door says them (`service.api.problems`), which a test holds together."""


def problem_of(error: Exception) -> Problem:
    """The problem of one cell. What nobody raised on purpose is told by its kind alone."""
    for kind in type(error).__mro__:
        if kind in _SAID:
            status, code, title = _SAID[kind]
            return _stated(title, status, str(error), code)
    told = isinstance(error, DarkroomError | RegistryError)
    detail = str(error) if told else f"the picture could not be made ({type(error).__name__})"
    return _stated("Internal error", 500, detail, "internal")


def _stated(title: str, status: int, detail: str, code: str) -> Problem:
    return Problem(
        type=f"urn:darkroom:problem:{code}", title=title, status=status, detail=bounded(detail), code=code
    )
