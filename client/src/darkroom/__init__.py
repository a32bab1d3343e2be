"""Typed client for Darkroom, the SDXL microservice.

>>> with Darkroom() as client:  # doctest: +SKIP
...     client.generate("a fox in the snow", seed=7).image.save("fox.png")
"""

from darkroom._async_client import AsyncDarkroom
from darkroom._async_datasets import AsyncDatasetLibrary
from darkroom._async_loras import AsyncLoraRegistry
from darkroom._async_train import AsyncTrainJobs
from darkroom._client import Darkroom
from darkroom._connection import Timeouts
from darkroom._datasets import DatasetLibrary
from darkroom._errors import (
    APIError,
    AuthenticationFailed,
    BadResponse,
    Conflict,
    ConnectionFailed,
    DarkroomError,
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PayloadTooLarge,
    PermissionDenied,
    RateLimited,
    ServerError,
    Timeout,
    TrainFailed,
    Unavailable,
    UnsupportedMedia,
)
from darkroom._files import PictureFile
from darkroom._http import VERSION as __version__
from darkroom._images import Generation, Image
from darkroom._loras import LoraRegistry
from darkroom._streams import AsyncStream, Progress, Stream, StreamEvent
from darkroom._train import TrainJobs
from darkroom.types import (
    Accepted,
    BlendSource,
    Dataset,
    DatasetSummary,
    FieldError,
    GenerateRequest,
    JobEvent,
    Lora,
    LoraAlias,
    LoraInspection,
    LoraUse,
    LoraVersion,
    Output,
    Problem,
    Receipt,
    Refiner,
    ServiceInfo,
    Timings,
    TokenReport,
    TrainJob,
    TrainRecipe,
    TrainRequest,
)

__all__ = [
    "APIError",
    "Accepted",
    "AsyncDarkroom",
    "AsyncDatasetLibrary",
    "AsyncLoraRegistry",
    "AsyncStream",
    "AsyncTrainJobs",
    "AuthenticationFailed",
    "BadResponse",
    "BlendSource",
    "Conflict",
    "ConnectionFailed",
    "Darkroom",
    "DarkroomError",
    "Dataset",
    "DatasetLibrary",
    "DatasetSummary",
    "DeadlineExceeded",
    "FieldError",
    "GenerateRequest",
    "Generation",
    "Image",
    "InvalidRequest",
    "JobEvent",
    "Lora",
    "LoraAlias",
    "LoraInspection",
    "LoraRegistry",
    "LoraUse",
    "LoraVersion",
    "NotFound",
    "Output",
    "PayloadTooLarge",
    "PermissionDenied",
    "PictureFile",
    "Problem",
    "Progress",
    "RateLimited",
    "Receipt",
    "Refiner",
    "ServerError",
    "ServiceInfo",
    "Stream",
    "StreamEvent",
    "Timeout",
    "Timeouts",
    "Timings",
    "TokenReport",
    "TrainFailed",
    "TrainJob",
    "TrainJobs",
    "TrainRecipe",
    "TrainRequest",
    "Unavailable",
    "UnsupportedMedia",
    "__version__",
]
