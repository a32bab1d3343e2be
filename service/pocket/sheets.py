"""Contact sheets, so that pictures can be looked at."""

from pathlib import Path

import torch
from PIL import Image


def write_sheet(pictures: torch.Tensor, path: Path, columns: int, scale: int = 2, gap_px: int = 2) -> None:
    """Write `pictures` (B, 3, H, W) in 0..1 as one PNG of `columns` columns."""
    side = pictures.shape[-1] + gap_px
    rows = -(-len(pictures) // columns)
    canvas = torch.full((3, rows * side + gap_px, columns * side + gap_px), 255, dtype=torch.uint8)
    for i, picture in enumerate((pictures.clamp(0, 1) * 255).round().byte()):
        top, left = i // columns * side + gap_px, i % columns * side + gap_px
        canvas[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    image = Image.fromarray(canvas.permute(1, 2, 0).numpy())
    path.parent.mkdir(parents=True, exist_ok=True)
    image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST).save(
        path, optimize=True
    )
