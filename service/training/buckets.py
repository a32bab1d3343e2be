"""Sizes and crops: to what size each picture is brought, so that pictures of one size share a batch.

Aspect bucketing as introduced by NovelAI and used by every SDXL trainer: about the same number of pixels whatever the
shape, both edges multiples of a bucket's step.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

MAX_ASPECT: Final = 2.5
CROPS: Final = 4
"""Different crops of a picture, where crops are random: enough to vary, few enough to keep their latents."""


@dataclass(frozen=True)
class Crop:
    """A picture resized to `resized` (width, height), of which `size` at `left`, `top` is taken, maybe mirrored."""

    original: tuple[int, int]
    resized: tuple[int, int]
    left: int
    top: int
    size: tuple[int, int]
    flipped: bool = False

    @property
    def time_ids(self) -> tuple[float, ...]:
        """SDXL's micro-conditions: original size, crop's top left, target size, heights first."""
        width, height = self.size
        return (
            float(self.original[1]),
            float(self.original[0]),
            float(self.top),
            float(self.left),
            float(height),
            float(width),
        )


def sizes(resolution: int, step: int) -> tuple[tuple[int, int], ...]:
    """(width, height) of all buckets: for each width the largest height that keeps the area."""
    area = resolution * resolution
    found = {(resolution, resolution)}
    width = step
    while width <= resolution * math.sqrt(MAX_ASPECT):
        height = int(area / width) // step * step
        if height and max(width / height, height / width) <= MAX_ASPECT:
            found |= {(width, height), (height, width)}
        width += step
    return tuple(sorted(found))


def nearest(width: int, height: int, among: Sequence[tuple[int, int]]) -> tuple[int, int]:
    """The bucket whose shape is nearest to that of a picture, the larger of two that are as near."""
    aspect = math.log(width / height)
    return min(among, key=lambda size: (abs(math.log(size[0] / size[1]) - aspect), -size[0] * size[1]))


def crops(
    width: int,
    height: int,
    size: tuple[int, int],
    *,
    random_crop: bool,
    random_flip: bool,
    rng: random.Random,
) -> tuple[Crop, ...]:
    """All ways in which a picture of this size is shown: one in the middle, or several at random, each mirrored too."""
    scale = max(size[0] / width, size[1] / height)
    resized = (max(size[0], round(width * scale)), max(size[1], round(height * scale)))
    room = (resized[0] - size[0], resized[1] - size[1])
    places = [(room[0] // 2, room[1] // 2)]
    if random_crop and any(room):
        places = [(rng.randint(0, room[0]), rng.randint(0, room[1])) for _ in range(CROPS)]
    flips = (False, True) if random_flip else (False,)
    return tuple(
        Crop((width, height), resized, left, top, size, flipped)
        for left, top in dict.fromkeys(places)
        for flipped in flips
    )
