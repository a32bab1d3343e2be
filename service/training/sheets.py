"""Pictures to look at: the curve of the loss, and a labelled sheet of pictures."""

from collections.abc import Sequence
from typing import Final

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from service.images import encode_png
from service.reports.grid import Column, Grid, Group, Row, cell_edge, drawn

INK, PAPER, GRID, FAINT = (28, 28, 34), (255, 255, 255), (224, 224, 228), (178, 196, 232)
LINE: Final = (42, 84, 220)
CELL_PX: Final = 256
"""The most that a picture on a sheet has: there are many of them, and they are to be compared at a glance."""
CURVE_PX: Final = (900, 420)
MARGIN_PX: Final = (64, 24, 20, 44)
"""Left, top, right, bottom."""


def loss_curve(losses: Sequence[float], title: str) -> bytes:
    """PNG of the loss by step: each step faint, and its moving mean over a fortieth of all steps."""
    image = Image.new("RGB", CURVE_PX, PAPER)
    draw = ImageDraw.Draw(image)
    left, top, right, bottom = MARGIN_PX
    width, height = CURVE_PX[0] - left - right, CURVE_PX[1] - top - bottom
    values = np.asarray(losses, dtype=np.float64)
    window = max(1, len(values) // 40)
    mean = np.convolve(values, np.ones(window) / window, mode="valid") if len(values) else values
    ceiling = float(np.quantile(values, 0.98)) * 1.1 if len(values) else 1.0
    ceiling = max(ceiling, 1e-9)
    font, small = ImageFont.load_default(15), ImageFont.load_default(12)

    def point(step: float, value: float) -> tuple[float, float]:
        x = left + width * (step / max(1, len(values) - 1))
        return x, top + height * (1 - min(1.0, value / ceiling))

    for part in range(5):
        value = ceiling * part / 4
        y = point(0, value)[1]
        draw.line([(left, y), (left + width, y)], fill=GRID)
        draw.text((left - 8, y), f"{value:.3g}", fill=INK, font=small, anchor="rm")
        step = (len(values) - 1) * part / 4 if len(values) > 1 else part
        draw.text((point(step, 0)[0], top + height + 8), f"{step + 1:.0f}", fill=INK, font=small, anchor="mt")
    if len(values) > 1:
        draw.line([point(i, v) for i, v in enumerate(values)], fill=FAINT)
        offset = (window - 1) / 2
        draw.line([point(i + offset, v) for i, v in enumerate(mean)], fill=LINE, width=3)
    draw.text((left, 4), title, fill=INK, font=font)
    draw.text((left + width, top + height + 24), "step", fill=INK, font=small, anchor="rt")
    return encode_png(np.asarray(image))


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]], row_labels: Sequence[str], column_labels: Sequence[str]
) -> bytes:
    """PNG of pictures in rows and columns, labels wrapped. Small pictures are enlarged without smoothing."""
    labelled = [Row(label, list(row)) for row, label in zip(rows, row_labels, strict=True)]
    grid = Grid([Column(label) for label in column_labels], [Group(labelled)])
    edge = cell_edge(max(picture.shape[:2]) for row in rows for picture in row)
    return drawn(grid, min(edge, CELL_PX))
