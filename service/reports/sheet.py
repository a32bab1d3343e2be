"""The contact sheet of a comparison: arms as columns, prompts and seeds as rows."""

from collections.abc import Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from darkroom.types import CompareCell, Comparison
from service.reports.grid import SMALL_CELL_PX, Column, Grid, Group, Row, Words, cell_edge, drawn
from service.reports.shown import shown
from service.reports.thumbnails import decoded, size_of
from service.reports.words import OUTCOMES, extent, model, standing, title

MAX_PIXELS: Final = 40_000_000
"""Of the cells of a sheet, about; what looks at pictures gives up not far above."""


def contact_sheet(comparison: Comparison, thumbnails: Mapping[int, bytes]) -> bytes:
    """PNG with the title and the conclusion on top, and the rows of a prompt below it as a heading.

    `thumbnails` are those of the cells that are done, by index. Where there are too many pictures, cells become
    smaller first, down to 128 px; then the last rows are left out, and the sheet says so.
    """
    plan = comparison.plan
    arms = len(plan.arms)
    # One picture an arm tells how large they are; the others are decoded when it is known which are shown.
    of_arms = {cell.arm: thumbnails[cell.index] for cell in comparison.cells if cell.index in thumbnails}
    edge = cell_edge([max(size_of(data)) for data in of_arms.values()])
    while edge > SMALL_CELL_PX and arms * len(plan.prompts) * len(plan.seeds) * edge**2 > MAX_PIXELS:
        edge = max(SMALL_CELL_PX, edge * 3 // 4)
    part = shown(plan, max(1, MAX_PIXELS // (arms * edge**2)))
    by_place = {(cell.prompt, cell.seed, cell.arm): cell for cell in comparison.cells}
    groups = [
        Group(
            heading=prompt,
            rows=[
                Row(
                    label=str(seed),
                    cells=[
                        _shown_cell(by_place[prompt, seed, arm.name], thumbnails, edge) for arm in plan.arms
                    ],
                )
                for seed in part.seeds
            ],
        )
        for prompt in part.prompts
    ]
    facts = f"{extent(comparison)} · model {model(comparison)} · {comparison.id}"
    grid = Grid(
        columns=[_column(comparison, arm.name) for arm in plan.arms],
        groups=groups,
        title=title(comparison),
        text=[text for text in (comparison.conclusion, standing(comparison)) if text],
        remarks=[text for text in (facts, part.left_out) if text],
    )
    return drawn(grid, edge)


def _column(comparison: Comparison, arm: str) -> Column:
    if arm == comparison.plan.baseline:
        return Column(arm, "baseline", is_marked=True)
    deciding = [v for v in comparison.verdicts if v.arm == arm and v.decides]
    return Column(arm, "".join(f"{v.metric}: {OUTCOMES[v.outcome]}" for v in deciding))


def _shown_cell(
    cell: CompareCell, thumbnails: Mapping[int, bytes], edge_px: int
) -> NDArray[np.uint8] | Words:
    if cell.state == "failed":
        reason = cell.problem.detail if cell.problem else "no reason was kept"
        return Words(f"failed: {reason}", is_trouble=True)
    if cell.index not in thumbnails:
        return Words("not drawn yet" if cell.state == "waiting" else "the picture is gone")
    return decoded(thumbnails[cell.index], edge_px)
