"""`client.comparisons`: comparisons that the service makes. `_async_comparisons` is its twin: change both."""

import uuid
from collections.abc import Iterator
from contextlib import closing
from os import PathLike
from pathlib import Path

from darkroom import _compare_calls
from darkroom._callers import Caller, Listener
from darkroom._comparison_result import ComparisonResult
from darkroom._errors import CompareFailed
from darkroom._files import PictureFile
from darkroom._paging import every
from darkroom._progress_bar import CompareLine, OnEvent, shown
from darkroom._transfers import Download, target
from darkroom._transfers import Told as Moved
from darkroom.types import CompareCell, CompareEvent, ComparePlan, CompareRequest, Comparison, RunState


class Comparisons:
    """Comparisons, each a run on the service: it goes on when you leave, and when the service restarts.

    Where a method takes a run, its id will do; what it gives is the comparison as it stands then.

    >>> from darkroom import CompareRequest
    >>> request = CompareRequest(prompts=("a fox", "a cat"), axes={"guidance_scale": (5, 9, 13)})
    >>> run = client.comparisons.create(request)
    >>> client.comparisons.wait(run)
    <ComparisonResult cmp_1 succeeded: 3 arms × 2 prompts × 8 seeds, 48 of 48 cells>
    """

    def __init__(self, call: Caller, listen: Listener) -> None:
        self._call, self._listen = call, listen

    def create(self, request: CompareRequest) -> Comparison:
        """Begin a comparison. It is sent again after a fault, and makes one run.

        Raises: `InvalidRequest`, where it is more than the service takes, with what it would cost.
        """
        return self._call(_compare_calls.create(request, uuid.uuid4().hex))

    def plan(self, request: CompareRequest) -> ComparePlan:
        """What a comparison would come to; nothing is begun."""
        return self._call(_compare_calls.plan(request))

    def get(self, run: Comparison | str) -> Comparison:
        """A comparison as it stands. Raises: `NotFound`."""
        return self._call(_compare_calls.get(run))

    def list(self, *, state: RunState | None = None) -> Iterator[Comparison]:
        """All comparisons, or those in one state, the newest first, page by page as you go. Cells are left out."""
        yield from every(lambda cursor: self._call(_compare_calls.page(state=state, cursor=cursor)))

    def cancel(self, run: Comparison | str) -> Comparison:
        """Have a comparison end. What is drawn is kept; one that has ended stays as it is. Raises: `NotFound`."""
        return self._call(_compare_calls.cancel(run))

    def events(self, run: Comparison | str, *, after: int = 0) -> Iterator[CompareEvent]:
        """What happens to a comparison, from its first event, or the one `after` that id, until its end.

        Where the connection breaks, or the service restarts, it goes on after the last event that came. Raises:
        `NotFound`; whatever stays wrong for ten minutes.
        """
        with closing(self._listen(_compare_calls.followed(run), after, None)) as listening:
            for told in listening:
                if isinstance(told, CompareEvent):
                    yield told

    def wait(
        self,
        run: Comparison | str,
        *,
        on_event: bool | OnEvent[CompareEvent] = True,
        timeout_seconds: float | None = None,
    ) -> ComparisonResult:
        """What a comparison found, once it has succeeded, be it with cells that failed.

        Meanwhile a line on a terminal shows how many cells are done; `on_event=False` leaves it out, and a function
        is called with every event.

        Raises: `CompareFailed` where it fails as a whole or is cancelled, `Timeout` when the time is up (it goes on),
        `NotFound`.
        """
        found = self.get(run)
        events = self._listen(_compare_calls.followed(run), 0, timeout_seconds)
        with shown(on_event, CompareLine(found)) as hear, closing(events) as listening:
            for told in listening:
                if isinstance(told, CompareEvent):
                    hear(told)
                else:
                    found = told
        if found.state != "succeeded":
            raise CompareFailed(found)
        return ComparisonResult(found, self._call)

    def result(self, run: Comparison | str) -> ComparisonResult:
        """What there is of a comparison by now, however far it is and however it ended. Raises: `NotFound`."""
        return ComparisonResult(self.get(run), self._call)

    def image(self, run: Comparison | str, cell: CompareCell | int) -> PictureFile:
        """The picture of a cell, by its index. Raises: `NotFound`."""
        return PictureFile(self._call(_compare_calls.image(run, cell)), "image/png")

    def file(self, run: Comparison | str, name: str) -> bytes:
        """The bytes of one of its files, `comparison.json`. Raises: `NotFound`."""
        return self._call(_compare_calls.file(run, name))

    def download(
        self, run: Comparison | str, name: str, path: str | PathLike[str], *, progress: Moved | None = None
    ) -> Path:
        """One of its files, and where it is now: at `path`, or in that folder under its own name.

        It is there whole or not at all. `progress(received, total)` hears of the bytes. Raises: `NotFound`.
        """
        digest = _compare_calls.named(self.get(run), name).digest
        with Download(target(Path(path), name), digest=digest, progress=progress) as download:
            self._call(_compare_calls.download(run, name, download))
            return download.finish()
