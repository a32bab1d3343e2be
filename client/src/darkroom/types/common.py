"""What every request and every response has in common."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """A body that a caller sends: frozen, finite numbers only, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Response(BaseModel):
    """A body that the service sends: frozen, and unknown fields of a newer service are skipped."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """The body that `json_data` is. Unknown fields are skipped in the requests that it repeats, too, although a
        service that is sent them refuses them."""
        return super().model_validate_json(json_data, **{"extra": "ignore", **options})
