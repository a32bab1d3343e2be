"""Which prompts and seeds a sheet or a report has room for."""

from collections.abc import Sequence
from dataclasses import dataclass

from darkroom.types import ComparePlan


@dataclass(frozen=True)
class Shown:
    """The first seeds of the first prompts: the same seeds of every prompt that is shown."""

    prompts: Sequence[str]
    seeds: Sequence[int]
    left_out: str
    """A sentence for people; empty where all is shown."""


def shown(plan: ComparePlan, max_rows: int) -> Shown:
    """At most `max_rows` rows of a prompt and a seed; seeds go first, and prompts only where one seed is too many."""
    seeds = plan.seeds[: max(1, max_rows // max(1, len(plan.prompts)))]
    prompts = plan.prompts[: max(1, max_rows)]
    rows, all_rows = len(prompts) * len(seeds), len(plan.prompts) * len(plan.seeds)
    if rows == all_rows:
        return Shown(prompts, seeds, "")
    return Shown(
        prompts,
        seeds,
        f"{rows} of {all_rows} rows are shown: {_first(len(seeds), len(plan.seeds), 'seed')} of "
        f"{_first(len(prompts), len(plan.prompts), 'prompt')}. The other {all_rows - rows} are left out here; "
        "figures and verdicts are of all of them.",
    )


def _first(count: int, of: int, noun: str) -> str:
    if count == of:
        return f"all {of} {noun}s" if of > 1 else f"the one {noun}"
    return f"the first {count} of {of} {noun}s" if count > 1 else f"the first of {of} {noun}s"
