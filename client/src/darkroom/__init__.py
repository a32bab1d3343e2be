"""Typed client for Darkroom, the SDXL microservice.

>>> with Darkroom() as client:  # doctest: +SKIP
...     client.generate("a fox in the snow", seed=7).image.save("fox.png")
"""

from darkroom._async_client import AsyncDarkroom
from darkroom._async_comparison_result import AsyncComparedCell, AsyncComparisonResult
from darkroom._async_comparisons import AsyncComparisons
from darkroom._async_datasets import AsyncDatasetLibrary
from darkroom._async_loras import AsyncLoraRegistry
from darkroom._async_train import AsyncTrainJobs
from darkroom._client import Darkroom
from darkroom._comparison_result import ComparedCell, ComparisonResult
from darkroom._comparisons import Comparisons
from darkroom._connection import Timeouts
from darkroom._datasets import DatasetLibrary
from darkroom._errors import (
    APIError,
    AuthenticationFailed,
    BadResponse,
    CompareFailed,
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
    Arm,
    BlendSource,
    CompareCell,
    CompareEvent,
    ComparePlan,
    CompareRequest,
    CompareVerdict,
    Comparison,
    Dataset,
    DatasetSummary,
    FieldError,
    GenerateRequest,
    JobEvent,
    Lora,
    LoraAlias,
    LoraInspection,
    LoraLineage,
    LoraUse,
    LoraVersion,
    Output,
    PictureSettings,
    Problem,
    Receipt,
    Refiner,
    SeedCount,
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
    "Arm",
    "AsyncComparedCell",
    "AsyncComparisonResult",
    "AsyncComparisons",
    "AsyncDarkroom",
    "AsyncDatasetLibrary",
    "AsyncLoraRegistry",
    "AsyncStream",
    "AsyncTrainJobs",
    "AuthenticationFailed",
    "BadResponse",
    "BlendSource",
    "CompareCell",
    "CompareEvent",
    "CompareFailed",
    "ComparePlan",
    "CompareRequest",
    "CompareVerdict",
    "ComparedCell",
    "Comparison",
    "ComparisonResult",
    "Comparisons",
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
    "LoraLineage",
    "LoraRegistry",
    "LoraUse",
    "LoraVersion",
    "NotFound",
    "Output",
    "PayloadTooLarge",
    "PermissionDenied",
    "PictureFile",
    "PictureSettings",
    "Problem",
    "Progress",
    "RateLimited",
    "Receipt",
    "Refiner",
    "SeedCount",
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
