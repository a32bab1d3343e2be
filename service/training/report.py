"""What a training tells of itself, and how it hears that it shall end. A job's claim is such a report."""

from typing import Protocol

from darkroom.types import JobStage


class Report(Protocol):
    """Where a training's news and files go. Every call may raise: what it tells may not be wanted any more."""

    def stage(self, stage: JobStage) -> None: ...

    def progress(
        self,
        *,
        step: int,
        loss: float | None,
        learning_rate: float | None,
        steps_per_second: float | None,
        eta_seconds: float | None,
    ) -> None: ...

    def log(self, message: str) -> None: ...

    def put(self, name: str, data: bytes, media_type: str, *, step: int = 0) -> None:
        """Keep a file; one of that name is replaced."""

    def drop(self, name: str) -> None:
        """Let a file go, if it is there."""

    def read(self, name: str) -> bytes | None:
        """A file that was put, by this attempt or an earlier one."""

    def dataset_made(self, dataset_id: str) -> None: ...


class Stop(Protocol):
    """Whether the job is to end: cancelled, told to leave, or not its own any more."""

    def check(self) -> None:
        """Raises Stopped. Costs next to nothing."""
