"""Which steps of many pictures are the same, so that each is made once: a tree for every noise that they begin with.

Pure: ways (see `service.engine.paths`) in, segments out, in the order in which they are best drawn.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from service.engine.orders import Order
from service.engine.paths import Way
from service.engine.snapshots import Snapshot

AT_MOST: Final = 64
"""Segments of a batch."""


@dataclass(eq=False)
class Segment:
    """Steps that some cells have in common and no other cell has."""

    start: int
    end: int
    """Steps, of the whole way: those from `start` up to `end`."""
    cells: tuple[int, ...]
    finished: tuple[int, ...]
    """Cells whose way ends with the segment: they are one picture."""
    evaluations: int
    """UNet evaluations of these steps."""
    stacks: tuple[Hashable, ...]
    """What comes into force, one after another."""
    branches: "list[Segment]" = field(default_factory=list)

    def order(self, order: Order, start: Snapshot | None) -> Order:
        """What the engine is asked for, where `order` is the one of any of its cells."""
        return replace(order, start=start, until=None if self.finished else self.end, apart=True)


def forest(ways: Sequence[Way], cells: Sequence[int] | None = None) -> list[Segment]:
    """The roots of all trees. `cells` are the indices of the ways that are wanted; by default all."""
    beginnings: dict[Hashable, list[int]] = {}
    for cell in range(len(ways)) if cells is None else cells:
        beginnings.setdefault(ways[cell].path[0], []).append(cell)
    return [root for together in beginnings.values() for root in _segments(ways, tuple(together), 0)]


def alone(way: Way, cell: int, start: int) -> Segment:
    """All steps of one cell after `start`, shared with nobody."""
    return Segment(
        start,
        way.steps,
        (cell,),
        (cell,),
        (way.steps - start) * way.rows,
        _without_repeats(way.stacks[start:]),
    )


def _segments(ways: Sequence[Way], cells: tuple[int, ...], start: int) -> list[Segment]:
    """The longest stretch after step `start` that all of these cells have in common, and what comes after it.

    Where they part at once there is no stretch, only what comes after: to have the same noise is nothing to be drawn.
    """
    first = ways[cells[0]]
    shortest = min(ways[cell].steps for cell in cells)
    end = start
    while end < shortest and all(ways[cell].path[end + 1] == first.path[end + 1] for cell in cells[1:]):
        end += 1
    finished = tuple(cell for cell in cells if ways[cell].steps == end)
    parted: dict[Hashable, list[int]] = {}
    for cell in cells:
        if ways[cell].steps > end:
            parted.setdefault(ways[cell].path[end + 1], []).append(cell)
    branches = [one for together in parted.values() for one in _segments(ways, tuple(together), end)]
    if end == start and not finished:
        return branches
    stacks = _without_repeats(first.stacks[start:end])
    return [Segment(start, end, cells, finished, (end - start) * first.rows, stacks, branches)]


def _without_repeats(stacks: Sequence[Hashable]) -> tuple[Hashable, ...]:
    """One stack a step as the stacks one after another; a step with two of them, by branch, keeps both together."""
    found: list[Hashable] = []
    for stack in stacks:
        if not found or found[-1] != stack:
            found.append(stack)
    return tuple(found)


class Ready:
    """Segments that can be drawn now, those first that need what is in force already."""

    def __init__(self, roots: Sequence[Segment]) -> None:
        self._waiting: list[tuple[Segment, Snapshot | None]] = [(root, None) for root in roots]
        self._in_force: Hashable = None

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def batch(self) -> list[tuple[Segment, Snapshot | None]]:
        """Those that bring the same into force, in the same order, and where each goes on from; not too many at once,
        as each ends in a snapshot."""
        chosen = next(
            (waiting for waiting in self._waiting if waiting[0].stacks[:1] == (self._in_force,)),
            self._waiting[0],
        )[0].stacks
        taken = [waiting for waiting in self._waiting if waiting[0].stacks == chosen][:AT_MOST]
        for waiting in taken:
            self._waiting.remove(waiting)
        self._in_force = chosen[-1] if chosen else self._in_force
        return taken

    def follow(self, segment: Segment, snapshot: Snapshot | None) -> None:
        """The segment is drawn: what comes after it may be."""
        self._waiting += [(branch, snapshot) for branch in segment.branches]

    def add(self, segments: Sequence[Segment], snapshot: Snapshot | None) -> None:
        """Segments in the place of one that could not be drawn, from where that began."""
        self._waiting += [(segment, snapshot) for segment in segments]


def in_order(roots: Sequence[Segment]) -> Iterator[list[Segment]]:
    """All segments as they would be drawn, batch by batch."""
    ready = Ready(roots)
    while ready:
        batch = [segment for segment, _ in ready.batch()]
        yield batch
        for segment in batch:
            ready.follow(segment, None)


def swaps(roots: Sequence[Segment], *, judged: bool) -> int:
    """How often something else comes into force, on a device that begins without LoRAs.

    `judged`: after each batch with a picture the judge wants none in force. A stretch in which the two branches of a
    step alternate counts once.
    """
    count, in_force = 0, _NOTHING
    for batch in in_order(roots):
        stacks = [stack for segment in batch[:1] for stack in segment.stacks]
        # Within a batch of several segments each begins anew with the first of its stacks.
        stacks = stacks * len(batch) if len(stacks) > 1 else stacks
        if judged and any(segment.finished for segment in batch):
            stacks.append(_NOTHING)
        for stack in stacks:
            if _plain(stack) != in_force:
                count, in_force = count + 1, _plain(stack)
    return count


_NOTHING: Hashable = ((),)


def _plain(stack: Hashable) -> Hashable:
    """With or without guidance: what a step brings into force, each once."""
    assert isinstance(stack, tuple)
    return tuple(dict.fromkeys(stack))
