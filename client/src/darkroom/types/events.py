"""The events of `POST /v1/generate` with `Accept: text/event-stream`.

A stream is `accepted`, then `progress` for the steps, then exactly one `result` (a `GenerateResponse`) or `error`
(a `Problem`). Whatever is refused before it is accepted is answered as without a stream.
"""

from darkroom.types.common import Response


class Accepted(Response):
    """`event: accepted`, the first: the request has been taken in."""

    id: str
    """The same as in the result."""
    estimated_seconds: float
    """Of the device, were the request alone on it; the wait for others comes on top."""


class Progress(Response):
    """`event: progress`: one image has made one step. A reader who is slow is told of the newest step only."""

    index: int
    """Of the image, as in the result."""
    step: int
    """Steps done, of `steps`."""
    steps: int
    preview_b64: str | None = None
    """Where the request asked for previews: a small PNG in base64, one pixel a latent. The last step has none, for
    the picture itself follows."""
