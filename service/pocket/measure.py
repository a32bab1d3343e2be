"""What a picture shows, read from its pixels alone: ground, things, how pure, how sharp, how spoilt.

Shapes: picture (3, 64, 64) in 0..1, mask (64, 64) of bool. Lengths are pixels, shares are in 0..1.
"""

import math
from dataclasses import dataclass, field
from functools import cache

import torch
import torch.nn.functional as F

from .render import DISTANCES, GRID_X, GRID_Y, SIDE_PX
from .world import PALETTE, RADIUS_PX, RELATIONS, SHAPES

TEMPLATE_PX = 28
SMALL_BELOW_PX = math.sqrt(RADIUS_PX["small"][1] * RADIUS_PX[""][0])
BIG_FROM_PX = math.sqrt(RADIUS_PX[""][1] * RADIUS_PX["big"][0])
_NAMES = tuple(PALETTE)
_RGB = torch.tensor([PALETTE[name] for name in _NAMES]) / 255
_BORDER = torch.ones(SIDE_PX, SIDE_PX, dtype=torch.bool)
_BORDER[3:-3, 3:-3] = False
_PLANE = torch.stack([torch.ones(SIDE_PX, SIDE_PX), GRID_X / 32 - 1, GRID_Y / 32 - 1], -1)


@dataclass(frozen=True)
class Found:
    """One thing found in a picture."""

    colour: str
    shape: str
    x: float
    y: float
    radius: float
    style: str
    overlaps: dict[str, float]
    """Shape to the best overlap (intersection over union) with it at any trained angle."""

    @property
    def size(self) -> str:
        return "small" if self.radius < SMALL_BELOW_PX else "big" if self.radius >= BIG_FROM_PX else ""


@dataclass(frozen=True)
class Reading:
    """What one picture shows; `things` from large to small."""

    background: str
    things: list[Found] = field(default_factory=list)
    purity: float = 0.0
    """Share of pixels in the colour of the ground or of a thing: less in dirty or unfinished pictures."""
    sharpness: float = 0.0
    """Steepness of the outlines against their contrast, 0 none to about 1 for a step of one pixel."""
    contrast: float = 0.0
    """Distance of the largest thing's colour from the ground's: less in washed out pictures."""
    blockiness: float = 0.0
    """Gradients on the borders of 8 px blocks against those elsewhere: 0 none, 1 all."""

    def overlap(self, shape: str) -> float:
        """How well the largest thing is a `shape`."""
        return self.things[0].overlaps[shape] if self.things else 0.0

    def quality(self, shape: str) -> float:
        """The fixed measure for comparisons: mean of overlap with the asked shape, purity and sharpness."""
        return (self.overlap(shape) + self.purity + min(1.0, self.sharpness)) / 3


