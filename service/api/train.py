"""The routes of train jobs."""

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response

from darkroom.types import (
    JobEvent,
    JobState,
    TrainArtifact,
    TrainEstimate,
    TrainJob,
    TrainJobPage,
    TrainRequest,
)
from service.api import idempotency, row_stream
from service.api.files import Cursor, Limit, sent
from service.api.in_flight import InFlight
from service.api.problems import NO_ROOM
from service.api.row_stream import RowStream
from service.following import EVENTS_AT_ONCE
from service.train_jobs import TrainJobs

_AWAY: Final = "The database is away; `Retry-After` says when to try again."
_READ: Final = {404: "No such job.", 422: "The request is invalid.", 503: _AWAY}
_BODY: Final = {
    400: "The body is not JSON.",
    404: "No such dataset.",
    413: "The body is too large.",
    415: "The body is not sent as JSON.",
    503: "The database is away, or the model is loading; `Retry-After` says when to try again.",
}
PROBLEMS: Final[dict[str, dict[int, str]]] = {
    "create_train_job": _BODY
    | NO_ROOM
    | {
        422: "The request is invalid, impossible here, does not fit the device, or its key came with another body."
    },
    "estimate_train_job": _BODY | {422: "The request is invalid, or impossible here."},
    "list_train_jobs": {422: "The request is invalid.", 503: _AWAY},
    "get_train_job": _READ,
    "get_train_job_events": _READ | {406: "No representation that the caller accepts."},
    "list_train_job_artifacts": _READ,
    "get_train_job_artifact": _READ | {404: "No such job, or no such file."},
    "cancel_train_job": _READ | NO_ROOM,
    "retry_train_job": _READ | NO_ROOM | {409: "The job has neither failed nor been cancelled."},
}

JobId = Annotated[str, Path(max_length=100, description="Of the job.")]


def router(jobs: Callable[[], TrainJobs], in_flight: InFlight) -> APIRouter:
    """The routes over this use case."""
    routes = APIRouter(prefix="/v1/train-jobs", tags=["train"])

    @routes.post(
        "",
        operation_id="create_train_job",
        summary="Have a LoRA or an embedding trained",
        description="The job goes on by itself. What cannot work is refused before there is a job.",
        status_code=202,
        response_model=TrainJob,
        responses={202: {"description": "The job.", "headers": idempotency.HEADERS}},
    )
    async def create(
        order: TrainRequest, request: Request, idempotency_key: idempotency.Key = ""
    ) -> Response:
        key = idempotency.owned(idempotency_key, request.scope)
        job, replayed = await jobs().create(order, key=key)
        headers = idempotency.headers(f"/v1/train-jobs/{job.id}", replayed=replayed)
        return Response(job.model_dump_json(), 202, headers, "application/json")

    @routes.post(
        "/estimate",
        operation_id="estimate_train_job",
        summary="What a job would need, and whether it fits",
        description="Nothing is begun. The answer has the recipe with every default filled in.",
    )
    async def estimate(order: TrainRequest) -> TrainEstimate:
        return await jobs().estimate(order)

    @routes.get("", operation_id="list_train_jobs", summary="Jobs, the newest first")
    async def find(
        state: Annotated[JobState | None, Query(description="Only those in this state.")] = None,
        limit: Limit = 50,
        cursor: Cursor = "",
    ) -> TrainJobPage:
        return await jobs().list(state=state, limit=limit, cursor=cursor)

    @routes.get("/{job_id}", operation_id="get_train_job", summary="A job as it stands")
    async def get(job_id: JobId) -> TrainJob:
        return await jobs().get(job_id)

    @routes.get(
        "/{job_id}/events",
        operation_id="get_train_job_events",
        summary="What happens to a job",
        description=(
            "As a stream, until the job has ended; `Last-Event-ID` or `after` lets it begin later. With "
            f"`Accept: application/json` what has happened so far, {EVENTS_AT_ONCE} events at most."
        ),
        response_model=list[JobEvent],
        responses={200: {"description": "The events.", "content": row_stream.content(JobEvent, TrainJob)}},
    )
    async def events(
        job_id: JobId,
        request: Request,
        after: row_stream.After = 0,
        last_event_id: row_stream.LastEventId = None,
    ) -> Response:
        known = after if last_event_id is None else last_event_id
        if row_stream.wants_list(request):
            return row_stream.listed(await jobs().past_events(job_id, after=known))
        await jobs().check(job_id)  # a job that does not exist is a problem, and no stream
        return RowStream(jobs().events(job_id, after=known), in_flight)

    @routes.get(
        "/{job_id}/artifacts",
        operation_id="list_train_job_artifacts",
        summary="The files that a job has made so far",
    )
    async def artifacts(job_id: JobId) -> list[TrainArtifact]:
        return (await jobs().get(job_id)).artifacts

    @routes.get(
        "/{job_id}/artifacts/{name:path}",
        operation_id="get_train_job_artifact",
        summary="A file of a job",
        response_class=Response,
        responses={
            200: {
                "description": "The file, of the media type that the list of artifacts says.",
                "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
                "headers": {"ETag": {"description": "Its digest.", "schema": {"type": "string"}}},
            }
        },
    )
    async def artifact(
        job_id: JobId, name: Annotated[str, Path(max_length=200, description="Of the file.")]
    ) -> Response:
        return sent(await jobs().open(job_id, name))

    @routes.delete(
        "/{job_id}",
        operation_id="cancel_train_job",
        summary="Have a job end",
        description="At once where it waits, else at its next step. One that has ended stays as it is.",
    )
    async def cancel(job_id: JobId) -> TrainJob:
        return await jobs().cancel(job_id)

    @routes.post(
        "/{job_id}/retry",
        operation_id="retry_train_job",
        summary="Have a job that failed or was cancelled go on from its last checkpoint",
        status_code=202,
    )
    async def retry(job_id: JobId) -> TrainJob:
        return await jobs().retry(job_id)

    return routes
