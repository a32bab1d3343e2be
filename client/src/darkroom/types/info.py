"""`GET /v1/info`: what the service is and what it can do."""

from darkroom.types.common import Response


class ModelInfo(Response):
    name: str
    """Preset (`pocket`, `sdxl`) or the name of the local folder."""
    fingerprint: str
    width: int
    """Pixels; the size of an image when the request names none."""
    height: int
    refiner: bool
    dtype: str
    device: str


class Limits(Response):
    max_edge: int
    max_steps: int
    max_images: int
    max_prompt_characters: int
    max_body_bytes: int
    max_queue_seconds: float
    max_loras: int = 0
    """Of one request."""
    max_lora_bytes: int = 0
    """Of one file to be published."""


class ServiceInfo(Response):
    name: str
    version: str
    ready: bool
    model: ModelInfo | None
    """Absent while the weights load."""
    schedulers: list[str]
    formats: list[str]
    limits: Limits
    versions: dict[str, str]
