"""The registry's endpoints, as `_calls` has the others. Nothing here does I/O."""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypedDict, TypeVar
from urllib.parse import quote

from pydantic import BaseModel

from darkroom._calls import QUICK_SECONDS, Call, nothing
from darkroom._errors import BadResponse, InvalidRequest, refused_before_sending
from darkroom._transfers import Download, Upload
from darkroom.types import (
    BlendMethod,
    BlendRequest,
    BlendSource,
    Lora,
    LoraAlias,
    LoraAliasMove,
    LoraForm,
    LoraInspection,
    LoraPage,
    LoraServed,
    LoraVersion,
    LoraVersionPage,
)
from darkroom.types.faults import invalid_request

M = TypeVar("M", bound=BaseModel)


class BlendOptions(TypedDict, total=False):
    """What `blend` takes beside the sources. `BlendRequest` explains each, and has the defaults."""

    method: BlendMethod
    rank: int | None
    density: float | None
    majority_sign: Literal["total", "frequency"] | None
    seed: int
    alias: str | None
    tags: tuple[str, ...]
    description: str


_NAMELESS = "inspected"
"""Stands where a path has a name, for a file that gets none."""


def publish(
    name: str,
    upload: Upload,
    *,
    version: int | None,
    alias: str | None,
    triggers: Iterable[str],
    tags: Iterable[str],
    description: str,
) -> Call[LoraVersion]:
    """A version of these bytes. A second sending finds the version of the first."""
    query = [
        *([] if version is None else [("version", str(version))]),
        *([] if alias is None else [("alias", alias)]),
        *(("trigger", word) for word in triggers),
        *(("tag", word) for word in tags),
        *([("description", description)] if description else []),
    ]
    return Call(
        "POST",
        _path("loras", name, "versions"),
        LoraVersion.model_validate_json,
        query=tuple(query),
        upload=upload,
        headers=_headers(upload),
        idempotent=True,
    )


def confirmed(version: LoraVersion, upload: Upload) -> LoraVersion:
    """The version, if it is one of the bytes that were sent.

    Raises: `BadResponse`
    """
    if version.digest != upload.digest:
        reason = f"{version.ref} was published with {version.digest}, but {upload.digest} was sent"
        raise BadResponse(200, reason)
    return version


def inspect(upload: Upload) -> Call[LoraInspection]:
    """What intake says about a file."""
    return Call(
        "POST",
        _path("loras", _NAMELESS, "versions"),
        LoraInspection.model_validate_json,
        query=(("dry_run", "true"),),
        upload=upload,
        headers=_headers(upload),
        idempotent=True,
    )


def page(*, name: str, trigger: str, tag: str, hash: str, cursor: str) -> Call[LoraPage]:
    """Some LoRAs."""
    search = {"name": name, "trigger": trigger, "tag": tag, "hash": hash, "cursor": cursor}
    return _get(LoraPage, "loras", query=_given(search))


def get(name: str) -> Call[Lora]:
    """A LoRA."""
    return _get(Lora, "loras", name)


def versions(name: str, *, cursor: str) -> Call[LoraVersionPage]:
    """Some versions of a LoRA."""
    return _get(LoraVersionPage, "loras", name, "versions", query=_given({"cursor": cursor}))


def version(ref: str) -> Call[LoraVersion]:
    """What a reference means."""
    return _get(LoraVersion, "lora-versions", ref)


def alias(name: str, alias: str) -> Call[LoraAlias]:
    """Where an alias points."""
    return _get(LoraAlias, "loras", name, "aliases", alias)


def set_alias(name: str, alias: str, version: int, if_match: str | None) -> Call[LoraAlias]:
    """Move an alias. Without a condition a second sending changes nothing; with one it could find the state that
    the first one made, and be refused."""
    with refused_before_sending():
        move = LoraAliasMove(version=version)
    return Call(
        "PUT",
        _path("loras", name, "aliases", alias),
        LoraAlias.model_validate_json,
        body=move.model_dump_json().encode(),
        headers=(("Content-Type", "application/json"), *_condition(if_match)),
        idempotent=if_match is None,
        longest_seconds=QUICK_SECONDS,
    )


