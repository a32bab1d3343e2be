"""The routes of datasets: pictures with captions to learn from."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Path, Query, Request, Response

from darkroom.types import Dataset, DatasetPage, SynthesisProgress, SynthesizeRequest
from darkroom.types.datasets import MAX_CAPTION_CHARACTERS, MAX_PICTURES
from service.api import negotiation, uploads
from service.api.files import Cursor, Limit, body_of
from service.api.in_flight import InFlight
from service.api.problems import NO_ROOM
from service.api.refusals import UnsupportedMediaType
from service.api.stream import EventStream, Name
from service.datasets import forms
from service.datasets.datasets import MAX_NAME_CHARACTERS
from service.datasets.intake import Invalid

if TYPE_CHECKING:
    from service.wiring import Components

_AWAY: Final = "The database or storage is away; `Retry-After` says when to try again."
_FULL: Final = "The storage is full."
PROBLEMS: Final[dict[str, dict[int, str]]] = {
    "upload_dataset": {
        408: "The upload hardly gets on.",
        413: "The upload is too large.",
        415: "The body is not sent as an archive or a form.",
        422: "The upload cannot be taken apart, or (`errors` has all of them) pictures or captions cannot be used.",
        503: _AWAY,
        507: _FULL,
    },
    "synthesize_dataset": {
        400: "The body is not JSON.",
        406: "No representation that the caller accepts.",
        413: "The body is too large.",
        415: "The body is not sent as JSON.",
        422: "The request is invalid, or impossible here.",
        503: "The model is loading, the queue stays full, or the database or storage is away.",
        504: "A picture was not made in time.",
        507: _FULL,
    },
    "list_datasets": {422: "The request is invalid.", 503: _AWAY},
    "get_dataset": {404: "No such dataset.", 422: "The request is invalid.", 503: _AWAY},
    "get_dataset_picture": {404: "No such dataset, or picture.", 422: "The request is invalid.", 503: _AWAY},
    "delete_dataset": {404: "No such dataset.", 422: "The request is invalid.", 503: _AWAY} | NO_ROOM,
}

Id = Annotated[str, Path(max_length=100, description="`sha256:…` of its contents.")]
Place = Annotated[int, Path(ge=0, lt=MAX_PICTURES, description="Of the picture among `pictures`, from 0.")]
_HEADERS: Final = {"Location": {"description": "Its path.", "schema": {"type": "string"}}}
_FILE: Final = {"schema": {"type": "string", "format": "binary"}}
_EVENTS: Final = {
    negotiation.EVENT_STREAM: {
        "schema": {
            "type": "string",
            "description": "Server-sent events with JSON in `data`: `progress` (`SynthesisProgress`) from none made to "
            "all, at last exactly one `result` (`Dataset`) or `error` (`Problem`). Comments are heartbeats. What is "
            "refused before it begins is answered as a problem.",
        }
    }
}
_FORM: Final = {
    "schema": {
        "type": "object",
        "properties": {"file": {"type": "array", "items": {"type": "string", "format": "binary"}}},
    }
}


def router(components: Callable[[], "Components"], in_flight: InFlight) -> APIRouter:
    """The routes over these components."""
    routes = APIRouter(prefix="/v1/datasets", tags=["datasets"])

    @routes.post(
        "",
        operation_id="upload_dataset",
        summary="Upload pictures and captions",
        description=(
            "The body is a zip, tar or tar.gz file, or a form whose parts are the files. PNG, JPEG and WebP are taken; "
            "`fox.txt` is the caption of `fox.png`. What is kept is the pixels, upright, without metadata. The same "
            "pictures and captions again are the dataset that they were."
        ),
        response_model=Dataset,
        responses={
            200: {"description": "This dataset was there already."},
            201: {"model": Dataset, "description": "The new dataset.", "headers": _HEADERS},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    kind: _FORM if kind.startswith("multipart") else _FILE for kind in uploads.ARCHIVE_TYPES
                },
            }
        },
    )
    async def upload(
        request: Request,
        prompt: Annotated[
            str,
            Query(max_length=MAX_CAPTION_CHARACTERS, description="Caption of every picture without its own."),
        ] = "",
        invalid: Annotated[
            Invalid, Query(description="`skip`: leave out what cannot be used, and list it in `faults`.")
        ] = "refuse",
        name: Annotated[str, Query(max_length=MAX_NAME_CHARACTERS)] = "",
    ) -> Response:
        boundary = forms.boundary_of(request.headers.get("content-type", ""))
        if boundary == b"":
            raise UnsupportedMediaType("the `Content-Type` of a form names its boundary, of 70 bytes at most")
        library = components().dataset_library
        uploaded = library.upload(
            body_of(request), boundary=boundary, prompt=prompt, invalid=invalid, name=name
        )
        return _made(await in_flight.run(uploaded, uploads.silence))

    @routes.post(
        "/synthesize",
        operation_id="synthesize_dataset",
        summary="Have the resident model make pictures to learn from",
        description=(
            "Every prompt at every guidance value; `recipe: wrong` is a set of bad pictures. Answers once they are "
            "made, which may take minutes; with `Accept: text/event-stream` it is told how far they are. The same "
            "request again is the dataset that it was."
        ),
        response_model=Dataset,
        responses={
            200: {"description": "This dataset was there already, or the events.", "content": _EVENTS},
            201: {"model": Dataset, "description": "The new dataset.", "headers": _HEADERS},
        },
    )
    async def synthesize(body: SynthesizeRequest, request: Request) -> Response:
        offers = (negotiation.JSON, negotiation.EVENT_STREAM)
        media_type = negotiation.chosen(offers, ",".join(request.headers.getlist("accept")))
        if media_type == negotiation.EVENT_STREAM:
            return EventStream(components().synthesis.events(body), in_flight, _as_json)
        return _made(await in_flight.run(components().synthesis.synthesize(body), request.receive))

    @routes.get("", operation_id="list_datasets", summary="Datasets, the newest first")
    async def find(
        limit: Limit = 50,
        cursor: Cursor = "",
    ) -> DatasetPage:
        return await components().dataset_library.list(limit=limit, cursor=cursor)

    @routes.get("/{id}", operation_id="get_dataset", summary="A dataset with all its pictures")
    async def get(id: Id) -> Dataset:
        return await components().dataset_library.get(id)

    @routes.get(
        "/{id}/pictures/{place}",
        operation_id="get_dataset_picture",
        summary="One picture as it is kept",
        response_class=Response,
        responses={200: {"description": "The picture.", "content": {"image/png": _FILE}}},
    )
    async def picture(id: Id, place: Place) -> Response:
        return Response(await components().dataset_library.picture(id, place), media_type="image/png")

    @routes.delete("/{id}", operation_id="delete_dataset", summary="Delete a dataset", status_code=204)
    async def delete(id: Id) -> None:
        await components().dataset_library.delete(id)

    return routes


def _made(dataset: Dataset) -> Response:
    headers = {"Location": f"/v1/datasets/{dataset.id}"}
    status = 200 if dataset.existing else 201
    return Response(dataset.model_dump_json(), status, headers, "application/json")


def _as_json(event: SynthesisProgress | Dataset) -> tuple[Name, str]:
    return ("result" if isinstance(event, Dataset) else "progress"), event.model_dump_json()