def read(picture: torch.Tensor, shapes: tuple[str, ...] = SHAPES) -> Reading:
    """Measure one picture, in which things may have one of these `shapes`."""
    picture = picture.float().cpu()
    ground = _ground_plane(picture)
    distance = _distance_to_shades(picture, ground)
    blocks = _blockiness(picture)
    background = nearest_colour(ground[:, SIDE_PX // 2, SIDE_PX // 2])
    masks = _thing_masks(distance)
    if not masks:
        return Reading(background, blockiness=blocks, purity=float((distance < 0.12).float().mean()))
    paints = [_core(picture, mask).median(1).values for mask in masks]
    things = [_found(picture, mask, shapes) for mask in masks]
    nearest = distance
    for rgb in paints:
        nearest = torch.minimum(nearest, _distance_to_shades(picture, rgb[:, None, None].expand_as(picture)))
    contrast = float((paints[0] - ground[:, 32, 32]).norm())
    return Reading(
        background=background,
        things=things,
        purity=float((nearest < 0.12).float().mean()),
        sharpness=_sharpness(picture, masks[0], contrast),
        contrast=contrast,
        blockiness=blocks,
    )


def nearest_colour(rgb: torch.Tensor) -> str:
    """The palette's name for `rgb` (3,), whatever the light."""
    return _vote(rgb[:, None])


def _vote(pixels: torch.Tensor) -> str:
    """The name that most of the `pixels` (3, N) bear; what is very dark is black, whatever its hue."""
    gain = ((_RGB @ pixels) / (_RGB * _RGB).sum(1, keepdim=True)).clamp(0.78, 1.12)
    names = (pixels[None] - gain[:, None] * _RGB[:, :, None]).norm(dim=1).argmin(0)
    names[pixels.amax(0) < 0.26] = _NAMES.index("black")
    return _NAMES[int(names.bincount(minlength=len(_NAMES)).argmax())]


def is_relation_right(relation: str, first: Found, second: Found) -> bool:
    """True if `first` lies where `relation` says, seen from `second`, by more than it lies anywhere else."""
    dx, dy = RELATIONS[relation]
    right, down = first.x - second.x, first.y - second.y
    along, across = (right * dx, abs(down)) if dx else (down * dy, abs(right))
    return along > across


def is_place_right(place: str, thing: Found) -> bool:
    """True if the thing's centre lies in that part of the picture."""
    right, down = thing.x - 32, thing.y - 32
    if place == "middle":
        return max(abs(right), abs(down)) < 7.5
    toward = {"left": -right, "right": right, "top": -down, "bottom": down}[place]
    astray = abs(down) if place in ("left", "right") else abs(right)
    return toward > 5 and toward > astray


def _ground_plane(picture: torch.Tensor) -> torch.Tensor:
    """The ground without things, (3, H, W): a plane of light fitted to the border, outliers left out."""
    border = picture[:, _BORDER].T
    keep = (border - border.median(0).values).norm(dim=1) < 0.3
    plane = _PLANE[_BORDER]
    if keep.sum() < 100:
        keep = torch.ones_like(keep)
    for _ in range(2):
        rows = plane[keep]
        fit = torch.linalg.solve(rows.T @ rows + 1e-2 * torch.eye(3), rows.T @ border[keep])
        error = (plane @ fit - border).norm(dim=1)
        keep = error < max(0.06, 1.5 * float(error[keep].median()))
    return (_PLANE @ fit).permute(2, 0, 1).clamp(0, 1)


def _distance_to_shades(picture: torch.Tensor, rgb: torch.Tensor) -> torch.Tensor:
    """Distance of each pixel from the nearest shade of `rgb` (3, H, W), from shadow (0.8) to light (1.1)."""
    gain = ((picture * rgb).sum(0) / (rgb * rgb).sum(0).clamp(min=1e-3)).clamp(0.8, 1.1)
    return (picture - gain * rgb).norm(dim=0)


def _thing_masks(distance: torch.Tensor) -> list[torch.Tensor]:
    """Masks of the connected things, large to small; crumbs under a seventh of the largest are left out."""
    masks = []
    for mask in _components(distance > 0.13):
        level = 0.45 * float(distance[mask].quantile(0.75))
        mask = mask & (distance > level)
        if mask.sum() >= 20:
            masks.append(mask)
    masks.sort(key=lambda m: -int(m.sum()))
    return [mask for mask in masks if mask.sum() * 7 >= masks[0].sum()]


def _components(mask: torch.Tensor) -> list[torch.Tensor]:
    """The connected parts of `mask` of at least 20 pixels: labels spread until they rest."""
    labels = torch.arange(1.0, mask.numel() + 1).view_as(mask) * mask
    while True:
        spread = labels
        for _ in range(8):
            spread = F.max_pool2d(spread[None, None], 3, 1, 1)[0, 0] * mask
        if torch.equal(spread, labels):
            break
        labels = spread
    names, counts = labels[mask].unique(return_counts=True)
    return [labels == name for name, count in zip(names, counts, strict=True) if count >= 20]


def _eroded(mask: torch.Tensor) -> torch.Tensor:
    return -F.max_pool2d(-mask.float()[None, None], 3, 1, 1)[0, 0] > 0.5


def _core(picture: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The pixels (3, N) inside the outline."""
    core = _eroded(mask)
    return picture[:, core if core.sum() >= 10 else mask]


def _found(picture: torch.Tensor, mask: torch.Tensor, shapes: tuple[str, ...]) -> Found:
    ys, xs = mask.nonzero(as_tuple=True)
    overlaps = shape_overlaps(mask, shapes)
    shape = max(overlaps, key=lambda name: overlaps[name])
    half = math.sqrt(float((ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1))) / 2
    return Found(
        colour=_vote(_core(picture, mask)),
        shape=shape,
        x=float(xs.max() + xs.min() + 1) / 2,
        y=float(ys.max() + ys.min() + 1) / 2,
        radius=half / _templates(shape)[1],
        style=_style(picture, mask),
        overlaps=overlaps,
    )


def shape_overlaps(mask: torch.Tensor, shapes: tuple[str, ...] = SHAPES) -> dict[str, float]:
    """Each shape's best overlap with `mask`, cut out and brought to one size."""
    cut = _normalised(mask)
    return {
        shape: float((torch.minimum(t, cut).sum((1, 2)) / torch.maximum(t, cut).sum((1, 2))).max())
        for shape in shapes
        for t in (_templates(shape)[0],)
    }


@cache
def _templates(shape: str) -> tuple[torch.Tensor, float]:
    """The shape at 15 angles (15, 28, 28), and half its box at radius 1."""
    masks, halves = [], []
    for step in range(15):
        angle = 0.34 * (step / 7 - 1)
        dx, dy = (GRID_X - 32) / 22, (GRID_Y - 32) / 22
        inside = DISTANCES[shape](
            dx * math.cos(angle) + dy * math.sin(angle), dy * math.cos(angle) - dx * math.sin(angle)
        )
        mask = inside < 0
        masks.append(_normalised(mask))
        ys, xs = mask.nonzero(as_tuple=True)
        halves.append(math.sqrt(float((ys.max() - ys.min() + 1) * (xs.max() - xs.min() + 1))) / 2 / 22)
    return torch.stack(masks), sum(halves) / len(halves)


def _normalised(mask: torch.Tensor) -> torch.Tensor:
    """The box around `mask`, padded to a square and scaled to 28 x 28."""
    ys, xs = mask.nonzero(as_tuple=True)
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].float()
    h, w = cut.shape
    side = max(h, w)
    square = torch.zeros(side, side)
    square[(side - h) // 2 : (side - h) // 2 + h, (side - w) // 2 : (side - w) // 2 + w] = cut
    return F.interpolate(square[None, None], size=(TEMPLATE_PX, TEMPLATE_PX), mode="bilinear")[0, 0]


def _style(picture: torch.Tensor, mask: torch.Tensor) -> str:
    """Striped, dotted, glossy or plain, by the gradients inside the thing: how strong, how aligned, where."""
    inner = _eroded(_eroded(mask))
    if inner.sum() < 30:
        return "plain"
    dx, dy = torch.zeros_like(picture), torch.zeros_like(picture)
    dx[:, :, 1:-1] = (picture[:, :, 2:] - picture[:, :, :-2]) / 2
    dy[:, 1:-1] = (picture[:, 2:] - picture[:, :-2]) / 2
    dx, dy = dx[:, inner], dy[:, inner]
    xx, yy, xy = (float((a * b).sum(0).mean()) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    if math.sqrt(xx + yy) < 0.035:
        return "plain"
    ys, xs = inner.nonzero(as_tuple=True)
    energy = (dx * dx + dy * dy).sum(0)
    upper_left = (xs - xs.float().mean()) + (ys - ys.float().mean()) < 0
    if float(energy[upper_left].sum() / energy.sum()) > 0.85:
        return "glossy"
    aligned = math.hypot(xx - yy, 2 * xy) / (xx + yy)
    return "striped" if aligned > 0.5 else "dotted"


def _sharpness(picture: torch.Tensor, mask: torch.Tensor, contrast: float) -> float:
    steps = torch.zeros(SIDE_PX, SIDE_PX)
    steps[:, :-1] = picture.diff(dim=2).norm(dim=0)
    steps[:-1] = torch.maximum(steps[:-1], picture.diff(dim=1).norm(dim=0))
    grown = F.max_pool2d(mask.float()[None, None], 3, 1, 1)[0, 0] > 0.5
    outline = grown & ~_eroded(mask)
    return float(steps[outline].quantile(0.6)) / (contrast + 1e-3)


def _blockiness(picture: torch.Tensor) -> float:
    """How much more gradient lies on the lines of an 8 px grid than their share, 0..1."""
    shares = []
    for steps in (picture.diff(dim=2).norm(dim=0).sum(0), picture.diff(dim=1).norm(dim=0).sum(1)):
        on_grid = float(steps[7::8].sum() / steps.sum().clamp(min=1e-6))
        fair = len(steps[7::8]) / len(steps)
        shares.append(max(0.0, (on_grid - fair) / (1 - fair)))
    return sum(shares) / 2
