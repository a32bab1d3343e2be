"""What only HTTP can get wrong, as types with facts; the use cases know none of these."""

from collections.abc import Mapping
from http import HTTPStatus

from service.errors import Cancelled, DarkroomError


class Unauthenticated(DarkroomError):
    """No key, or one that is not known."""

    def __init__(self) -> None:
        super().__init__("send a valid API key as `Authorization: Bearer <key>`")


class Forbidden(DarkroomError):
    """A known key that may not do this."""

    def __init__(self, key_name: str, scope: str) -> None:
        super().__init__(f"the key {key_name!r} lacks the scope {scope!r}")


class BodyTooLarge(DarkroomError):
    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body is larger than {limit_bytes} bytes")


class BodyTooSlow(DarkroomError):
    def __init__(self, limit_seconds: float) -> None:
        super().__init__(f"the body did not arrive within {limit_seconds:g} s")


class UploadTooSlow(DarkroomError):
    """An upload that hardly gets on, or not at all."""

    def __init__(self, pace_bytes: int, seconds: float) -> None:
        super().__init__(f"the upload brought less than {pace_bytes} bytes in {seconds:g} s")


class UnsupportedMediaType(DarkroomError):
    """A body that is not what the route takes: plain JSON, or a file as it is."""


class InvalidCondition(DarkroomError):
    """An If-Match or If-None-Match that asks for what this route cannot decide."""


class NotAcceptable(DarkroomError):
    """No representation that we can give is one that the caller accepts."""


class Disconnected(Cancelled):
    """The caller went away; nobody reads this answer, only the metrics see its status."""

    def __init__(self) -> None:
        super().__init__("the caller closed the connection")


class ShutDown(Cancelled):
    """The time to drain ran out before the work was done."""

    def __init__(self) -> None:
        super().__init__("the service shut down before the work was done; send the request again")


class Answered(DarkroomError):
    """An error answer that somebody else's code gave, by its status; its body is not ours and is dropped."""

    def __init__(self, status: int, headers: Mapping[str, str] | None = None) -> None:
        self.status, self.headers = status, dict(headers or {})
        super().__init__(_phrase(status))


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"HTTP {status}"
