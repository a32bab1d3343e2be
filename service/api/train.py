"""The routes of train jobs."""

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response

from darkroom.types import (
    JobEvent,
    JobState,
    TrainArtifact,
    TrainEstimate,
    TrainJob,
    TrainJobPage,
    TrainRequest,
)
from service.api import conditions, exchange, negotiation
from service.api.files import Cursor, FileStream, Limit
from service.api.in_flight import InFlight
from service.api.refusals import NotAcceptable
from service.api.train_stream import HEARTBEAT_SECONDS, JobEventStream
from service.train_jobs import EVENTS_AT_ONCE, ArtifactFile, TrainJobs

REPLAYED: Final = "Idempotent-Replayed"

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
    | {
        422: "The request is invalid, impossible here, does not fit the device, or its key came with another body."
    },
    "estimate_train_job": _BODY | {422: "The request is invalid, or impossible here."},
    "list_train_jobs": {422: "The request is invalid.", 503: _AWAY},
    "get_train_job": _READ,
    "get_train_job_events": _READ | {406: "No representation that the caller accepts."},
    "list_train_job_artifacts": _READ,
    "get_train_job_artifact": _READ | {404: "No such job, or no such file."},
    "cancel_train_job": _READ,
    "retry_train_job": _READ | {409: "The job has neither failed nor been cancelled."},
}

JobId = Annotated[str, Path(max_length=100, description="Of the job.")]
EventId = Annotated[int, Query(ge=0, le=2**31 - 1, description="Id of the last event that is known.")]
Key = Annotated[
    str,
    Header(
        max_length=128,
        pattern=r"^[!-~]*$",
        description="Your own name for this request. Sent again under it, it is the job that it was.",
    ),
]


def router(
    jobs: Callable[[], TrainJobs], in_flight: InFlight, *, heartbeat_seconds: float = HEARTBEAT_SECONDS
) -> APIRouter:
    """The routes over this use case."""
    routes = APIRouter(prefix="/v1/train-jobs", tags=["train"])

    @routes.post(
        "",
        operation_id="create_train_job",
        summary="Have a LoRA or an embedding trained",
        description="The job goes on by itself. What cannot work is refused before there is a job.",
        status_code=202,
        response_model=TrainJob,
        responses={
            202: {
                "description": "The job.",
                "headers": {
                    "Location": {"description": "Its path.", "schema": {"type": "string"}},
                    REPLAYED: {
                        "description": "`true` where the key is known and nothing was begun.",
                        "schema": {"type": "string"},
                    },
                },
            }
        },
    )
    async def create(order: TrainRequest, request: Request, idempotency_key: Key = "") -> Response:
        # Everybody has keys of their own.
        owner = exchange.of(request.scope).key_name or ""
        job, replayed = await jobs().create(
            order, key=f"{owner}/{idempotency_key}" if idempotency_key else ""
        )
        headers = {"Location": f"/v1/train-jobs/{job.id}"} | ({REPLAYED: "true"} if replayed else {})
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
        responses={200: {"description": "The events.", "content": _stream_content()}},
    )
    async def events(
        job_id: JobId,
        request: Request,
        after: EventId = 0,
        last_event_id: Annotated[
            int | None, Header(ge=0, le=2**31 - 1, description="As `after`; sent by readers that come back.")
        ] = None,
    ) -> Response:
        offers = (negotiation.EVENT_STREAM, negotiation.JSON)
        media_type = negotiation.preferred(offers, ",".join(request.headers.getlist("accept")))
        after = after if last_event_id is None else last_event_id
        if media_type is None:
            raise NotAcceptable(f"accept one of {', '.join(offers)}")
        if media_type == negotiation.JSON:
            past = await jobs().past_events(job_id, after=after)
            body = ",".join(event.model_dump_json(exclude_none=True) for event in past)
            return Response(f"[{body}]", headers={"Vary": "Accept"}, media_type=media_type)
        await jobs().get(job_id)  # a job that does not exist is a problem, and no stream
        told = jobs().events(job_id, after=after)
        return JobEventStream(told, in_flight, heartbeat_seconds=heartbeat_seconds)

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
        return _file(await jobs().open(job_id, name))

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


def _file(file: ArtifactFile) -> FileStream:
    headers = {
        "Content-Length": str(file.artifact.size_bytes),
        "ETag": conditions.etag(file.artifact.digest),
        "X-Content-Type-Options": "nosniff",
    }
    return FileStream(file.pieces, headers, file.artifact.media_type)


def _stream_content() -> dict[str, object]:
    """OpenAPI 3.1 has no schema for the single events of a stream; their classes are among the components."""
    text = (
        "Server-sent events with JSON in `data`: each `JobEvent` under its `type` and with its `id`, at last `done` "
        "(`TrainJob`), or `error` (`Problem`) where another replica has to go on. Comments are heartbeats."
    )
    return {negotiation.EVENT_STREAM: {"schema": {"type": "string", "description": text}}}
