"""Where the cells of feature maps lie in the picture, and bilinear interpolation that leaves them there.

A cell lies in the middle of its receptive field. Pooling of 2 x 2 pixels (VGG) leaves cell i of a map of stride S in the middle
of the S pixels from i * S on, odd kernels of stride 2 (ResNet) leave it on pixel i * S, and TensorFlow's padding of even sizes on
pixel i * S + S - 1. Interpolation that takes one for another moves everything by up to S / 2 pixels, 16 of a map of stride 32,
and maps of two strides against each other. So the places are read off the network (`layout`), for which FCN's authors kept
track of crop offsets (https://arxiv.org/abs/1411.4038), and pictures are padded right and below to sizes at which the places
are the same for all: there is no other padding (the authors' 100 pixels), beyond the outermost cells scores go on as they are.

Letters: B images, C channels, H, W pixels, h, w cells, S stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ..backbone import Backbone, BackboneWithFPN
from ..backbone.layer_counter import Counter
from ..backbone.layers import BilinearUpsample
from ..backbone.model import evaluating
from ..backbone.pafpn import BackboneWithPAFPN


class Grid(NamedTuple):
    """Cell i of a map, along either axis, lies at `start + stride * i`, in pixels: that of pixel j is j."""

    stride: int
    start: Fraction = Fraction(0)

    def shifted(self, cells: Fraction) -> Grid:
        """The grid of a map whose cells lie that many cells further."""
        return Grid(self.stride, self.start + self.stride * cells)


PIXELS = Grid(1)


class Layout(NamedTuple):
    """The places of a backbone's maps in pictures of `multiple * k + extra` pixels a side, and no fewer than `least`.

    Attributes:
        grids: of each map, finest first.
        multiple: the coarsest stride.
        extra: 1 where cells then lie from the first pixel to the last, else 0.
        least: pixels a side that leave a cell in every map.
    """

    grids: tuple[Grid, ...]
    multiple: int
    extra: int
    least: int

    def pad(self, images: Tensor) -> Tensor:
        """(B, C, H, W) with zeros right and below up to such a size."""
        height, width = (self._rounded_up(side) - side for side in images.shape[-2:])
        return F.pad(images, (0, width, 0, height)) if height or width else images

    def _rounded_up(self, side: int) -> int:
        return -(-(max(side, self.least) - self.extra) // self.multiple) * self.multiple + self.extra


def layout(backbone: Backbone) -> Layout:
    """Where the cells of a backbone's maps lie, from dry runs without data.

    A pyramid's maps lie where the body's do that they are added to. Where a network cannot be followed (attention, pooling
    over the whole map), cells are taken to lie in the middle of their pixels.
    """
    multiple, least = max(backbone.strides), getattr(backbone, "min_size", 1)
    side = -(-max(8 * multiple, least) // multiple) * multiple
    starts = _starts(backbone, side + 1)
    extra = int(starts is not None and not any(starts))
    if not extra:
        starts = _starts(backbone, side) or [Fraction(stride - 1, 2) for stride in backbone.strides]
    grids = tuple(Grid(stride, start) for stride, start in zip(backbone.strides, starts, strict=True))
    return Layout(grids, multiple, extra, least)


def _starts(backbone: Backbone, side: int) -> list[Fraction] | None:
    """The place of each map's first cell in pictures of that many pixels a side, to half pixels; None if it cannot be told."""
    pyramid = isinstance(backbone, (BackboneWithFPN, BackboneWithPAFPN))
    body = backbone.body if pyramid else backbone
    state = {name: x.detach().to("meta") for name, x in (*body.named_parameters(), *body.named_buffers())}
    image = torch.empty(1, 3, side, side, device="meta")
    counter = Counter(image, {})
    try:
        with torch.no_grad(), evaluating(body), counter:
            maps = functional_call(body, state, (image,))
    except (RuntimeError, NotImplementedError, ValueError):
        return None
    axes = [counter.sees(x).axes for x in maps]
    if any(pair is None or pair[0].stride != stride for pair, stride in zip(axes, body.strides, strict=True)):
        return None
    starts = [Fraction(round(pair[0].low[0] + pair[0].high[0]), 2) for pair in axes]
    return starts + starts[-1:] * (len(backbone.strides) - len(starts))  # levels above a pyramid pick from its last


class Upsample(nn.Module):
    """Bilinear interpolation of a coarse map at the places of a finer one's cells, or of pixels.

    It is that of `F.interpolate`, of the map with its border repeated as far as the finer one reaches.

    Args:
        channels: C.
        coarse, fine: where the cells lie.
        learned: by a transposed convolution that only starts as this.

    Raises:
        ValueError: the coarse stride is no multiple of the fine one.
    """

    def __init__(self, channels: int, coarse: Grid, fine: Grid = PIXELS, *, learned: bool = False) -> None:
        super().__init__()
        if coarse.stride % fine.stride:
            raise ValueError(
                f"no map of stride {coarse.stride} can be brought to stride {fine.stride}: it is no multiple"
            )
        self.factor = coarse.stride // fine.stride
        # The coarse map's first cell, in halves of a fine cell.
        self.halves = round(2 * (coarse.start - fine.start) / fine.stride)
        # Cells on cells, or between two of them, where those of an upsampling by an even factor usually lie.
        self.align_corners = (self.halves - (self.factor - 1)) % 2 != 0
        if self.align_corners and self.halves % 2:  # an odd factor: what is half a cell off goes to the one before
            self.halves, self.align_corners = self.halves - 1, False
        self.learned = None
        if learned:
            self.learned = BilinearUpsample(channels, self.factor, align_corners=self.align_corners)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """(B, C, h, w) to (B, C, *size)."""
        (top, bottom, first_row), (left, right, first_column) = map(self._around, x.shape[-2:], size)
        if top or bottom or left or right:
            x = F.pad(x, (left, right, top, bottom), mode="replicate")
        x = self._interpolated(x)
        return x[..., first_row : first_row + size[0], first_column : first_column + size[1]]

    def _interpolated(self, x: Tensor) -> Tensor:
        if self.learned is not None:
            return self.learned(x)
        height, width = x.shape[-2:]
        if self.align_corners:
            size = ((height - 1) * self.factor + 1, (width - 1) * self.factor + 1)
        else:
            size = (height * self.factor, width * self.factor)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=self.align_corners)

    def _around(self, cells: int, wanted: int) -> tuple[int, int, int]:
        """Cells to add before and after, and which of the fine cells that are then interpolated is the first one wanted."""
        step = 2 * self.factor
        before = max(-(-self.halves // step), 0)
        after = max(-(-(2 * (wanted - 1) - self.halves) // step) - (cells - 1), 0)
        middle = 0 if self.align_corners else self.factor - 1  # of a cell among its fine ones, in halves
        return before, after, (step * before + middle - self.halves) // 2
