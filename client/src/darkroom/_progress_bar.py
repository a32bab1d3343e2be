"""A line of text that shows how far a train job is."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeAlias

from darkroom.types import JobEvent, TrainJob

_WIDTH = 24

OnEvent: TypeAlias = Callable[[JobEvent], object]


class ProgressBar:
    """Rewrites one line of a terminal with every event."""

    def __init__(self, job: TrainJob, stream: TextIO) -> None:
        self._job, self._stream = job, stream
        self._stage = job.stage
        self._step, self._loss = job.step, job.loss
        self._pace, self._eta_seconds = job.steps_per_second, job.eta_seconds
        self._shown = 0

    def __call__(self, event: JobEvent) -> None:
        """Show what the event tells."""
        self._stage = event.stage or self._stage
        if event.type == "progress":
            self._step, self._loss, self._pace = event.step, event.loss, event.steps_per_second
            self._eta_seconds = event.eta_seconds
        self._write(self.line())

    def line(self) -> str:
        """How far it is, in a few words."""
        job = self._job
        filled = min(_WIDTH, _WIDTH * self._step // max(1, job.max_train_steps))
        words = [
            job.name,
            self._stage,
            f"[{'#' * filled}{'.' * (_WIDTH - filled)}]",
            f"{self._step}/{job.max_train_steps}",
        ]
        words += [] if self._loss is None else [f"loss {self._loss:.4f}"]
        words += [] if self._pace is None else [f"{self._pace:.2f} it/s"]
        words += [] if self._eta_seconds is None else [f"{_clock(self._eta_seconds)} left"]
        return "  ".join(words)

    def close(self) -> None:
        """Leave the line as it is, and begin a new one."""
        if self._shown:
            self._stream.write("\n")
            self._stream.flush()

    def _write(self, line: str) -> None:
        # A line that wraps would not be written over; blanks wipe away what a longer one before left.
        line = line[: shutil.get_terminal_size().columns - 1]
        self._stream.write("\r" + line.ljust(self._shown))
        self._stream.flush()
        self._shown = len(line)


@contextmanager
def shown(progress: bool | OnEvent, job: TrainJob) -> Iterator[OnEvent]:
    """Who hears of a job's events: a function, or, with True, whoever looks at the terminal, if there is one."""
    if callable(progress):
        yield progress
    elif progress and sys.stderr is not None and sys.stderr.isatty():
        bar = ProgressBar(job, sys.stderr)
        try:
            yield bar
        finally:
            bar.close()
    else:
        yield _ignore


def _ignore(event: JobEvent) -> None:
    """Nobody looks."""


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
