"""What is learnt from: latents and embeddings, each encoded once, and which of them are in which step.

Latents are kept by picture *and* crop, embeddings by caption, never by step: a step names its rows, and a row holds
everything that belongs to it. Shapes: B rows of a batch, C latent channels, h, w latent size, D text widths.
"""

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image

from service.training.buckets import Crop, crops, nearest, sizes


@dataclass(frozen=True)
class Example:
    """A picture with its caption. `pixels_HWC` gives its uint8 RGB pixels, whenever it is called."""

    digest: str
    caption: str
    width: int
    height: int
    pixels_HWC: Callable[[], np.ndarray]
    is_class: bool = False
    """It shows the class, for prior preservation, and not the subject."""


@dataclass(frozen=True)
class Shown:
    """An example as it can be shown."""

    example: Example
    crops: tuple[Crop, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.crops[0].size


@dataclass(frozen=True)
class Row:
    """One picture of a batch: an example in one of its crops."""

    example: Example
    crop: Crop


class Curriculum:
    """Which rows are in which batch: all of a batch have one size, a pass over the data shows every example `repeats`
    times (class pictures once) in an order of its own. A batch is a function of seed and number alone.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        *,
        resolution: int,
        bucket_px: int,
        aspect_buckets: bool,
        random_crop: bool,
        random_flip: bool,
        repeats: int,
        batch_size: int,
        seed: int,
    ) -> None:
        if not examples:
            raise ValueError("there is nothing to learn from")
        among = sizes(resolution, bucket_px) if aspect_buckets else ((resolution, resolution),)
        self._seed, self._batch_size, self._repeats = seed, batch_size, repeats
        self.shown = tuple(
            Shown(
                example,
                crops(
                    example.width,
                    example.height,
                    nearest(example.width, example.height, among),
                    random_crop=random_crop,
                    random_flip=random_flip,
                    rng=random.Random(f"{seed} {example.digest}"),
                ),
            )
            for example in examples
        )
        self._epoch: tuple[int, list[list[Row]]] = (-1, [])

    @cached_property
    def batches_per_pass(self) -> int:
        return len(self._pass(0))

    def batch(self, number: int) -> list[Row]:
        """The rows of a batch, counted from 0 through all passes."""
        epoch, place = divmod(number, self.batches_per_pass)
        if self._epoch[0] != epoch:
            self._epoch = (epoch, self._pass(epoch))
        return self._epoch[1][place]

    def _pass(self, epoch: int) -> list[list[Row]]:
        rng = random.Random(f"{self._seed} pass {epoch}")
        by_size: dict[tuple[int, int], list[Row]] = defaultdict(list)
        for shown in self.shown:
            for _ in range(1 if shown.example.is_class else self._repeats):
                by_size[shown.size].append(Row(shown.example, rng.choice(shown.crops)))
        batches: list[list[Row]] = []
        for rows in by_size.values():
            rng.shuffle(rows)
            batches += [rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)]
        rng.shuffle(batches)
        return batches


class Latents:
    """The VAE's view of every example in every crop: mean and standard deviation, scaled, in the host's memory."""

    def __init__(self, vae: torch.nn.Module, curriculum: Curriculum, progress: Callable[[], None]) -> None:
        self._moments: dict[tuple[str, Crop], tuple[torch.Tensor, torch.Tensor]] = {}
        before = next(vae.parameters()).dtype
        # In half precision SDXL's own VAE gives NaN; encoding is done once, so it can afford full precision.
        if before != torch.float32:
            vae.float()
        try:
            for shown in curriculum.shown:
                progress()
                for crop in shown.crops:
                    self._moments[shown.example.digest, crop] = _encoded(vae, shown.example, crop)
        finally:
            if before != torch.float32:
                vae.to(before)

    def draw(self, rows: Sequence[Row], generator: torch.Generator) -> torch.Tensor:
        """Latents (B, C, h, w) of the rows, drawn anew from their distributions."""
        found = [self._moments[row.example.digest, row.crop] for row in rows]
        mean = torch.stack([mean for mean, _ in found])
        deviation = torch.stack([deviation for _, deviation in found])
        return mean + deviation * torch.randn(mean.shape, generator=generator)

    def means(self, shown: Sequence[tuple[Example, Crop]]) -> torch.Tensor:
        """The middle of each distribution, (N, C, h, w)."""
        return torch.stack([self._moments[example.digest, crop][0] for example, crop in shown])


@torch.no_grad()
def _encoded(vae: torch.nn.Module, example: Example, crop: Crop) -> tuple[torch.Tensor, torch.Tensor]:
    device = next(vae.parameters()).device
    picture = Image.fromarray(example.pixels_HWC())
    if picture.size != crop.resized:
        picture = picture.resize(crop.resized, Image.Resampling.LANCZOS)
    pixels = np.asarray(picture, dtype=np.float32)[
        crop.top : crop.top + crop.size[1], crop.left : crop.left + crop.size[0]
    ]
    if crop.flipped:
        pixels = pixels[:, ::-1]
    tensor_1CHW = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)[None] / 127.5 - 1
    distribution = vae.encode(tensor_1CHW.to(device)).latent_dist  # type: ignore[operator]
    scale = float(vae.config.scaling_factor)  # type: ignore[union-attr, arg-type]
    return (distribution.mean[0] * scale).cpu(), (distribution.std[0] * scale).cpu()
