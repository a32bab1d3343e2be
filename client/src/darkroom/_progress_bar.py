"""A line of text that shows how far a train job or a comparison is."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TextIO, TypeAlias, TypeVar

from darkroom.types import CompareEvent, Comparison, JobEvent, TrainJob

_WIDTH = 24

E = TypeVar("E")

OnEvent: TypeAlias = Callable[[E], object]


class ProgressBar(Generic[E]):
    """Rewrites one line of a terminal with every event."""

    def __init__(self, line: Callable[[E], str], stream: TextIO) -> None:
        self._line, self._stream = line, stream
        self._shown = 0

    def __call__(self, event: E) -> None:
        """Show what the event tells."""
        # A line that wraps would not be written over; blanks wipe away what a longer one before left.
        line = self._line(event)[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + line.ljust(self._shown))
        self._stream.flush()
        self._shown = len(line)

    def close(self) -> None:
        """Leave the line as it is, and begin a new one."""
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()


class TrainLine:
    """How far a train job is, in a few words, after each of its events."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._stage = job.stage
        self._step, self._loss = job.step, job.loss
        self._pace, self._eta_seconds = job.steps_per_second, job.eta_seconds

    def __call__(self, event: JobEvent) -> str:
        self._stage = event.stage or self._stage
        if event.type == "progress":
            self._step, self._loss, self._pace = event.step, event.loss, event.steps_per_second
            self._eta_seconds = event.eta_seconds
        total = self._job.max_train_steps
        words = [self._job.name, self._stage, _bar(self._step, total), f"{self._step}/{total}"]
        words += [] if self._loss is None else [f"loss {self._loss:.4f}"]
        words += [] if self._pace is None else [f"{self._pace:.2f} it/s"]
        words += [] if self._eta_seconds is None else [f"{_clock(self._eta_seconds)} left"]
        return "  ".join(words)


class CompareLine:
    """How far a comparison is, in a few words, after each of its events."""

    def __init__(self, comparison: Comparison) -> None:
        self._name = comparison.name or comparison.id
        self._stage = comparison.stage
        self._failed = 0

    def __call__(self, event: CompareEvent) -> str:
        self._stage = event.stage or self._stage
        self._failed += event.type == "cell" and event.message is not None
        words = [self._name, self._stage, _bar(event.done, event.total), f"{event.done}/{event.total} cells"]
        words += [f"{self._failed} failed"] if self._failed else []
        return "  ".join(words)


@contextmanager
def shown(progress: bool | OnEvent[E], line: Callable[[E], str]) -> Iterator[OnEvent[E]]:
    """Who hears of events: a function, or, with True, whoever looks at the terminal, if there is one."""
    if callable(progress):
        yield progress
    elif progress and sys.stderr is not None and sys.stderr.isatty():
        bar = ProgressBar(line, sys.stderr)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield _ignore


def _ignore(event: object) -> None:
    """Nobody looks."""


def _bar(done: int, total: int) -> str:
    filled = min(_WIDTH, _WIDTH * done // max(1, total))
    return f"[{'#' * filled}{'.' * (_WIDTH - filled)}]"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
