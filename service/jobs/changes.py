"""One train job's row, locked, and the moves from state to state."""

from typing import Final

from darkroom.types import JobStage, JobState, Problem
from service.jobs.errors import JobNotFound
from service.store.changes import Change
from service.store.schema import events, jobs

ENDED: Final[tuple[JobState, ...]] = ("succeeded", "failed", "cancelled")


class JobChange(Change):
    """A Change of a train job; its events are JobEvents."""

    rows, teller, missing = jobs, events.c.job_id, JobNotFound

    def stage(self, stage: JobStage) -> None:
        """Move to a stage; nothing where it is there already."""
        if stage != self.value("stage"):
            self.set(stage=stage)
            self.event("stage", stage=stage, step=self.row.step)

    def state(self, state: JobState, message: str | None = None) -> None:
        """Move to a state, with what follows from it for the other columns."""
        if state in ENDED:
            self.set(finished_ms=self.now_ms, eta_seconds=None)
        if state == "queued":
            self.stage("waiting")
            self.set(finished_ms=None, eta_seconds=None, steps_per_second=None)
        self.set(state=state)
        self.event("state", state=state, step=self.row.step, message=message)

    def end(self, state: JobState, message: str | None = None) -> None:
        """End it so, or give it back to the queue; where a cancel was accepted, it ends cancelled in any case."""
        self.state("cancelled" if self.row.cancel_requested else state, message)

    def fail(self, problem: Problem) -> None:
        """End it for a reason, which is kept in any case."""
        self.set(problem=problem.model_dump_json())
        self.end("failed", problem.detail)
