"""The routes of the LoRA registry."""

from collections.abc import Callable
from typing import Annotated, Final

from fastapi import APIRouter, Header, Path, Query, Request, Response

from darkroom.types import (
    Lora,
    LoraAlias,
    LoraAliasMove,
    LoraForm,
    LoraInspection,
    LoraPage,
    LoraVersion,
    LoraVersionPage,
)
from darkroom.types.loras import MAX_VERSION
from service.api import conditions, uploads
from service.api.files import Cursor, FileStream, Limit, body_of
from service.api.in_flight import InFlight
from service.api.problems import NO_ROOM
from service.loras import LoraFile, Loras

FILE_TYPE: Final = "application/octet-stream"

_AWAY: Final = "The registry's database or storage is away; `Retry-After` says when to try again."
_READ: Final = {404: "No such LoRA, version or alias.", 422: "The request is invalid.", 503: _AWAY}
_CONDITION: Final = {
    400: "The condition cannot be decided.",
    412: "The alias is not as `If-Match` or `If-None-Match` expects; `ETag` has its present state.",
    **NO_ROOM,
}
PROBLEMS: Final[dict[str, dict[int, str]]] = {
    "publish_lora": {
        408: "The upload hardly gets on.",
        409: "The number is taken by other bytes, or the bytes by another number.",
        413: "The file is too large.",
        415: "The body is not sent as a file.",
        422: "The request is invalid, the file is refused (`errors` has the reasons), or it is not the announced one.",
        503: _AWAY,
        507: "The storage, or the database, has no room.",
    },
    "list_loras": {422: "The request is invalid.", 503: _AWAY},
    "get_lora": _READ,
    "list_lora_versions": _READ,
    "get_lora_version": _READ,
    "resolve_lora": _READ,
    "download_lora": _READ,
    "delete_lora_version": _READ | NO_ROOM | {409: "An alias points to the version."},
    "get_lora_alias": _READ,
    "set_lora_alias": _READ | _CONDITION | {413: "The body is too large.", 415: "The body is not JSON."},
    "delete_lora_alias": _READ | _CONDITION,
}

Name = Annotated[str, Path(description="Of the LoRA.")]
AliasName = Annotated[str, Path(description="Name of the alias.")]
Number = Annotated[int, Path(ge=1, le=MAX_VERSION, description="Number of the version.")]
Part = Annotated[str, Query(max_length=200, description="Part of what is searched for, in any case.")]
Words = Annotated[list[str], Query(max_length=32)]
IfMatch = Annotated[str | None, Header(description="`ETag` that the alias must have, or `*`: any.")]
IfNoneMatch = Annotated[str | None, Header(description="`*`: the alias must be new.")]


