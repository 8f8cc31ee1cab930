"""Spatial transformer (Jaderberg et al. 2015, https://arxiv.org/abs/1506.02025): a layer that crops, turns or warps its input.

A localisation network reads parameters from the feature map, a transform turns them into a sampling grid, and the map is
sampled there, bilinearly and with zeros outside, so that gradients reach both. It is a module like any other: at the
front of a classifier or between two layers of a backbone. Untrained, it is the identity (resampled to `size`).

Coordinates are (x, y), normalised: -1 and 1 are the outer edges of the map (`align_corners=False`), so that parameters mean
the same at every resolution. A grid says where each output pixel is read from: a scale below 1 zooms in.

Letters: B maps, C channels, H, W pixels of the output, P parameters, N control points.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SpatialTransformer(nn.Module):
    """Localisation network, grid generator and sampler (section 3).

    Args:
        localisation: maps (B, C, h, w) to parameters (B, P). Let it end in a `ParameterLayer`, or start otherwise than
            as the identity.
        transform: what the parameters mean; it states P.
        size: (H, W) of the output.
    """

    def __init__(self, localisation: nn.Module, transform: Transform, size: tuple[int, int]) -> None:
        super().__init__()
        self.localisation, self.transform, self.size = localisation, transform, tuple(size)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, C, H, W)."""
        return sample(features, self.grid(features))

    def grid(self, features: Tensor) -> Tensor:
        """Where each output pixel is read from: (B, H, W, 2), at least float32, from maps (B, C, h, w)."""
        theta = self.localisation(features)
        if theta.shape[1:] != (self.transform.num_parameters,):
            raise ValueError(
                f"the localisation network gives {tuple(theta.shape)}, but {type(self.transform).__name__} takes "
                f"(B, {self.transform.num_parameters}); end it in ParameterLayer(in_features, transform)"
            )
        with _full_precision(theta):  # bfloat16 knows places to 1/256 of the picture only
            return self.transform.grid(theta.float() if theta.dtype.itemsize < 4 else theta, self.size)


class ParallelSpatialTransformers(nn.Module):
    """Several transformers on the same map, each with its own crop; outputs are concatenated along the channels (4.3).

    Args:
        transformers: all of one output size.
    """

    def __init__(self, transformers: Sequence[SpatialTransformer]) -> None:
        super().__init__()
        sizes = {transformer.size for transformer in transformers}
        if len(sizes) != 1:
            raise ValueError(f"parallel transformers need one output size, got {sorted(sizes) or 'no transformers'}")
        self.transformers = nn.ModuleList(transformers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) to (B, T * C, H, W) of T transformers, the first's channels first."""
        return torch.cat([transformer(features) for transformer in self.transformers], dim=1)


def sample(features: Tensor, grid: Tensor) -> Tensor:
    """Bilinear samples (B, C, H, W) of maps (B, C, h, w) at (B, H, W, 2) places; zero outside the map."""
    with _full_precision(features):
        return F.grid_sample(features.to(grid.dtype), grid, align_corners=False).to(features.dtype)


def _full_precision(like: Tensor) -> AbstractContextManager:
    """Autocast switched off, on the device of a tensor; the meta device knows none."""
    return nullcontext() if like.is_meta else torch.autocast(like.device.type, enabled=False)


# -- Localisation --


class ParameterLayer(nn.Linear):
    """The last layer of a localisation network: zero weights and the identity as bias; in full precision under autocast.

    Args:
        in_features: of its input (B, in_features).
        transform: gives the number of outputs and the identity.
    """

    def __init__(self, in_features: int, transform: Transform) -> None:
        super().__init__(in_features, transform.num_parameters)
        nn.init.zeros_(self.weight)
        with torch.no_grad():
            self.bias.copy_(transform.identity())

    def forward(self, features: Tensor) -> Tensor:
        with _full_precision(features):
            return super().forward(features.to(self.weight.dtype))


def fc_localisation(in_features: int, transform: Transform, hidden: Sequence[int] = (32, 32, 32)) -> nn.Sequential:
    """Fully connected: maps of `in_features` values in all to parameters (B, P). Its batch norm trains on B of 2 or more."""
    widths = [in_features, *hidden]
    layers: list[nn.Module] = [nn.Flatten()]
    for before, after in zip(widths, hidden, strict=False):
        layers += [nn.Linear(before, after), nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers, ParameterLayer(widths[-1], transform))


