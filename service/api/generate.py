"""POST /v1/generate."""

import asyncio
import base64
from collections.abc import Callable
from typing import TYPE_CHECKING, get_args

from fastapi import APIRouter, Request, Response

from darkroom.types import Accepted, GenerateRequest, GenerateResponse, LoraTier
from darkroom.types import Progress as WireProgress
from service import images
from service.api import negotiation
from service.api.in_flight import InFlight
from service.api.stream import EventStream, Name
from service.engine.orders import Progress

if TYPE_CHECKING:
    from service.generation import Event, Generated
    from service.wiring import Components

SUMMARY = "Images from a prompt"
DESCRIPTION = (
    "JSON with every image in base64, or, where `Accept` prefers `image/png`, `image/jpeg` or `image/webp` "
    "and one image was ordered, the bytes of that file. With `Accept: text/event-stream` the steps are told as "
    "they are made. The work stops when the caller disconnects."
)


def router(
    components: Callable[[], "Components"], in_flight: InFlight, *, heartbeat_seconds: float
) -> APIRouter:
    """The route over the use case of these components."""
    routes = APIRouter()

    @routes.post(
        "/v1/generate",
        operation_id="generate",
        tags=["images"],
        summary=SUMMARY,
        description=DESCRIPTION,
        response_model=GenerateResponse,
        responses={
            200: {
                "description": "The images.",
                "content": _image_content() | _stream_content(),
                "headers": _header_docs(),
            }
        },
    )
    async def generate(order: GenerateRequest, request: Request) -> Response:
        media_type = negotiation.representation(order, ",".join(request.headers.getlist("accept")))
        order = negotiation.with_format(order, media_type)
        generation = components().generation
        if media_type == negotiation.EVENT_STREAM:
            return EventStream(
                generation.events(order), in_flight, _as_json, heartbeat_seconds=heartbeat_seconds
            )
        generated = await in_flight.run(generation.generate(order), request.receive)
        headers = headers_of(generated)
        if media_type == negotiation.JSON:
            # Written here: FastAPI would validate and copy megabytes of base64 once more, on the event loop.
            return Response(await _json(generated), headers=headers, media_type=media_type)
        (image,) = generated.images
        return Response(image.data, headers=headers, media_type=image.media_type)

    return routes


async def _json(generated: "Generated") -> str:
    """The answer as JSON; megabytes of base64 are written off the event loop, for a small one the trip costs more."""
    if sum(len(image.data) for image in generated.images) < 256 * 1024:
        return generated.response().model_dump_json()
    return await asyncio.to_thread(lambda: generated.response().model_dump_json())


def headers_of(generated: "Generated") -> dict[str, str]:
    """What is known about the images, for those who read only headers."""
    return {
        "X-Darkroom-Id": generated.id,
        "X-Darkroom-Seed": str(generated.images[0].seed),
        "X-Darkroom-Model": _header_safe(generated.model),
        "Server-Timing": _server_timing(generated),
        "Vary": "Accept",
    }


def _server_timing(generated: "Generated") -> str:
    """Milliseconds by stage; where LoRAs were fetched, `desc` is the farthest tier that one came from."""
    seconds = generated.timings.model_dump()
    fetch = seconds.pop("fetch")
    stages = [f"{stage};dur={spent * 1000:.1f}" for stage, spent in seconds.items()]
    if generated.loras:
        farthest = max((lora.tier for lora in generated.loras), key=get_args(LoraTier).index)
        stages.insert(0, f'fetch;desc="{farthest}";dur={fetch * 1000:.1f}')
    return ", ".join(stages)


def _header_safe(text: str) -> str:
    """A model may be named after a folder, whose name may be anything."""
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in text)


def _image_content() -> dict[str, object]:
    return {name: {"schema": {"type": "string", "format": "binary"}} for name in negotiation.IMAGE_FORMATS}


def _stream_content() -> dict[str, object]:
    """OpenAPI 3.1 has no schema for the single events of a stream; their classes are among the components."""
    text = (
        "Server-sent events, each with an `id`, an `event` and JSON in `data`: first `accepted` (`Accepted`), then "
        "`progress` (`Progress`) for the steps, at last exactly one `result` (`GenerateResponse`) or `error` "
        "(`Problem`). Comments are heartbeats. What is refused before it is accepted is answered as a problem."
    )
    return {negotiation.EVENT_STREAM: {"schema": {"type": "string", "description": text}}}


def _header_docs() -> dict[str, object]:
    said = {
        "X-Darkroom-Id": "Id of this run. A stream of events tells it, and the rest, in its events.",
        "X-Darkroom-Seed": "Seed of the first image.",
        "X-Darkroom-Model": "Name of the model.",
        "Server-Timing": "Milliseconds by stage; `fetch` names the tier that the LoRAs came from.",
    }
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in said.items()}


def _as_json(event: "Event") -> tuple[Name, str]:
    """Name and data of an event. Pictures are encoded here: call it from a thread."""
    if isinstance(event, Accepted):
        return "accepted", event.model_dump_json()
    if isinstance(event, Progress):
        preview = None if event.preview_HWC is None else images.encode_png(event.preview_HWC)
        progress = WireProgress(
            index=event.index,
            step=event.step,
            steps=event.steps,
            preview_b64=None if preview is None else base64.b64encode(preview).decode("ascii"),
        )
        return "progress", progress.model_dump_json(exclude_none=True)
    return "result", event.response().model_dump_json()
