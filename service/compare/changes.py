"""One comparison's row, locked, and the moves from state to state."""

from typing import Final

from darkroom.types import Problem, RunStage, RunState
from darkroom.types.compare import CompareEventType
from service.compare.errors import ComparisonNotFound
from service.store.changes import Change
from service.store.schema import comparison_events, comparisons

ENDED: Final[tuple[RunState, ...]] = ("succeeded", "failed", "cancelled")


class RunChange(Change):
    """A Change of a comparison; its events are CompareEvents."""

    rows, teller, missing = comparisons, comparison_events.c.comparison_id, ComparisonNotFound

    def tell(
        self,
        type: CompareEventType,
        *,
        state: RunState | None = None,
        stage: RunStage | None = None,
        cell: int | None = None,
        message: str | None = None,
    ) -> None:
        """Add an event, which says how far it is by then."""
        self.event(
            type,
            done=self.value("done"),
            total=self.row.total,
            state=state,
            stage=stage,
            cell=cell,
            message=message,
        )

    def stage(self, stage: RunStage) -> None:
        """Move to a stage; nothing where it is there already."""
        if stage != self.value("stage"):
            self.set(stage=stage)
            self.tell("stage", stage=stage)

    def state(self, state: RunState, message: str | None = None) -> None:
        """Move to a state, with what follows from it for the other columns."""
        if state in ENDED:
            self.set(finished_ms=self.now_ms)
        if state == "queued":
            self.stage("waiting")
        self.set(state=state)
        self.tell("state", state=state, message=message)

    def fail(self, problem: Problem) -> None:
        """End it for a reason."""
        self.set(problem=problem.model_dump_json())
        self.state("failed", problem.detail)
