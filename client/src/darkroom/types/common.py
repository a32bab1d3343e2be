"""What every request and every response has in common."""

from pydantic import BaseModel, ConfigDict


class Request(BaseModel):
    """A body that a caller sends: frozen, finite numbers only, unknown fields refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Response(BaseModel):
    """A body that the service sends: frozen, and unknown fields of a newer service are skipped."""

    model_config = ConfigDict(extra="ignore", frozen=True, use_attribute_docstrings=True)
