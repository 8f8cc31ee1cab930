"""The decoupled head of YOLOX (Ge et al. 2021, https://arxiv.org/abs/2107.08430, section 2.1), and its boxes.

Parameters bear the names of YOLOX (https://github.com/Megvii-BaseDetection/YOLOX).

Letters: B images, A points of all levels (finest first, row by row), C categories, H, W cells of one level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backbone.csp_darknet import ConvNormAct, conv3x3
from ..backbone.norms import Norm
from .boxes import full_precision

# What a new head believes of every point and category (RetinaNet, https://arxiv.org/abs/1708.02002, section 4.1): with
# one half, the many points that hold nothing would drown the first steps.
PRIOR = 0.01
# 22,000 cells: far beyond any picture, and far from where exp() leaves float32.
MAX_LOG_SIZE = 10.0


class Predictions(NamedTuple):
    """What a head says of every point.

    Attributes:
        logits: (B, A, C), of the categories.
        objectness: (B, A) logits.
        deltas: (B, A, 4): dx, dy in cells from the cell's top left corner; log width, log height in cells.
    """

    logits: Tensor
    objectness: Tensor
    deltas: Tensor


class YOLOHead(nn.Module):
    """For each level a stem, and two towers of two 3x3 convolutions: one tells the category, one the box and objectness.

    Args:
        in_channels: of the maps, finest first.
        num_classes: C.
        width: channels within.
        depthwise: of the towers' convolutions.
        norm: channels to a normalisation layer.
    """

    def __init__(
        self, in_channels: Sequence[int], num_classes: int, *, width: int, depthwise: bool = False, norm: Norm
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.stems = nn.ModuleList(ConvNormAct(channels, width, 1, norm=norm) for channels in in_channels)
        self.cls_convs = nn.ModuleList(_tower(width, depthwise, norm) for _ in in_channels)
        self.reg_convs = nn.ModuleList(_tower(width, depthwise, norm) for _ in in_channels)
        self.cls_preds = nn.ModuleList(nn.Conv2d(width, num_classes, 1) for _ in in_channels)
        self.reg_preds = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in in_channels)
        self.obj_preds = nn.ModuleList(nn.Conv2d(width, 1, 1) for _ in in_channels)
        for conv in (*self.cls_preds, *self.obj_preds):
            nn.init.constant_(conv.bias, -math.log((1 - PRIOR) / PRIOR))

    def forward(self, features: Sequence[Tensor]) -> Predictions:
        """Maps (B, channels, H, W), finest first, to float32 predictions for the points of all of them."""
        levels = [self._level(i, feature) for i, feature in enumerate(features)]
        logits, deltas, objectness = (full_precision(torch.cat(maps, dim=1)) for maps in zip(*levels, strict=True))
        return Predictions(logits, objectness.squeeze(-1), deltas)

    def _level(self, level: int, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, deltas and objectness (B, H * W, ...) of one map."""
        x = self.stems[level](feature)
        logits = self.cls_preds[level](self.cls_convs[level](x))
        x = self.reg_convs[level](x)
        return _rows(logits), _rows(self._deltas(level, x)), _rows(self.obj_preds[level](x))

    def _deltas(self, level: int, x: Tensor) -> Tensor:
        """(B, 4, H, W); not in half precision, in which the width of a large box would be good to some pixels only."""
        conv = self.reg_preds[level]
        with torch.autocast("cpu" if x.is_meta else x.device.type, enabled=False):
            return conv(x.to(conv.weight.dtype))


def _tower(width: int, depthwise: bool, norm: Norm) -> nn.Sequential:
    return nn.Sequential(*[conv3x3(width, width, depthwise, norm=norm) for _ in range(2)])


def _rows(x: Tensor) -> Tensor:
    """(B, channels, H, W) to (B, H * W, channels)."""
    return x.flatten(2).transpose(1, 2)


def points(features: Sequence[Tensor], strides: Sequence[int]) -> Tensor:
    """Where the cells of all levels lie.

    Args:
        features: maps (..., H, W), finest first.
        strides: pixels per cell of each.

    Returns:
        (A, 3) float32: x and y of the cell's top left corner and its stride, all in pixels; row by row.
    """
    return torch.cat([_level_points(feature, stride) for feature, stride in zip(features, strides, strict=True)])


def _level_points(feature: Tensor, stride: int) -> Tensor:
    y, x = (torch.arange(n, device=feature.device, dtype=torch.float32) * stride for n in feature.shape[-2:])
    y, x = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([x, y, torch.full_like(x, stride)], dim=-1).flatten(0, 1)


def decode_boxes(deltas: Tensor, points: Tensor) -> Tensor:
    """Boxes from a head's deltas.

    Args:
        deltas: (..., A, 4), as in `Predictions`; log width and height are clamped at 10.
        points: (..., A, 3), as `points` gives them.

    Returns:
        (..., A, 4) float32, xyxy in pixels, not clipped to the image: the centre is dxy * stride + xy, the size
        exp(dwh) * stride.
    """
    deltas, stride = full_precision(deltas), points[..., 2:]
    centre = points[..., :2] + deltas[..., :2] * stride
    half = 0.5 * stride * deltas[..., 2:].clamp(max=MAX_LOG_SIZE).exp()
    return torch.cat([centre - half, centre + half], dim=-1)