def conv_localisation(
    channels: int, size: tuple[int, int], transform: Transform, *, width: int = 20, hidden: int = 64
) -> nn.Sequential:
    """Two 5x5 convolutions, each pooled by 2, and a hidden layer: maps (B, channels, *size) to parameters (B, P)."""
    cells = (size[0] // 4) * (size[1] // 4)
    return nn.Sequential(
        *(nn.Conv2d(channels, width, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 5, padding=2), nn.MaxPool2d(2), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(width * cells, hidden), nn.ReLU()),
        ParameterLayer(hidden, transform),
    )


# -- Transforms --


class Transform(nn.Module):
    """What the parameters of a transformer mean.

    Attributes:
        num_parameters: P.
    """

    num_parameters: int

    def identity(self) -> Tensor:
        """(P,) parameters with which every pixel is read from its own place."""
        raise NotImplementedError

    def grid(self, theta: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H, W, 2) places in the input, from parameters (B, P) and the output's (H, W)."""
        raise NotImplementedError


class Affine(Transform):
    """Six parameters, the rows of a 2x3 matrix (eq. 1)."""

    num_parameters = 6

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0, 0, 0, 1, 0])

    def grid(self, theta: Tensor, size: tuple[int, int]) -> Tensor:
        points = _homogeneous(_places(size, theta).flatten(0, 1))
        return (
            (theta.view(-1, 3) @ points.mT).view(len(theta), 2, *size).movedim(1, -1)
        )  # one product, a row a coordinate


class Attention(Transform):
    """Three parameters (s, tx, ty): one scale for both axes and a translation (eq. 2)."""

    num_parameters = 3

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0, 0])

    def grid(self, theta: Tensor, size: tuple[int, int]) -> Tensor:
        scale, shift = theta[:, None, None, :1], theta[:, None, None, 1:]
        return scale * _places(size, theta) + shift


class Projective(Transform):
    """Eight parameters, a 3x3 matrix by rows without its last element, which is 1."""

    num_parameters = 8
    NEAREST = 1e-3  # of a point's depth; what lies behind the viewer is read far outside the picture, as zero

    def identity(self) -> Tensor:
        return torch.tensor([1.0, 0, 0, 0, 1, 0, 0, 0])

    def grid(self, theta: Tensor, size: tuple[int, int]) -> Tensor:
        matrix = torch.cat([theta, torch.ones_like(theta[:, :1])], dim=1).view(-1, 3, 3)
        points = _homogeneous(_places(size, theta).flatten(0, 1))
        x, y, depth = (matrix.flatten(0, 1) @ points.mT).view(len(theta), 3, *size).unbind(1)
        return torch.stack([x, y], dim=-1) / depth[..., None].clamp(min=self.NEAREST)


class ThinPlateSpline(Transform):
    """2 N parameters: the places (x, y) that a regular grid of N control points, row by row, is read from.

    Between them the grid is the smoothest surface through these places (Bookstein 1989). It is linear in them, with
    weights that depend on the output's size alone.

    Args:
        side: control points along each axis, the outermost on the edge of the picture; N is its square.
    """

    def __init__(self, side: int = 4) -> None:
        super().__init__()
        if side < 2:
            raise ValueError(f"a thin plate spline needs at least 2 control points a side, got {side}")
        axis = torch.linspace(-1, 1, side, dtype=torch.float64)
        points = torch.cartesian_prod(axis, axis).flip(-1)  # x runs fastest
        self.num_parameters = 2 * len(points)
        self.register_buffer("control", points.float(), persistent=False)
        self.register_buffer("solution", _spline_solution(points).float(), persistent=False)

    def identity(self) -> Tensor:
        return self.control.flatten()

    def grid(self, theta: Tensor, size: tuple[int, int]) -> Tensor:
        places, control = _places(size, theta).flatten(0, 1), self.control.to(theta.dtype)
        basis = torch.cat([_bending(places, control), _homogeneous(places)], dim=1)
        weights = basis @ self.solution.to(theta.dtype)  # (H * W, N)
        moved = theta.view(len(theta), -1, 2) - control  # of shifts, so that the identity is exact
        return (places + weights @ moved).unflatten(1, size)


def _spline_solution(points: Tensor) -> Tensor:
    """(N + 3, N): times the values at N points (N, 2), the coefficients of the spline through them."""
    number, plane = len(points), _homogeneous(points)
    system = points.new_zeros(number + 3, number + 3)
    system[:number, :number], system[:number, number:], system[number:, :number] = (
        _bending(points, points),
        plane,
        plane.T,
    )
    return torch.linalg.inv(system)[:, :number]


def _bending(places: Tensor, control: Tensor) -> Tensor:
    """The spline's radial functions r^2 log r^2: (M, N) from places (M, 2) and control points (N, 2)."""
    squared = (places[:, None] - control).square().sum(-1)
    return torch.special.xlogy(squared, squared)


def _homogeneous(places: Tensor) -> Tensor:
    return torch.cat([places, torch.ones_like(places[..., :1])], dim=-1)


def _places(size: tuple[int, int], like: Tensor) -> Tensor:
    """(H, W, 2) normalised (x, y) of an output's own pixel centres."""
    y, x = (torch.arange(n, device=like.device, dtype=like.dtype).mul(2).add(1 - n).div(n) for n in size)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
