"""The endpoints of datasets, as `_calls` has the others. Nothing here does I/O."""

import math
from typing import Literal, TypedDict
from urllib.parse import quote

from darkroom._calls import EVENT_STREAM, QUICK_SECONDS, Call, nothing
from darkroom._connection import Connection
from darkroom._errors import InvalidRequest, refused_before_sending
from darkroom._exchange import Outside
from darkroom._files import PictureFile
from darkroom._sse import ServerSentEvent
from darkroom._streams import SILENCE_SECONDS, LongReading, Reading, read_as, told_error
from darkroom._transfers import Told, Upload
from darkroom.types import Dataset, DatasetPage, DatasetSummary, SynthesisProgress, SynthesizeRequest
from darkroom.types.datasets import SynthesisRecipe
from darkroom.types.faults import invalid_request

Invalid = Literal["refuse", "skip"]


class SynthesisOptions(TypedDict, total=False):
    """What `synthesize` takes beside the recipe. `SynthesizeRequest` explains each, and has the defaults."""

    prompts: tuple[str, ...] | list[str]
    guidance_scales: tuple[float, ...] | list[float]
    images_per_prompt: int
    seed: int
    num_inference_steps: int
    caption: str
    name: str


def upload(upload: Upload, *, prompt: str, invalid: Invalid, name: str) -> Call[Dataset]:
    """A dataset of this archive. A second sending finds the dataset of the first."""
    said = (("prompt", prompt), ("invalid", "" if invalid == "refuse" else invalid), ("name", name))
    return Call(
        "POST",
        "/v1/datasets",
        Dataset.model_validate_json,
        query=tuple((key, value) for key, value in said if value),
        upload=upload,
        headers=(
            ("Content-Type", "application/octet-stream"),
            ("Content-Length", str(upload.size_bytes)),
        ),
        idempotent=True,
    )


def synthesize(request: SynthesizeRequest) -> Call[bytes]:
    """A dataset of pictures that the service makes, as a stream of events. A second sending finds that of the first."""
    return Call(
        "POST",
        "/v1/datasets/synthesize",
        bytes,
        body=request.model_dump_json(exclude_defaults=True).encode(),
        headers=(("Accept", EVENT_STREAM), ("Content-Type", "application/json")),
        idempotent=True,
        longest_seconds=SILENCE_SECONDS,
    )


def of_synthesis(
    call: Call[bytes], connection: Connection, outside: Outside
) -> Reading[SynthesisProgress | Dataset]:
    """The reading of its stream, which is as long as it takes and ends in the dataset."""
    return LongReading(
        call, connection, outside, math.inf, _synthesis_event, lambda event: isinstance(event, Dataset)
    )


def heard(event: SynthesisProgress | Dataset, progress: Told | None) -> Dataset | None:
    """The dataset, if it is there; till then whoever listens is told."""
    if isinstance(event, Dataset):
        return event
    if progress is not None:
        progress(event.done, event.total)
    return None


def _synthesis_event(sent: ServerSentEvent, call: Call[bytes]) -> SynthesisProgress | Dataset | None:
    match sent.event:
        case "progress":
            return read_as(SynthesisProgress, sent, call)
        case "result":
            return read_as(Dataset, sent, call)
        case "error":
            raise told_error(sent, call)
    return None  # of a service that is newer than this client


def synthesis(recipe: SynthesisRecipe | None, options: SynthesisOptions) -> SynthesizeRequest:
    """The request that keywords make up.

    Raises: `InvalidRequest`
    """
    with refused_before_sending():
        return SynthesizeRequest.model_validate({**options, "recipe": recipe})


def page(cursor: str) -> Call[DatasetPage]:
    """Some datasets."""
    return Call(
        "GET",
        "/v1/datasets",
        DatasetPage.model_validate_json,
        query=(("cursor", cursor),) if cursor else (),
        idempotent=True,
        longest_seconds=QUICK_SECONDS,
    )


def get(dataset: Dataset | DatasetSummary | str) -> Call[Dataset]:
    """A dataset."""
    return Call("GET", _path(dataset), Dataset.model_validate_json, idempotent=True)


def picture(dataset: Dataset | DatasetSummary | str, place: int) -> Call[PictureFile]:
    """One picture."""
    return Call(
        "GET",
        f"{_path(dataset)}/pictures/{place}",
        lambda data: PictureFile(data, "image/png"),
        headers=(("Accept", "image/png, application/problem+json"),),
        idempotent=True,
    )


def delete(dataset: Dataset | DatasetSummary | str) -> Call[None]:
    """Hide a dataset. A second sending could find nothing there any more."""
    return Call("DELETE", _path(dataset), nothing, longest_seconds=QUICK_SECONDS)


def _path(dataset: Dataset | DatasetSummary | str) -> str:
    id = dataset if isinstance(dataset, str) else dataset.id
    if id in ("", ".", "..") or "/" in id:
        found = {"type": "value_error", "loc": (), "msg": f"{id[:100]!r} is no id of a dataset"}
        raise InvalidRequest(invalid_request([found]), 422)
    return f"/v1/datasets/{quote(id, safe=':')}"
