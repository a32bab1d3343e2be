"""The wire contract: one pydantic class per body that crosses HTTP, used by client and service alike.

Requests are strict (an unknown field is an error, numbers are finite); responses are lenient, so that an
older client can read a newer service. Nothing here imports anything but pydantic.
"""

from darkroom.types.common import Request, Response
from darkroom.types.errors import FieldError, Problem
from darkroom.types.events import Accepted, Progress
from darkroom.types.generate import (
    GeneratedImage,
    GenerateRequest,
    GenerateResponse,
    ImageFormat,
    MetadataLevel,
    Output,
    PromptTokens,
    Receipt,
    Refiner,
    RefinerReceipt,
    SchedulerName,
    Timings,
    TokenCount,
    TokenReport,
)
from darkroom.types.info import Limits, ModelInfo, ServiceInfo

__all__ = [
    "Accepted",
    "FieldError",
    "GenerateRequest",
    "GenerateResponse",
    "GeneratedImage",
    "ImageFormat",
    "Limits",
    "MetadataLevel",
    "ModelInfo",
    "Output",
    "Problem",
    "Progress",
    "PromptTokens",
    "Receipt",
    "Refiner",
    "RefinerReceipt",
    "Request",
    "Response",
    "SchedulerName",
    "ServiceInfo",
    "Timings",
    "TokenCount",
    "TokenReport",
]
