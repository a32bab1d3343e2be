"""Scenes to pixels, a batch at a time: signed distances, soft light, textures, then the defects.

Shapes: B pictures, H = W = 64 pixels. Inside a thing coordinates are in units of its radius,
and y grows downwards.
"""

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from .world import Scene, Thing

SIDE_PX = 64
_centres = torch.arange(SIDE_PX) + 0.5
GRID_X = _centres[None, :].expand(SIDE_PX, SIDE_PX)
GRID_Y = _centres[:, None].expand(SIDE_PX, SIDE_PX)

Distance = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def _circle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.hypot(x, y) - 0.92


def _square(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.maximum(x.abs(), y.abs()) - 0.80


def _triangle(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    y = y - 0.22
    return torch.maximum(y, 0.866 * x.abs() - 0.5 * y) - 0.56


def _star(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Five points: fold the plane into one tenth, then the distance to the edge from tip to notch."""
    tip, notch, fifth = 1.1, 0.47, 2 * math.pi / 5
    angle = torch.remainder(torch.atan2(x, -y) + fifth / 2, fifth) - fifth / 2
    r = torch.hypot(x, y)
    along, across = r * angle.cos(), r * angle.sin().abs()
    edge_x, edge_y = notch * math.cos(fifth / 2) - tip, notch * math.sin(fifth / 2)
    return -(edge_x * across - edge_y * (along - tip)) / math.hypot(edge_x, edge_y)


def _cross(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    x, y = x.abs(), y.abs()
    return torch.minimum(torch.maximum(x - 0.31, y - 0.94), torch.maximum(y - 0.31, x - 0.94))


def _ring(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (torch.hypot(x, y) - 0.72).abs() - 0.225


def _heart(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Two quarter discs on a corner; after Inigo Quilez, 2D distance functions."""
    x, y = x.abs() / 1.6, (0.75 - y) / 1.6
    lobe = torch.hypot(x - 0.25, y - 0.75) - math.sqrt(2) / 4
    half = 0.5 * (x + y).clamp(min=0)
    corner = torch.minimum(torch.hypot(x, y - 1), torch.hypot(x - half, y - half)) * torch.sign(x - y)
    return 1.6 * torch.where(x + y > 1, lobe, corner)


def _arrow(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    shaft = torch.maximum((x + 0.40).abs() - 0.55, y.abs() - 0.24)
    head = torch.maximum(0.1 - x, 0.66 * (x - 0.98) + 0.75 * y.abs())
    return torch.minimum(shaft, head)


def _crescent(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.maximum(torch.hypot(x, y) - 0.95, 0.78 - torch.hypot(x - 0.42, y + 0.1))


def _diamond(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.6 * (x.abs() / 0.72 + y.abs() / 1.05 - 1)


DISTANCES: dict[str, Distance] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "cross": _cross,
    "ring": _ring,
    "heart": _heart,
    "arrow": _arrow,
    "crescent": _crescent,
    "diamond": _diamond,
}
"""Shape to its signed distance, negative inside."""


def render(scenes: Sequence[Scene]) -> torch.Tensor:
    """The pictures of `scenes`, (B, 3, 64, 64) in 0..1. The same scene always gives the same pixels."""
    picture = _ground(scenes)
    grid_x, grid_y = _warped_grid(scenes)
    for slot in range(max(len(scene.things) for scene in scenes)):
        rows = torch.tensor([i for i, scene in enumerate(scenes) if len(scene.things) > slot])
        things = [scenes[i].things[slot] for i in rows.tolist()]
        depth = _column([scenes[i].light[2] for i in rows.tolist()])
        picture[rows] = _draw(picture[rows], things, grid_x[rows], grid_y[rows], depth)
    for name, spoil in (("blurry", _blur), ("blocky", _block), ("washed out", _wash)):
        rows = torch.tensor([i for i, scene in enumerate(scenes) if name in scene.defects], dtype=torch.long)
        if len(rows):
            severity = _column([scenes[i].defects[name] for i in rows.tolist()])[:, None]
            picture[rows] = spoil(picture[rows], severity)
    return picture.clamp(0, 1)


def _column(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None]


def _ground(scenes: Sequence[Scene]) -> torch.Tensor:
    """Coloured grounds with light from one side."""
    rgb = torch.tensor([scene.background_rgb for scene in scenes])[:, :, None, None]
    strength = _column([scene.light[0] for scene in scenes])
    angle = _column([scene.light[1] for scene in scenes])
    side = angle.cos() * (GRID_X / 32 - 1) + angle.sin() * (GRID_Y / 32 - 1)
    return (rgb * (1 + strength * side)[:, None]).clamp(0, 1)


def _warped_grid(scenes: Sequence[Scene]) -> tuple[torch.Tensor, torch.Tensor]:
    """Pixel coordinates, bent by slow waves where the scene is deformed: a defect that latents can hold."""
    severity = [scene.defects.get("deformed", 0.0) for scene in scenes]
    reach = _column(
        [0.42 * max(t.radius for t in s.things) ** 0.75 * v for s, v in zip(scenes, severity, strict=True)]
    )
    wave = torch.tensor([scene.warp for scene in scenes])[:, :, None, None]
    phase = 2 * math.pi * wave[:, :4]
    radius = _column([max(11.0, max(t.radius for t in scene.things)) for scene in scenes])
    pace = (2.2 + 1.6 * wave[:, 4:]) / radius[:, None]
    x = GRID_X + reach * (
        torch.sin(pace[:, 0] * GRID_Y + phase[:, 0])
        + 0.6 * torch.sin(1.7 * pace[:, 1] * GRID_X + phase[:, 1])
    )
    y = GRID_Y + reach * (
        torch.sin(pace[:, 2] * GRID_X + phase[:, 2])
        + 0.6 * torch.sin(1.7 * pace[:, 3] * GRID_Y + phase[:, 3])
    )
    return x, y


def _draw(
    picture: torch.Tensor,
    things: Sequence[Thing],
    grid_x: torch.Tensor,
    grid_y: torch.Tensor,
    depth: torch.Tensor,
) -> torch.Tensor:
    """`picture` with one thing drawn on each row, over its soft drop shadow of `depth` (B, 1, 1)."""
    radius = _column([thing.radius for thing in things])
    angle = _column([thing.angle for thing in things])
    dx = grid_x - _column([thing.x for thing in things])
    dy = grid_y - _column([thing.y for thing in things])

    def distance_px(dx: torch.Tensor, dy: torch.Tensor) -> torch.Tensor:
        x = (dx * angle.cos() + dy * angle.sin()) / radius
        y = (dy * angle.cos() - dx * angle.sin()) / radius
        distance = torch.empty_like(x)
        for shape in {thing.shape for thing in things}:
            rows = torch.tensor([thing.shape == shape for thing in things])
            distance[rows] = DISTANCES[shape](x[rows], y[rows])
        return distance * radius

    shadow = torch.sigmoid(-distance_px(dx - 2.0, dy - 2.5) / 1.6) * depth
    cover = (0.5 - distance_px(dx, dy)).clamp(0, 1)[:, None]
    rgb = torch.tensor([thing.rgb for thing in things])[:, :, None, None]
    paint = _texture(rgb * (1 - 0.08 * (dy / radius)[:, None]), rgb, things, dx, dy, radius)
    return picture * (1 - shadow[:, None]) * (1 - cover) + paint.clamp(0, 1) * cover


def _texture(
    paint: torch.Tensor,
    rgb: torch.Tensor,
    things: Sequence[Thing],
    dx: torch.Tensor,
    dy: torch.Tensor,
    radius: torch.Tensor,
) -> torch.Tensor:
    """`paint` (B, 3, H, W) with stripes, dots or a highlight in a paler or, for pale colours, darker tone."""
    tone = torch.where(rgb.mean(1, keepdim=True) > 0.62, rgb * 0.58, rgb + (1 - rgb) * 0.55)
    angle = _column([thing.angle + 0.6 for thing in things])
    along = dx * angle.cos() + dy * angle.sin()
    across = dy * angle.cos() - dx * angle.sin()
    period = (0.55 * radius).clamp(7.0, 9.5)
    stripe = ((along / period * 2 * math.pi).cos() * 2.2 - 0.6).sigmoid()
    nearest_dot = torch.hypot(
        torch.remainder(along + period / 2, period) - period / 2,
        torch.remainder(across + period / 2, period) - period / 2,
    )
    dot = (0.31 * period - nearest_dot + 0.5).clamp(0, 1)
    shine = torch.exp(-((dx / radius + 0.36) ** 2 + (dy / radius + 0.38) ** 2) / 0.09)
    for style, amount, colour in (("striped", stripe, tone), ("dotted", dot, tone), ("glossy", shine, None)):
        share = amount * _column([float(thing.style == style) for thing in things])
        if colour is None:
            gleam = torch.where(rgb.mean(1, keepdim=True) > 0.8, 1.0, 0.92)
            darker = _column([0.2 * (thing.style == style) for thing in things])[:, None]
            paint = paint * (1 - darker * ((dx + dy) / (2 * radius) + 0.5).clamp(0, 1)[:, None])
            colour = gleam
        paint = paint + share[:, None] * (colour - paint)
    return paint


def _blur(picture: torch.Tensor, severity: torch.Tensor) -> torch.Tensor:
    """Gaussian blur of up to 3.4 px, one width for each picture."""
    reach = 9
    offsets = torch.arange(-reach, reach + 1, dtype=torch.float32)
    kernel = torch.exp(-(offsets**2) / (2 * (3.4 * severity.flatten()[:, None]) ** 2))
    kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(3, 0)
    flat = F.pad(picture, (reach,) * 4, mode="reflect").flatten(0, 1)[None]
    flat = F.conv2d(flat, kernel[:, None, None, :], groups=len(kernel))
    flat = F.conv2d(flat, kernel[:, None, :, None], groups=len(kernel))
    return flat.view_as(picture)


def _block(picture: torch.Tensor, severity: torch.Tensor) -> torch.Tensor:
    """Blocks of 8 px, mixed in from a third to all."""
    coarse = F.interpolate(F.avg_pool2d(picture, 8), scale_factor=8, mode="nearest")
    return picture + (0.35 + 0.65 * severity) * (coarse - picture)


def _wash(picture: torch.Tensor, severity: torch.Tensor) -> torch.Tensor:
    """Contrast and colour lost towards a pale grey."""
    pale = 0.35 * picture.mean(1, keepdim=True) + 0.43
    return picture + 0.72 * severity * (pale - picture)
