"""How the parts of `FakeDarkroom` answer: bodies, refusals, and events of what is over already."""

import json
from collections.abc import Sequence

from pydantic import BaseModel

from darkroom._calls import EVENT_STREAM
from darkroom._fake_loras import Answer, Asked, Refused
from darkroom.types import CompareEvent, FieldError, JobEvent, Problem


def answered(body: BaseModel, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """A body as JSON."""
    return Answer(status, _json(body).encode(), {"Content-Type": "application/json", **(headers or {})})


def listed(items: Sequence[BaseModel]) -> Answer:
    """Several as a list."""
    body = json.dumps([item.model_dump(mode="json", exclude_none=True) for item in items])
    return Answer(200, body.encode(), {"Content-Type": "application/json"})


def told(events: Sequence[JobEvent] | Sequence[CompareEvent], end: BaseModel, asked: Asked) -> Answer:
    """The events after the last one that the reader knows, and, where they asked for a stream, the end."""
    after = int(asked.headers.get("last-event-id") or asked.query.get("after", ["0"])[0])
    left = [event for event in events if event.id > after]
    if asked.headers.get("accept") != EVENT_STREAM:
        return listed(left)
    frames = [
        f"id: {event.id}\nevent: {event.type}\ndata: {event.model_dump_json(exclude_none=True)}\n\n"
        for event in left
    ]
    done = f"event: done\ndata: {_json(end)}\n\n"
    return Answer(200, "".join([*frames, done]).encode(), {"Content-Type": EVENT_STREAM})


def _json(body: BaseModel) -> str:
    # A request that comes back must not name what its sender had not: the settings of an arm tell the two apart.
    return body.model_dump_json(exclude_unset=True)


def refused(status: int, code: str, detail: str, *errors: FieldError) -> Refused:
    """What to raise where a request cannot be carried out."""
    title = code.replace("_", " ").capitalize()
    return Refused(Problem(title=title, status=status, detail=detail, code=code, errors=list(errors)))
