"""Server-sent events out of bytes, however the bytes are cut. No I/O.

Format: https://html.spec.whatwg.org/multipage/server-sent-events.html#event-stream-interpretation
"""

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class ServerSentEvent:
    """One event as it was sent."""

    event: str
    data: str
    id: str = ""
    """Of this event, or of the last one before it that had any."""


class Parser:
    """Give it the bytes as they come; it gives the events that are complete.

    Comments and unknown fields are skipped, and so is an event without data. What a stream ends with before the
    blank line of its event is lost, as the format has it.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        """What has come of a line that has not ended."""
        self._ended_in_cr = False
        """A line feed that comes next belongs to the same line end."""
        self._at_start = True
        self._event, self._data, self._id = "", list[str](), ""

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that this chunk completes."""
        if not chunk:
            return []
        if self._ended_in_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._ended_in_cr = chunk.endswith(b"\r")
        # Bytes of a line end never occur inside a character of UTF-8, so that whole lines decode well.
        *ends, rest = _LINE_END.split(chunk)
        events = []
        for end in ends:
            self._line += end
            event = self._take(bytes(self._line))
            self._line.clear()
            if event is not None:
                events.append(event)
        self._line += rest
        return events

    def _take(self, line: bytes) -> ServerSentEvent | None:
        """Note one whole line; the event, where the line is the blank one at its end."""
        if self._at_start:
            line, self._at_start = line.removeprefix(_BYTE_ORDER_MARK), False
        if not line:
            return self._completed()
        name, _, value = line.decode("utf-8", errors="replace").partition(":")
        value = value.removeprefix(" ")
        match name:  # a comment is a line whose name is empty
            case "event":
                self._event = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
        return None

    def _completed(self) -> ServerSentEvent | None:
        name, data = self._event or "message", "\n".join(self._data)
        self._event, self._data = "", []
        return ServerSentEvent(name, data, self._id) if data else None
