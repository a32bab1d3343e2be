"""The BentoML service: life cycle, native doors, the edge around it all. Only here is bentoml imported."""

import asyncio
import os

# Before prometheus_client is imported: with one worker its multi-process files only take the process
# metrics away. And no usage reports to anybody.
os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)
os.environ.setdefault("BENTOML_DO_NOT_TRACK", "true")
# Before torch is imported: OpenMP threads that wait spinning make a step on a shared CPU ten to a hundred times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import socket
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

import bentoml
import click
import pydantic
from _bentoml_impl.server.app import ServiceAppFactory  # type: ignore[import-untyped]
from _bentoml_sdk import Service
from _bentoml_sdk.io_models import IOMixin
from bentoml.exceptions import BentoMLException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from darkroom.types import CompareRequest, Comparison, GenerateRequest, GenerateResponse
from service import logs
from service.api import problems
from service.api.app import create_app
from service.api.auth import KeyRing, check_bind
from service.api.edge import App, Edge
from service.api.generate import headers_of
from service.api.in_flight import InFlight
from service.api.refusals import Answered
from service.api.shutdown import Shutdown
from service.errors import InvalidOption, InvalidSettings
from service.production import check_no_faults
from service.settings import Settings

if TYPE_CHECKING:
    from service.wiring import Components

BACKSTOP_SECONDS = 3600
"""BentoML's own time limit. Deadlines are ours; a run that outlives this one is lost to a bug."""


@cache
def settings() -> Settings:
    """The settings of this process."""
    return Settings()


@cache
def components() -> "Components":
    """The built service of this process. Only a worker asks for one, and only then is torch imported."""
    from service.wiring import build

    return build(settings())


in_flight = InFlight()


class Doors(ServiceAppFactory):
    """BentoML's app, whose native doors answer errors as the REST door does."""

    async def api_endpoint(self, name: str, request: Request) -> Response:
        try:
            return await super().api_endpoint(name, request)
        except Exception as error:  # the edge of the process: every error becomes an answer
            return problems.respond(self._as_ours(name, error), request.scope)

    def _as_ours(self, name: str, error: Exception) -> Exception:
        if isinstance(error, BentoMLException):
            return Answered(error.error_code.value)
        if isinstance(error, pydantic.ValidationError):
            of_the_body = error.title == self.service.apis[name].input_spec.__name__
            return error if of_the_body else RuntimeError(f"an invalid {error.title} was made")
        return error

    def get_system_routes(self, path_prefix: str = "") -> list[BaseRoute]:  # noqa: ARG002
        """None: ours tell a reason and when to ask again."""
        return []


class EdgedService(Service[Any]):
    """A BentoML service with our edge outside of everything that BentoML builds."""

    def to_asgi(self, is_main: bool = True) -> App:
        logs.configure(log_format=settings().log_format, level=settings().log_level)
        _check_start(_worker_host())
        self.inject_config()
        app = Doors(self, is_main=is_main)()
        app.router.redirect_slashes = False  # as in our own app
        return Edge(
            app,
            keys=KeyRing.from_settings(settings()),
            metrics=components().metrics,
            max_body_bytes=settings().max_body_bytes,
        )


class Body(IOMixin):
    """A request that BentoML's own client can send: its schema is made plain enough for it."""

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        schema: dict[str, Any] = super().model_json_schema(*args, **kwargs)
        _make_plain(schema)
        return schema


class GenerateBody(Body, GenerateRequest):
    """Of `/generate`."""


class CompareBody(Body, CompareRequest):
    """Of `/compare`."""


@bentoml.service(
    name="darkroom",
    service_class=EdgedService,
    workers=1,
    traffic={"timeout": BACKSTOP_SECONDS},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
@bentoml.asgi_app(create_app(components, in_flight), path="/")
class Darkroom:
    """Images from prompts with a resident SDXL base and refiner."""

    @bentoml.on_deployment
    @staticmethod
    def check_start() -> None:
        """Fail in the command itself, before any worker starts: a worker that dies is started again."""
        _check_start(_command_host())

    @bentoml.on_startup
    def start(self) -> None:
        components().start()
        Shutdown(components().drain, in_flight, patience_seconds=settings().drain_seconds).install()

    @bentoml.on_shutdown
    def close(self) -> None:
        components().close()

    @bentoml.api(route="/generate")
    async def generate(self, request: GenerateBody, /, ctx: bentoml.Context) -> GenerateResponse:
        """Images from a prompt, as JSON. `POST /v1/generate` is the same with more ways to answer."""
        generated = await in_flight.run(components().generation.generate(request), ctx.request.receive)
        ctx.response.headers.update(headers_of(generated))
        return await asyncio.to_thread(generated.response)

    @bentoml.api(route="/compare")
    async def compare(self, request: CompareBody, /) -> Comparison:
        """A comparison, begun. `POST /v1/compare` is the same with keys and plans, `/v1/runs` tells how it goes on."""
        if request.dry_run:
            raise InvalidOption("this door has no plans; send it to `/v1/compare`", pointer="/dry_run")
        comparison, _ = await components().comparisons.create(request)
        return comparison


def _check_start(host: str | None) -> None:
    try:
        check_no_faults()
        if host is not None:
            check_bind(settings(), host)
    except InvalidSettings as error:
        sys.exit(f"darkroom: {error}")


def _command_host() -> str | None:
    """The address that `bentoml serve` was told, where this is that command."""
    command = click.get_current_context(silent=True)
    host = command.params.get("host") if command else None
    if host is None and command is not None and "host" in command.params:
        from bentoml._internal.configuration.containers import BentoMLContainer

        host = BentoMLContainer.http.host.get()
    return host


def _worker_host() -> str:
    """The address that this worker listens on, read from the socket that it was handed; "?" without one."""
    command = click.get_current_context(silent=True)
    descriptor = command.params.get("fd") if command else None
    if descriptor is None:
        return "?"
    with socket.socket(fileno=os.dup(descriptor)) as listening:
        address = listening.getsockname()
    return str(address[0]) if isinstance(address, tuple) else "localhost"


def _make_plain(schema: object) -> None:
    """Name the `items` of a pair, and leave out what has alternatives: that client takes the first for the only one."""
    if isinstance(schema, dict):
        if "prefixItems" in schema:
            schema.setdefault("items", schema["prefixItems"][0])
        if sum(kind.get("type") != "null" for kind in schema.get("anyOf", ())) > 1:
            del schema["anyOf"]
        schema = list(schema.values())
    if isinstance(schema, list):
        for part in schema:
            _make_plain(part)
