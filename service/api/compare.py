"""The routes of comparisons: begun at `/v1/compare`, and from then on runs of their own."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response

from darkroom.types import (
    CompareEvent,
    ComparePlan,
    CompareRequest,
    Comparison,
    ComparisonPage,
    RunState,
)
from darkroom.types.compare import MAX_ARMS, MAX_PROMPTS, MAX_SEEDS
from service.api import idempotency, negotiation, row_stream
from service.api.files import Cursor, Limit, sent
from service.api.in_flight import InFlight
from service.api.problems import NO_ROOM
from service.api.row_stream import RowStream

if TYPE_CHECKING:  # which would import torch, before a worker needs it
    from service.comparisons import Comparisons

_AWAY: Final = "The database or storage is away; `Retry-After` says when to try again."
_READ: Final = {404: "No such run.", 422: "The request is invalid.", 503: _AWAY}
PROBLEMS: Final[dict[str, dict[int, str]]] = {
    "compare": {
        400: "The body is not JSON.",
        413: "The body is too large.",
        415: "The body is not sent as JSON.",
        422: "The request is invalid, impossible here, costs more than the service takes, or its key came with "
        "another body.",
        503: "The database is away, or the model is loading; `Retry-After` says when to try again.",
    }
    | NO_ROOM,
    "list_runs": {422: "The request is invalid.", 503: _AWAY},
    "get_run": _READ,
    "cancel_run": _READ | NO_ROOM,
    "get_run_events": _READ | {406: "No representation that the caller accepts."},
    "get_run_image": _READ | {404: "No such run, or no picture in this cell (yet)."},
    "get_run_file": _READ | {404: "No such run, or no such file (yet)."},
}

KEPT_A_WHILE: Final = "private, max-age=3600"
"""Of a picture: a cell that was drawn but not scored when a service died is drawn again, as a rule to the same bits.
`private`: it took a key to get it."""
REPORT_POLICY: Final = (
    "sandbox allow-scripts; default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Of whatever is opened in a browser: scripts of its own run, in an origin that is nobody's and without a network."""

Id = Annotated[str, Path(max_length=100, description="Of the run.")]
Cell = Annotated[int, Path(ge=0, lt=MAX_ARMS * MAX_PROMPTS * MAX_SEEDS, description="`index` of the cell.")]
Name = Annotated[str, Path(max_length=200, description="Of the file.")]

_BINARY: Final = {"schema": {"type": "string", "format": "binary"}}
_ETAG: Final = {"ETag": {"description": "Its digest.", "schema": {"type": "string"}}}


def router(runs: Callable[[], "Comparisons"], in_flight: InFlight) -> APIRouter:
    """The routes over this use case."""
    routes = APIRouter(prefix="/v1", tags=["compare"])

    @routes.post(
        "/compare",
        operation_id="compare",
        summary="Have arms compared on the same prompts and seeds",
        description=(
            "Measured picture by picture against the baseline, with a verdict by metric. The run goes on by itself. "
            "What cannot work is refused before there is one. With `dry_run` the answer is what it would cost."
        ),
        status_code=202,
        response_model=Comparison,
        responses={
            200: {"model": ComparePlan, "description": "The plan: nothing was begun, as `dry_run` asks."},
            202: {"description": "The comparison.", "headers": idempotency.HEADERS},
        },
    )
    async def compare(
        order: CompareRequest, request: Request, idempotency_key: idempotency.Key = ""
    ) -> Response:
        if order.dry_run:
            plan = await runs().plan(order)
            return Response(plan.model_dump_json(), media_type=negotiation.JSON)
        key = idempotency.owned(idempotency_key, request.scope)
        begun, replayed = await runs().create(order, key=key)
        headers = idempotency.headers(f"/v1/runs/{begun.id}", replayed=replayed)
        return Response(begun.model_dump_json(), 202, headers, negotiation.JSON)

    @routes.get(
        "/runs", operation_id="list_runs", summary="Comparisons, the newest first, without their cells"
    )
    async def find(
        state: Annotated[RunState | None, Query(description="Only those in this state.")] = None,
        limit: Limit = 50,
        cursor: Cursor = "",
    ) -> ComparisonPage:
        return await runs().list(state=state, limit=limit, cursor=cursor)

    @routes.get("/runs/{id}", operation_id="get_run", summary="A comparison as it stands")
    async def get(id: Id) -> Comparison:
        return await runs().get(id)

    @routes.delete(
        "/runs/{id}",
        operation_id="cancel_run",
        summary="Have a comparison end",
        description=(
            "At once where it waits, else after the pictures that are being made; what is done is kept. One that has "
            "ended stays as it is."
        ),
    )
    async def cancel(id: Id) -> Comparison:
        return await runs().cancel(id)

    @routes.get(
        "/runs/{id}/events",
        operation_id="get_run_events",
        summary="What happens to a comparison",
        description=(
            "As a stream, until it has ended; `Last-Event-ID` or `after` lets it begin later. With "
            "`Accept: application/json` what has happened so far, as many events as fit one answer: `after` gives "
            "the next."
        ),
        response_model=list[CompareEvent],
        responses={
            200: {"description": "The events.", "content": row_stream.content(CompareEvent, Comparison)}
        },
    )
    async def events(
        id: Id,
        request: Request,
        after: row_stream.After = 0,
        last_event_id: row_stream.LastEventId = None,
    ) -> Response:
        known = after if last_event_id is None else last_event_id
        if row_stream.wants_list(request):
            return row_stream.listed(await runs().past_events(id, after=known))
        await runs().check(id)  # one that does not exist is a problem, and no stream
        return RowStream(runs().events(id, after=known), in_flight)

    @routes.get(
        "/runs/{id}/images/{cell}",
        operation_id="get_run_image",
        summary="The picture of a cell",
        response_class=Response,
        responses={200: {"description": "The picture.", "content": {"image/png": _BINARY}, "headers": _ETAG}},
    )
    async def image(id: Id, cell: Cell) -> Response:
        return sent(await runs().image(id, cell), {"Cache-Control": KEPT_A_WHILE})

    @routes.get(
        "/runs/{id}/files/{name:path}",
        operation_id="get_run_file",
        summary="A file of a comparison: its sheet, reports and difference maps",
        response_class=Response,
        responses={
            200: {
                "description": "The file, of the media type that the list of files says.",
                "content": {"application/octet-stream": _BINARY},
                "headers": _ETAG,
            }
        },
    )
    async def file(id: Id, name: Name) -> Response:
        policy = {"Content-Security-Policy": REPORT_POLICY, "Content-Disposition": "inline"}
        return sent(await runs().open(id, name), policy)

    return routes