def router(loras: Callable[[], Loras], in_flight: InFlight) -> APIRouter:
    """The routes over this use case."""
    routes = APIRouter(prefix="/v1", tags=["loras"])

    @routes.post(
        "/loras/{name}/versions",
        operation_id="publish_lora",
        summary="Publish a LoRA file",
        description=(
            "The body is the safetensors file. The same bytes again are the version that they were. With `dry_run` "
            "the file is only looked at."
        ),
        response_model=LoraVersion | LoraInspection,
        responses={
            200: {"description": "These bytes were there already; or what intake says, with `dry_run`."},
            201: {
                "model": LoraVersion,
                "description": "The new version.",
                "headers": {"Location": {"description": "Its path.", "schema": {"type": "string"}}},
            },
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {
                    kind: {"schema": {"type": "string", "format": "binary"}} for kind in uploads.MEDIA_TYPES
                },
            }
        },
    )
    async def publish(
        name: Name,
        request: Request,
        version: Annotated[
            int, Query(ge=0, le=MAX_VERSION, description="Number that it must get; 0: the next one.")
        ] = 0,
        alias: Annotated[
            str | None, Query(max_length=100, description="Is moved to it in the same step.")
        ] = None,
        trigger: Words = [],  # noqa: B006
        tag: Words = [],  # noqa: B006
        description: Annotated[str, Query(max_length=2000)] = "",
        dry_run: bool = False,
        x_darkroom_digest: Annotated[
            str, Header(pattern="^sha256:[0-9a-f]{64}$", description="Digest of the file, to be checked.")
        ] = "",
    ) -> Response:
        if dry_run:
            found = await in_flight.run(loras().inspect(body_of(request)), uploads.silence)
            return _json(found.model_dump_json())
        published = await in_flight.run(
            loras().publish(
                name,
                body_of(request),
                number=version,
                alias=alias,
                triggers=trigger,
                tags=tag,
                description=description,
                digest=x_darkroom_digest,
            ),
            uploads.silence,
        )
        where = f"/v1/loras/{published.name}/versions/{published.version}"
        return _json(published.model_dump_json(), 200 if published.existing else 201, {"Location": where})

    @routes.get("/loras", operation_id="list_loras", summary="LoRAs by name, or those that are searched for")
    async def find(
        name: Part = "",
        trigger: Part = "",
        tag: Part = "",
        hash: Annotated[
            str, Query(max_length=71, description="sha256, AutoV2, AutoV3, or 8 digits of one.")
        ] = "",
        limit: Limit = 50,
        cursor: Cursor = "",
    ) -> LoraPage:
        return await loras().list(name=name, trigger=trigger, tag=tag, hash=hash, limit=limit, cursor=cursor)

    @routes.get("/loras/{name}", operation_id="get_lora", summary="A LoRA, its highest version, its aliases")
    async def get(name: Name) -> Lora:
        return await loras().get(name)

    @routes.get(
        "/loras/{name}/versions",
        operation_id="list_lora_versions",
        summary="The versions of a LoRA, the highest first",
    )
    async def versions(name: Name, limit: Limit = 50, cursor: Cursor = "") -> LoraVersionPage:
        return await loras().versions(name, limit=limit, cursor=cursor)

    @routes.get("/loras/{name}/versions/{version}", operation_id="get_lora_version", summary="One version")
    async def version(name: Name, version: Number) -> LoraVersion:
        return await loras().version(name, version)

    @routes.get(
        "/lora-versions/{ref}",
        operation_id="resolve_lora",
        summary="The version that a reference means now",
        description="`name` (its highest version), `name@3`, `name:alias` or `sha256:…`.",
    )
    async def resolve(ref: str) -> LoraVersion:
        return await loras().resolve(ref)

    @routes.get(
        "/loras/{name}/versions/{version}/file",
        operation_id="download_lora",
        summary="The file of a version",
        description="As it was published, or under the tensor names of A1111 and ComfyUI (`kohya`) or of `diffusers`.",
        response_class=Response,
        responses={
            200: {
                "description": "The file.",
                "content": {FILE_TYPE: {"schema": {"type": "string", "format": "binary"}}},
                "headers": {
                    "ETag": {"description": "The digest of the file.", "schema": {"type": "string"}},
                    "Content-Disposition": {"description": "A name for it.", "schema": {"type": "string"}},
                },
            }
        },
    )
    async def download(name: Name, version: Number, form: LoraForm = "original") -> Response:
        return _file(await loras().open(f"{name}@{version}", form))

    @routes.delete(
        "/loras/{name}/versions/{version}",
        operation_id="delete_lora_version",
        summary="Hide a version from now on",
        status_code=204,
    )
    async def delete(name: Name, version: Number) -> None:
        await loras().delete(name, version)

    @routes.get(
        "/loras/{name}/aliases/{alias}",
        operation_id="get_lora_alias",
        summary="Where an alias points",
        responses={200: _etagged("Where it points.")},
    )
    async def get_alias(name: Name, alias: AliasName, response: Response) -> LoraAlias:
        found = await loras().alias(name, alias)
        response.headers["ETag"] = conditions.etag(found.etag)
        return found

    @routes.put(
        "/loras/{name}/aliases/{alias}",
        operation_id="set_lora_alias",
        summary="Point an alias to a version",
        responses={200: _etagged("Where it points now.")},
    )
    async def set_alias(
        name: Name,
        alias: AliasName,
        move: LoraAliasMove,
        response: Response,
        if_match: IfMatch = None,
        if_none_match: IfNoneMatch = None,
    ) -> LoraAlias:
        expected = conditions.expected(if_match, if_none_match)
        moved = await loras().set_alias(name, alias, move.version, if_match=expected)
        response.headers["ETag"] = conditions.etag(moved.etag)
        return moved

    @routes.delete(
        "/loras/{name}/aliases/{alias}",
        operation_id="delete_lora_alias",
        summary="Take an alias away; its version stays",
        status_code=204,
    )
    async def delete_alias(name: Name, alias: AliasName, if_match: IfMatch = None) -> None:
        await loras().delete_alias(name, alias, if_match=conditions.expected(if_match, None))

    return routes


def _file(file: LoraFile) -> FileStream:
    headers = {
        "Content-Length": str(file.size_bytes),
        "Content-Disposition": f'attachment; filename="{file.file_name}"',
        "ETag": conditions.etag(file.etag),
    }
    return FileStream(file.pieces, headers, FILE_TYPE)


def _json(text: str, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(text, status, headers, "application/json")


def _etagged(text: str) -> dict[str, object]:
    etag = {"description": "Changes with every move of the alias.", "schema": {"type": "string"}}
    return {"description": text, "headers": {"ETag": etag}}
