"""The endpoints of comparisons, as `_calls` has the others. Nothing here does I/O."""

from typing import Final, TypeVar, get_args
from urllib.parse import quote

from pydantic import BaseModel

from darkroom._calls import QUICK_SECONDS, Call, nothing
from darkroom._errors import InvalidRequest, NotFound
from darkroom._following import Followed
from darkroom._transfers import Download
from darkroom.types import (
    CompareCell,
    CompareEvent,
    CompareFile,
    ComparePlan,
    CompareRequest,
    Comparison,
    ComparisonPage,
    Problem,
    RunState,
)
from darkroom.types.compare import CompareEventType
from darkroom.types.faults import bounded, invalid_request

M = TypeVar("M", bound=BaseModel)

_EVENTS: Final = frozenset(get_args(CompareEventType))


def create(request: CompareRequest, key: str) -> Call[Comparison]:
    """A comparison. A second sending under the same key finds the one of the first.

    Raises: `InvalidRequest` for one that is to be planned only.
    """
    if request.dry_run:
        raise _invalid("`dry_run` begins nothing; ask for the plan", "dry_run")
    return _post(request, Comparison, ("Idempotency-Key", key))


def plan(request: CompareRequest) -> Call[ComparePlan]:
    """What it comes to."""
    return _post(request.model_copy(update={"dry_run": True}), ComparePlan)


def get(run: Comparison | str) -> Call[Comparison]:
    """A comparison as it stands, with all its cells, which may be thousands."""
    return Call("GET", _path(id_of(run)), Comparison.model_validate_json, idempotent=True)


def page(*, state: RunState | None, cursor: str) -> Call[ComparisonPage]:
    """Some comparisons, without their cells."""
    said = {"state": state or "", "cursor": cursor}
    return Call(
        "GET",
        _path(),
        ComparisonPage.model_validate_json,
        query=tuple((name, value) for name, value in said.items() if value),
        idempotent=True,
        longest_seconds=QUICK_SECONDS,
    )


def cancel(run: Comparison | str) -> Call[Comparison]:
    """A comparison that is to end."""
    return Call(
        "DELETE",
        _path(id_of(run)),
        Comparison.model_validate_json,
        idempotent=True,
        longest_seconds=QUICK_SECONDS,
    )


def followed(run: Comparison | str) -> Followed[CompareEvent, Comparison]:
    """What tells of a comparison."""
    path = _path(id_of(run), "events")
    return Followed(f"comparison {id_of(run)}", path, CompareEvent, _EVENTS, Comparison)


def image(run: Comparison | str, cell: CompareCell | int) -> Call[bytes]:
    """The PNG of a cell."""
    index = cell.index if isinstance(cell, CompareCell) else cell
    return _bytes(_path(id_of(run), "images", str(index)))


def file(run: Comparison | str, name: str) -> Call[bytes]:
    """The bytes of a file."""
    return _bytes(_file(run, name))


def download(run: Comparison | str, name: str, into: Download) -> Call[None]:
    """The bytes of a file, into a download."""
    return Call(
        "GET", _file(run, name), nothing, headers=(("Accept", "*/*"),), download=into, idempotent=True
    )


def named(run: Comparison, name: str) -> CompareFile:
    """The file of that name.

    Raises: `NotFound`, which says what there is.
    """
    there = {one.name: one for one in run.files}
    if name in there:
        return there[name]
    names = ", ".join(there) or "nothing yet"
    raise not_found(
        f"comparison {run.id} is {run.state} and has no file {name!r}; it has {names}",
        "compare_file_not_found",
    )


def not_found(detail: str, code: str) -> NotFound:
    """What the service would say of something that is not there."""
    return NotFound(Problem(title="It was not found", status=404, detail=bounded(detail), code=code), 404)


def id_of(run: Comparison | str) -> str:
    """The id of a comparison, or of one that is known by it."""
    return run.id if isinstance(run, Comparison) else run


def _post(request: CompareRequest, answer: type[M], *headers: tuple[str, str]) -> Call[M]:
    # What is at its default may still have been named: an arm that goes back to it from another base.
    return Call(
        "POST",
        "/v1/compare",
        answer.model_validate_json,
        body=request.model_dump_json(exclude_unset=True).encode(),
        headers=(("Content-Type", "application/json"), *headers),
        idempotent=True,
    )


def _bytes(path: str) -> Call[bytes]:
    return Call("GET", path, bytes, headers=(("Accept", "*/*"),), idempotent=True)


def _file(run: Comparison | str, name: str) -> str:
    return _path(id_of(run), "files", *name.split("/"))


def _path(*parts: str) -> str:
    """The path of a route.

    Raises: `InvalidRequest` for a name that would lead to another one.
    """
    for part in parts:
        if part in ("", ".", "..") or "/" in part:
            raise _invalid(f"{part[:100]!r} is no id of a comparison and no name of its files")
    return "/".join(("/v1/runs", *(quote(part, safe="") for part in parts)))


def _invalid(message: str, *place: str) -> InvalidRequest:
    return InvalidRequest(invalid_request([{"type": "value_error", "loc": place, "msg": message}]), 422)
