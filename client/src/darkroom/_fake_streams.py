"""What `FakeDarkroom` answers to those who want to see its pictures grow."""

import base64
from collections.abc import Iterable, Iterator, Sequence

from darkroom._fake_pictures import generated, preview
from darkroom.types import Accepted, FieldError, GenerateRequest, LoraVersion, Problem, Progress

ESTIMATED_SECONDS = 1.0


def stream(
    request: GenerateRequest,
    number: int,
    loras: Sequence[LoraVersion] = (),
    *,
    failure: str | None = None,
) -> bytes:
    """All events of a request: every step of every image, then the result; or half the steps and the problem that
    `failure` holds as JSON, or nothing more where it is empty."""
    return frames(_events(request, number, loras, failure))


def frames(events: Iterable[tuple[str, str]]) -> bytes:
    """Events, each a name and its JSON, as they are sent, numbered from 1."""
    sent = (f"id: {n}\nevent: {name}\ndata: {data}\n\n" for n, (name, data) in enumerate(events, 1))
    return "".join(sent).encode()


def without_stream(request: GenerateRequest) -> Problem | None:
    """Why the request cannot be answered without a stream, where it cannot."""
    if not request.previews:
        return None
    message = "previews come only in a stream of events; call stream(), or leave `previews` out"
    return Problem(
        title="The request is not possible on this service",
        status=422,
        detail=message,
        code="invalid_option",
        errors=[FieldError(pointer="/previews", message=message)],
    )


def _events(
    request: GenerateRequest, number: int, loras: Sequence[LoraVersion], failure: str | None
) -> Iterator[tuple[str, str]]:
    response, steps = generated(request, number, loras), request.num_inference_steps
    yield "accepted", Accepted(id=response.id, estimated_seconds=ESTIMATED_SECONDS).model_dump_json()
    previews = [
        base64.b64encode(preview(request, image.seed)).decode() if request.previews else None
        for image in response.images
    ]
    for step in range(1, (steps if failure is None else steps // 2) + 1):
        for index, shown in enumerate(previews):
            progress = Progress(
                index=index, step=step, steps=steps, preview_b64=None if step == steps else shown
            )
            yield "progress", progress.model_dump_json(exclude_none=True)
    if failure is None:
        yield "result", response.model_dump_json()
    elif failure:
        yield "error", failure
