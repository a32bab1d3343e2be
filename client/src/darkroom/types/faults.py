"""What pydantic finds wrong with a request, in the words that client and service share.

A caller cannot tell which of the two refused: both state the same problem.
"""

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from darkroom.types.compare import SEEDS_COUNTED, SEEDS_NAMED, Arm, CompareRequest, SeedCount
from darkroom.types.errors import FieldError, Problem
from darkroom.types.generate import GenerateRequest, Output, PictureSettings, Refiner
from darkroom.types.loras import LoraUse

MAX_FIELD_ERRORS = 20
MAX_TEXT_CHARACTERS = 300

_WORDS = (("a valid tuple", "a list"), ("Tuple", "The list"), (" after validation", ""))
"""JSON has no tuples."""
_SETTINGS = sorted(PictureSettings.model_fields)
_OF_SETTINGS = (["base"], ["set"])
"""Parts of a comparison's request that have the fields of a picture's settings, and no others."""
_FIELD_NAMES = sorted(
    {
        name
        for model in (GenerateRequest, LoraUse, Output, Refiner, CompareRequest, Arm, SeedCount)
        for name in model.model_fields
    }
)


def invalid_request(found: Sequence[Mapping[str, Any]]) -> Problem:
    """The problem of a request with these findings of pydantic's, the first of which is its `detail`.

    Places become JSON pointers. The faulty values are never repeated: they may be secret or huge.
    """
    # Faulty parts of a list do not count for pydantic, which then calls the list too short as well.
    at_fault = {one["loc"][:depth] for one in found for depth in range(len(one["loc"]))}
    found = [one for one in found if one["type"] != "too_short" or one["loc"] not in at_fault]
    errors = [_field_error(one) for one in found[:MAX_FIELD_ERRORS]]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return Problem(
        type="urn:darkroom:problem:invalid_request",
        title="The request is invalid",
        status=422,
        detail=f"{errors[0].pointer or 'the body'}: {errors[0].message}{more}",
        code="invalid_request",
        errors=errors,
    )


def bounded(text: str) -> str:
    """The text, cut where a caller's own words make it long."""
    return text if len(text) <= MAX_TEXT_CHARACTERS else text[: MAX_TEXT_CHARACTERS - 1] + "…"


def _field_error(found: Mapping[str, Any]) -> FieldError:
    path = [str(part) for part in found["loc"] if part not in (SEEDS_NAMED, SEEDS_COUNTED)]
    message = found["msg"].removeprefix("Value error, ")  # which pydantic puts before our validators' words
    if found["type"] == "extra_forbidden":
        there = _SETTINGS if path[-2:-1] in _OF_SETTINGS else _FIELD_NAMES
        message = "no such field" + _suggestion(path[-1], there)
    elif found["type"] == "tuple_type" and SEEDS_NAMED in found["loc"]:
        message = 'a list of seeds is required, or how many: {"count": 8}'
    elif found["type"] == "missing":
        message = "this field is required" if path else "a JSON body is required"
    for theirs, ours in _WORDS:
        message = message.replace(theirs, ours)
    pointer = "".join("/" + part.replace("~", "~0").replace("/", "~1") for part in path)
    return FieldError(pointer=bounded(pointer), message=bounded(message))


def _suggestion(name: str, there: Sequence[str]) -> str:
    near = [other for other in difflib.get_close_matches(name[:64], there, n=2) if other != name]
    return f"; did you mean {near[0]!r}?" if near else ""
