"""The FastAPI app: the routes under /v1, the probes, and their OpenAPI 3.1 description."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from darkroom.types import Accepted, CompareEvent, JobEvent, Problem, Progress, SynthesisProgress
from lora_registry.errors import RegistryError
from service import __version__
from service.api import compare, datasets, docs, generate, health, lora_uses, loras, problems, train
from service.api.auth import OPEN_PATHS
from service.api.in_flight import InFlight
from service.api.stream import HEARTBEAT_SECONDS
from service.errors import DarkroomError

if TYPE_CHECKING:
    from service.wiring import Components

_PROBLEMS = (
    {
        "generate": {
            400: "The body is not JSON.",
            406: "No representation that the caller accepts.",
            413: "The body is too large, or the image does not fit the device.",
            415: "The body is not sent as JSON.",
            422: "The request is invalid, impossible here, or its image is unusable.",
            503: "Overloaded, loading or shutting down; `Retry-After` says when to try again.",
            504: "The deadline passed.",
        },
        "livez": {503: "A restart is needed."},
        "readyz": {503: "No picture can be made yet, or any more."},
    }
    | loras.PROBLEMS
    | lora_uses.PROBLEMS
    | datasets.PROBLEMS
    | train.PROBLEMS
    | compare.PROBLEMS
)
_KEY_PROBLEMS = {401: "A valid API key is needed.", 403: "The API key lacks the scope."}
_REF = "#/components/schemas/{model}"


def create_app(
    components: Callable[[], "Components"],
    in_flight: InFlight | None = None,
    *,
    heartbeat_seconds: float = HEARTBEAT_SECONDS,
) -> FastAPI:
    """The app over components that exist once it is asked something. `edge.Edge` goes around it."""
    app = FastAPI(
        title="Darkroom",
        version=__version__,
        description="An SDXL microservice. Errors are RFC 9457 problems, whose `code` is for programs.",
        openapi_url="/v1/openapi.json",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # a redirect would go to whatever host the caller's Host header names
    )
    in_flight = in_flight or InFlight()
    app.include_router(generate.router(components, in_flight, heartbeat_seconds=heartbeat_seconds))
    app.include_router(loras.router(lambda: components().loras, in_flight))
    app.include_router(lora_uses.router(components, in_flight))
    app.include_router(datasets.router(components, in_flight))
    app.include_router(train.router(lambda: components().train_jobs, in_flight))
    app.include_router(compare.router(lambda: components().comparisons, in_flight))
    app.include_router(health.router(components))
    app.include_router(docs.router())
    app.add_exception_handler(DarkroomError, _answer_problem)
    app.add_exception_handler(RegistryError, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_problem)
    app.openapi = lambda: _description(app)  # type: ignore[method-assign]
    return app


async def _answer_problem(request: Request, error: Exception) -> Response:
    return problems.respond(error, request.scope)


def _description(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document, with our problems in the place of FastAPI's own validation error."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        components = document["components"]
        for name in ("HTTPValidationError", "ValidationError"):
            components["schemas"].pop(name, None)
        # No route's own answer has them.
        for model in (Problem, Accepted, Progress, JobEvent, CompareEvent, SynthesisProgress):
            components["schemas"] |= _schemas(model)
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                _declare_problems(operation, needs_key=path not in OPEN_PATHS)
        app.openapi_schema = document
    return app.openapi_schema


def _schemas(model: type[BaseModel]) -> dict[str, Any]:
    schema = model.model_json_schema(mode="serialization", ref_template=_REF)
    return {**schema.pop("$defs", {}), model.__name__: schema}


def _declare_problems(operation: dict[str, Any], *, needs_key: bool) -> None:
    declared = dict(_PROBLEMS.get(operation["operationId"], {}))
    if needs_key:
        operation["security"] = [{"key": []}, {}]  # none is asked for where none is configured
        declared |= _KEY_PROBLEMS
    operation["responses"].pop("422", None)
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": _REF.format(model="Problem")}}}
    for status, text in sorted(declared.items()):
        answer: dict[str, Any] = {"description": text, "content": content}
        if status == 503:
            answer["headers"] = {"Retry-After": {"schema": {"type": "integer"}, "description": "Seconds."}}
        operation["responses"][str(status)] = answer
