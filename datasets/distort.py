"""Distorted digits, as in the spatial transformer's experiments (https://arxiv.org/abs/1506.02025, section 4.1, appendix A).

Every function takes digits (B, 1, 28, 28), uint8 or floats in [0, 1], and a generator, from which the result follows, and
gives pictures (B, 1, S, S) float32 in [0, 1], zero outside the digit. A batch is one call: no loop over pictures.

Coordinates are (x, y) in pixels from the middle of the picture, so that digit and canvas share their origin; a grid says
where each canvas pixel is read from. Letters: B digits, S side of the canvas, N control points, K pieces of clutter.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

SIDE = 28  # of a digit, in pixels


def rotate(digits: Tensor, generator: Generator, *, degrees: float = 90.0) -> Tensor:
    """R: turned by up to `degrees` either way; S is 28."""
    angle = _uniform(digits, generator, -degrees, degrees).deg2rad()
    return _sample(digits, _turned(angle, _pixels(SIDE)))


def rotate_scale_translate(digits: Tensor, generator: Generator, *, degrees: float = 45.0) -> Tensor:
    """RTS: turned, scaled by 0.7 to 1.2, and put anywhere where the scaled frame is within the canvas; S is 42."""
    size = 42
    angle = _uniform(digits, generator, -degrees, degrees).deg2rad()
    scale = _uniform(digits, generator, 0.7, 1.2)[:, None, None]
    room = (size - SIDE * scale) / 2
    centre = room * (2 * torch.rand(len(digits), 1, 2, generator=generator) - 1)
    return _sample(digits, _turned(angle, (_pixels(size) - centre) / scale))


def project(digits: Tensor, generator: Generator, *, sigma: float = 5.0) -> Tensor:
    """P: scaled by 0.75 to 1, and each corner moved by a normal amount of `sigma` pixels along each axis; S is 28.

    The normal distribution ends at 5 pixels: beyond a quarter of the smallest side (21), frames fold over.
    """
    corners = SIDE / 2 * torch.tensor([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    scaled = corners * _uniform(digits, generator, 0.75, 1.0)[:, None, None]
    moved = scaled + sigma * _truncated_normal(scaled.shape, generator, 5 / sigma)
    points = F.pad(_pixels(SIDE), (0, 1), value=1.0) @ _unit_square_from(moved).mT
    unit = points[..., :2] / points[..., 2:]
    return _sample(digits, SIDE * (unit - 0.5))


def warp(digits: Tensor, generator: Generator, *, sigma: float = 1.5) -> Tensor:
    """E: scaled by 0.75 to 1, and 4x4 points read from `sigma` pixels (normal) away, a thin plate spline between; S is 28."""
    scale = _uniform(digits, generator, 0.75, 1.0)[:, None, None]
    shifts = sigma * torch.randn(len(digits), 16, 2, generator=generator)
    return _sample(digits, (_pixels(SIDE) + _spline_weights(4) @ shifts) / scale)


def clutter(digits: Tensor, generator: Generator, *, pieces: int = 16, side: int = 6) -> Tensor:
    """Cluttered translated: each digit anywhere on the canvas, and K pieces of the batch's other digits; S is 60.

    Where things overlap, the brighter shows.
    """
    size, batch = 60, len(digits)
    other = (torch.arange(batch)[:, None] + _integers((batch, pieces), generator, 1, max(batch, 2))) % batch
    cut = _integers((2, batch, pieces), generator, 0, SIDE - side + 1)
    put = _integers((2, batch, pieces), generator, 0, size - side + 1)
    floats = _as_float(digits)
    values = floats.flatten()[other[..., None] * SIDE**2 + _squares(cut, side, SIDE)]
    place = _squares(_integers((2, batch, 1), generator, 0, size - SIDE + 1), SIDE, size)
    canvas = floats.new_zeros(batch, size * size).scatter_(1, place.flatten(1), floats.flatten(1))
    canvas.scatter_reduce_(1, _squares(put, side, size).flatten(1), values.flatten(1), "amax")
    return canvas.view(batch, 1, size, size)


DISTORTIONS: dict[str, Callable[[Tensor, Generator], Tensor]] = {
    "R": rotate,
    "RTS": rotate_scale_translate,
    "P": project,
    "E": warp,
    "cluttered": clutter,
}
SIZES = {"R": 28, "RTS": 42, "P": 28, "E": 28, "cluttered": 60}  # S of each


def _uniform(digits: Tensor, generator: Generator, low: float, high: float) -> Tensor:
    return low + (high - low) * torch.rand(len(digits), generator=generator)


def _truncated_normal(shape: tuple[int, ...], generator: Generator, limit: float) -> Tensor:
    """Normal numbers under the condition that they lie within -limit to limit."""
    within = math.erf(limit / math.sqrt(2))
    return math.sqrt(2) * torch.erfinv(within * (2 * torch.rand(shape, generator=generator) - 1))


def _integers(shape: tuple[int, ...], generator: Generator, low: int, high: int) -> Tensor:
    return torch.randint(low, high, shape, generator=generator)


def _as_float(digits: Tensor) -> Tensor:
    return digits / 255 if digits.dtype == torch.uint8 else digits.float()


def _pixels(size: int) -> Tensor:
    """(S * S, 2) pixel centres of a canvas, row by row."""
    axis = torch.arange(size) - (size - 1) / 2
    return torch.cartesian_prod(axis, axis).flip(-1)


def _turned(angle: Tensor, points: Tensor) -> Tensor:
    """Points (M, 2) or (B, M, 2) turned by angles (B,): (B, M, 2)."""
    cos, sin = angle.cos(), angle.sin()
    return points @ torch.stack([cos, sin, -sin, cos], dim=-1).view(-1, 2, 2)


def _sample(digits: Tensor, grid: Tensor) -> Tensor:
    """Digits read at (B, S * S, 2) points, bilinearly."""
    size = math.isqrt(grid.shape[1])
    grid = grid.view(-1, size, size, 2) * (2 / SIDE)
    return F.grid_sample(_as_float(digits), grid, align_corners=False)


def _unit_square_from(quads: Tensor) -> Tensor:
    """(B, 3, 3) homographies that take quadrilaterals (B, 4, 2), clockwise from the top left, to the unit square.

    The inverse of the square's map to them (Heckbert 1989, "Fundamentals of texture mapping", section 2.2.3).
    """
    p0, p1, p2, p3 = quads.unbind(1)
    d1, d2, total = p1 - p2, p3 - p2, p0 - p1 + p2 - p3
    cross = _cross(d1, d2)
    g, h = _cross(total, d2) / cross, _cross(d1, total) / cross
    columns = [p1 - p0 + g[:, None] * p1, p3 - p0 + h[:, None] * p3, p0]
    matrix = torch.cat([torch.stack(columns, dim=-1), torch.stack([g, h, torch.ones_like(g)], dim=-1)[:, None]], dim=1)
    return torch.linalg.inv(matrix)


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def _spline_weights(side: int) -> Tensor:
    """(S * S, N): how far each pixel of a digit's frame moves with each of side x side points spread over it."""
    axis = torch.linspace(-SIDE / 2, SIDE / 2, side)
    control, pixels = torch.cartesian_prod(axis, axis).flip(-1), _pixels(SIDE)
    corner = torch.zeros(3, 3)
    plane = F.pad(control, (0, 1), value=1.0)
    system = torch.cat([torch.cat([_bending(control, control), plane], 1), torch.cat([plane.T, corner], 1)])
    basis = torch.cat([_bending(pixels, control), F.pad(pixels, (0, 1), value=1.0)], 1)
    return torch.linalg.solve(system.double(), basis.double(), left=False)[:, : len(control)].float()


def _bending(places: Tensor, control: Tensor) -> Tensor:
    squared = (places[:, None] - control).square().sum(-1)
    return torch.special.xlogy(squared, squared)


def _squares(corners: Tensor, side: int, width: int) -> Tensor:
    """Flat indices (..., side * side) of squares in rows of `width`, from their top left (row, column), each (...)."""
    steps = torch.arange(side)
    rows, columns = corners[0][..., None] + steps, corners[1][..., None] + steps
    return (rows[..., :, None] * width + columns[..., None, :]).flatten(-2)
