"""What belongs to a route, found by the path of a request before the router has seen it."""

from collections.abc import Mapping
from typing import Generic, TypeVar

from starlette.routing import compile_path

from service.api import exchange

T = TypeVar("T")


class ByRoute(Generic[T]):
    """Values by method and path template. It matches by the router's own patterns: the two cannot disagree."""

    def __init__(self, values: Mapping[tuple[str, str], T]) -> None:
        self._values = [
            (method, compile_path(template)[0], value) for (method, template), value in values.items()
        ]

    def find(self, scope: exchange.Scope) -> T | None:
        """The value of the route that this request goes to; None where it has none."""
        for method, pattern, value in self._values:
            if method == scope["method"] and pattern.match(scope["path"]):
                return value
        return None
