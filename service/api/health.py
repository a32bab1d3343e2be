"""How the service is: probes, metrics, and what it is."""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from darkroom.types import ServiceInfo
from service.errors import DarkroomError, Draining, EngineStopped, ModelLoading
from service.metrics import CONTENT_TYPE

if TYPE_CHECKING:
    from service.wiring import Components

POLL_SECONDS = 2.0


def router(components: Callable[[], "Components"]) -> APIRouter:
    """The routes over these components."""
    routes = APIRouter(tags=["health"])

    @routes.get("/healthz", include_in_schema=False)
    @routes.get(
        "/livez",
        operation_id="livez",
        summary="Whether the process can still be of use",
        description="Red only when a restart is the cure: a dead engine, a model that could not be loaded.",
        response_class=PlainTextResponse,
    )
    async def livez() -> str:
        if not components().alive():
            raise EngineStopped
        return "alive\n"

    @routes.get(
        "/readyz",
        operation_id="readyz",
        summary="Whether a picture can be made now",
        description="Looks at the weights in memory and, now and then, at the canary picture, before it answers.",
        response_class=PlainTextResponse,
    )
    async def readyz() -> str:
        await asyncio.to_thread(components().inspect)
        readiness = components().ready()
        if not readiness.ready:
            raise _not_ready(readiness.reason)
        return "ready\n"

    @routes.get(
        "/metrics",
        operation_id="metrics",
        summary="Metrics in Prometheus' text format",
        response_class=PlainTextResponse,
    )
    async def metrics() -> Response:
        service = components()
        service.metrics.ready.set(service.ready().ready)
        return Response(service.metrics.render(), media_type=CONTENT_TYPE)

    @routes.get("/v1/info", operation_id="info", summary="What this service is and what it can do")
    async def info() -> ServiceInfo:
        return components().info()

    return routes


def _not_ready(reason: str) -> DarkroomError:
    match reason:
        case "loading":
            return ModelLoading(retry_after_seconds=POLL_SECONDS)
        case "draining":
            return Draining()
    return EngineStopped()
