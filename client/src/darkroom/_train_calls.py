"""The endpoints of train jobs, as `_calls` has the others. Nothing here does I/O."""

from collections.abc import Iterable, Mapping
from typing import Final, TypedDict, TypeVar, get_args
from urllib.parse import quote

from pydantic import BaseModel, TypeAdapter

from darkroom._calls import QUICK_SECONDS, Call, nothing
from darkroom._errors import InvalidRequest, NotFound, refused_before_sending
from darkroom._following import Followed
from darkroom._transfers import Download
from darkroom.types import (
    Dataset,
    JobEvent,
    JobEventType,
    JobState,
    Problem,
    SynthesizeRequest,
    TrainArtifact,
    TrainEstimate,
    TrainJob,
    TrainJobPage,
    TrainKind,
    TrainRecipe,
    TrainRequest,
)
from darkroom.types.faults import bounded, invalid_request

M = TypeVar("M", bound=BaseModel)

_ARTIFACTS = TypeAdapter(list[TrainArtifact])
_EVENTS: Final = frozenset(get_args(JobEventType))


class TrainOptions(TypedDict, total=False):
    """What every kind of job takes beside its own. `TrainRequest` explains each, and has the defaults."""

    recipe: TrainRecipe | Mapping[str, object]
    evaluate: bool
    alias: str | None
    tags: Iterable[str]
    description: str


class Taught(TypedDict, total=False):
    """What tells the kinds apart."""

    dataset: Dataset | str | None
    synthesis: SynthesizeRequest | None
    instance_prompt: str | None
    class_prompt: str | None
    token: str | None


def request_of(kind: TrainKind, name: str, taught: Taught, options: TrainOptions) -> TrainRequest:
    """The request that keywords make up.

    Raises: `InvalidRequest`
    """
    said = {field: value for field, value in {**taught, **options}.items() if value is not None}
    if isinstance(dataset := said.get("dataset"), Dataset):
        said["dataset"] = dataset.id
    if "tags" in said:
        said["tags"] = tuple(options["tags"])
    with refused_before_sending():
        return TrainRequest.model_validate({**said, "kind": kind, "name": name})


def create(request: TrainRequest, key: str) -> Call[TrainJob]:
    """A job. A second sending under the same key finds the job of the first."""
    return Call(
        "POST",
        _path(),
        TrainJob.model_validate_json,
        body=_body(request),
        headers=(("Content-Type", "application/json"), ("Idempotency-Key", key)),
        idempotent=True,
    )


def estimate(request: TrainRequest) -> Call[TrainEstimate]:
    """What a job would need."""
    return Call(
        "POST",
        _path("estimate"),
        TrainEstimate.model_validate_json,
        body=_body(request),
        headers=(("Content-Type", "application/json"),),
        idempotent=True,
    )


def get(job: TrainJob | str) -> Call[TrainJob]:
    """A job as it stands."""
    return _get(TrainJob, _path(id_of(job)))


def page(*, state: JobState | None, cursor: str) -> Call[TrainJobPage]:
    """Some jobs."""
    said = {"state": state or "", "cursor": cursor}
    return _get(TrainJobPage, _path(), tuple((name, value) for name, value in said.items() if value))


def cancel(job: TrainJob | str) -> Call[TrainJob]:
    """A job that is to end."""
    return Call(
        "DELETE",
        _path(id_of(job)),
        TrainJob.model_validate_json,
        idempotent=True,
        longest_seconds=QUICK_SECONDS,
    )


def retry(job: TrainJob | str) -> Call[TrainJob]:
    """A job that goes on. A second sending could find it queued already, and be refused."""
    return Call(
        "POST", _path(id_of(job), "retry"), TrainJob.model_validate_json, longest_seconds=QUICK_SECONDS
    )


def followed(job: TrainJob | str) -> Followed[JobEvent, TrainJob]:
    """What tells of a job."""
    path = _path(id_of(job), "events")
    return Followed(f"train job {id_of(job)}", path, JobEvent, _EVENTS, TrainJob)


def artifacts(job: TrainJob | str) -> Call[list[TrainArtifact]]:
    """The files that a job has made so far."""
    return Call(
        "GET",
        _path(id_of(job), "artifacts"),
        _ARTIFACTS.validate_json,
        idempotent=True,
        longest_seconds=QUICK_SECONDS,
    )


def artifact(job: TrainJob | str, name: str) -> Call[bytes]:
    """The bytes of a file."""
    return Call("GET", _file(job, name), bytes, headers=(("Accept", "*/*"),), idempotent=True)


def download(job: TrainJob | str, name: str, into: Download) -> Call[None]:
    """The bytes of a file, into a download."""
    return Call(
        "GET", _file(job, name), nothing, headers=(("Accept", "*/*"),), download=into, idempotent=True
    )


def named(found: Iterable[TrainArtifact], job: TrainJob | str, name: str) -> TrainArtifact:
    """The file of that name.

    Raises: `NotFound`, which says what there is.
    """
    there = {one.name: one for one in found}
    if name in there:
        return there[name]
    names = ", ".join(there) or "nothing yet"
    detail = bounded(f"job {id_of(job)} has no file {name!r}; it has {names}")
    raise NotFound(
        Problem(title="The file was not found", status=404, detail=detail, code="artifact_not_found"), 404
    )


def id_of(job: TrainJob | str) -> str:
    """The id of a job, or of one that is known by it."""
    return job.id if isinstance(job, TrainJob) else job


def _body(request: TrainRequest) -> bytes:
    return request.model_dump_json(exclude_defaults=True).encode()


def _get(model: type[M], path: str, query: tuple[tuple[str, str], ...] = ()) -> Call[M]:
    return Call(
        "GET", path, model.model_validate_json, query=query, idempotent=True, longest_seconds=QUICK_SECONDS
    )


def _file(job: TrainJob | str, name: str) -> str:
    return _path(id_of(job), "artifacts", *name.split("/"))


def _path(*parts: str) -> str:
    """The path of a route.

    Raises: `InvalidRequest` for a name that would lead to another one.
    """
    for part in parts:
        if part in ("", ".", "..") or "/" in part:
            message = f"{part[:100]!r} is no id of a train job and no name of its files"
            raise InvalidRequest(invalid_request([{"type": "value_error", "loc": (), "msg": message}]), 422)
    return "/".join(("/v1/train-jobs", *(quote(part, safe="") for part in parts)))
