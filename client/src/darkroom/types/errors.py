"""How every error looks on the wire (RFC 9457, `application/problem+json`)."""

from pydantic import Field

from darkroom.types.common import Response


class FieldError(Response):
    """One fault in a request body."""

    pointer: str
    """JSON pointer (RFC 6901) to the faulty value, `""` for the body as a whole."""
    message: str
    position: int | None = None
    """Index of the faulty character inside a prompt, where the fault has one."""
    code: str | None = None
    """The kind of fault, for programs, where it has one: of a refused LoRA file `family.sd1`, `pair.half`, …"""


class Problem(Response):
    """An error: what happened, in words for people and in `code` for programs."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    """Stable identifier of the kind of error, e.g. `invalid_request`, `overloaded`, `model_loading`."""
    instance: str | None = None
    """Path of the request that failed."""
    request_id: str | None = None
    errors: list[FieldError] = Field(default_factory=list)