def delete_alias(name: str, alias: str, if_match: str | None) -> Call[None]:
    """Take an alias away. A second sending could find nothing there any more."""
    return Call(
        "DELETE",
        _path("loras", name, "aliases", alias),
        nothing,
        headers=_condition(if_match),
        longest_seconds=QUICK_SECONDS,
    )


def delete(name: str, version: int) -> Call[None]:
    """Hide a version. A second sending could find nothing there any more."""
    return Call(
        "DELETE", _path("loras", name, "versions", str(version)), nothing, longest_seconds=QUICK_SECONDS
    )


def blend(name: str, request: BlendRequest) -> Call[LoraVersion]:
    """A blend. A second sending finds the version of the first."""
    return Call(
        "POST",
        _path("loras", name, "blends"),
        LoraVersion.model_validate_json,
        body=request.model_dump_json(exclude_defaults=True).encode(),
        headers=(("Content-Type", "application/json"),),
        idempotent=True,
    )


def blend_request(sources: Iterable[BlendSource | str], options: BlendOptions) -> BlendRequest:
    """The request that keywords make up."""
    with refused_before_sending():
        named = [BlendSource(ref=one) if isinstance(one, str) else one for one in sources]
        return BlendRequest.model_validate({**options, "sources": named})


def pin(name: str, version: int) -> Call[LoraServed]:
    """Bring a version into memory, to stay."""
    return Call(
        "PUT",
        _path("loras", name, "versions", str(version), "pin"),
        LoraServed.model_validate_json,
        idempotent=True,
    )


def unpin(name: str, version: int) -> Call[None]:
    """Let it go again."""
    return Call("DELETE", _path("loras", name, "versions", str(version), "pin"), nothing, idempotent=True)


def file(version: LoraVersion, form: LoraForm, download: Download) -> Call[None]:
    """The file of a version, into a download."""
    return Call(
        "GET",
        _path("loras", version.name, "versions", str(version.version), "file"),
        nothing,
        query=(("form", form),),
        headers=(("Accept", "*/*"),),
        download=download,
        idempotent=True,
    )


def target(path: Path, version: LoraVersion, form: LoraForm) -> Path:
    """Where the file goes: the path, or a name of its own in that folder."""
    if not path.is_dir():
        return path
    suffix = "" if form == "original" else f".{form}"
    return path / f"{version.name}-{version.version}{suffix}.safetensors"


def _get(model: type[M], *parts: str, query: tuple[tuple[str, str], ...] = ()) -> Call[M]:
    return Call(
        "GET",
        _path(*parts),
        model.model_validate_json,
        query=query,
        idempotent=True,
        longest_seconds=QUICK_SECONDS,
    )


def _path(*parts: str) -> str:
    """The path of a route.

    Raises: `InvalidRequest` for a name that would lead to another one.
    """
    for part in parts:
        if part in ("", ".", "..") or "/" in part:
            found = {
                "type": "value_error",
                "loc": (),
                "msg": f"{part[:100]!r} is no name and no ref of a LoRA",
            }
            raise InvalidRequest(invalid_request([found]), 422)
    return "/v1/" + "/".join(quote(part, safe="@:") for part in parts)


def _given(search: dict[str, str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, value) for name, value in search.items() if value)


def _headers(upload: Upload) -> tuple[tuple[str, str], ...]:
    return (
        ("Content-Type", "application/octet-stream"),
        ("Content-Length", str(upload.size_bytes)),
        ("X-Darkroom-Digest", upload.digest),
    )


def _condition(if_match: str | None) -> tuple[tuple[str, str], ...]:
    if if_match is None:
        return ()
    if not if_match:
        return (("If-None-Match", "*"),)
    return (("If-Match", if_match if if_match == "*" else f'"{if_match}"'),)
