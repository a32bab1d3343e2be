"""Routes that need the engine beside the registry: blends of LoRAs, and pins in this replica's memory."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Path, Request, Response

from darkroom.types import BlendRequest, LoraServed, LoraVersion
from darkroom.types.loras import MAX_VERSION
from service.api.in_flight import InFlight

if TYPE_CHECKING:
    from service.wiring import Components

PROBLEMS: Final[dict[str, dict[int, str]]] = {
    "blend_loras": {
        400: "The body is not JSON.",
        409: "The bytes are there under another number.",
        413: "The body, or the blend, is too large.",
        415: "The body is not sent as JSON.",
        422: "The request is invalid, or the LoRAs cannot be blended so.",
        503: "The registry's database or storage is away, or the model is loading.",
        507: "The storage is full.",
    },
    "pin_lora": {
        404: "No such version.",
        422: "The request is invalid, or the LoRA is not for the resident model.",
        503: "The model is loading, or the file cannot be had.",
    },
    "unpin_lora": {404: "No such version.", 422: "The request is invalid.", 503: "The model is loading."},
}

Name = Annotated[str, Path(description="Of the LoRA.")]
Number = Annotated[int, Path(ge=1, le=MAX_VERSION, description="Number of the version.")]


def router(components: Callable[[], "Components"], in_flight: InFlight) -> APIRouter:
    """The routes over these components."""
    routes = APIRouter(prefix="/v1/loras/{name}", tags=["loras"])

    @routes.post(
        "/blends",
        operation_id="blend_loras",
        summary="Make one LoRA of several, and publish it",
        description="The same blend of the same sources again is the version that it was.",
        response_model=LoraVersion,
        responses={
            200: {"description": "These bytes were there already."},
            201: {"model": LoraVersion, "description": "The new version."},
        },
    )
    async def blend(name: Name, body: BlendRequest, request: Request) -> Response:
        published = await in_flight.run(components().blending.publish(name, body), request.receive)
        where = f"/v1/loras/{published.name}/versions/{published.version}"
        status = 200 if published.existing else 201
        return Response(published.model_dump_json(), status, {"Location": where}, "application/json")

    @routes.put(
        "/versions/{version}/pin",
        operation_id="pin_lora",
        summary="Bring a version into this replica's memory and keep it there",
        description="Until it is let go or the process ends; other replicas are not told.",
    )
    async def pin(name: Name, version: Number) -> LoraServed:
        return await components().adapters.pin(f"{name}@{version}")

    @routes.delete(
        "/versions/{version}/pin",
        operation_id="unpin_lora",
        summary="Let a version leave this replica's memory again",
        status_code=204,
    )
    async def unpin(name: Name, version: Number) -> None:
        await components().adapters.unpin(f"{name}@{version}")

    return routes
