"""Box geometry: IoU, GIoU, encoding and decoding of offsets, clipping. Every box is xyxy in pixels, continuous (no +1).

Letters: N, M boxes; ... any leading dimensions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# exp() of a larger offset would make boxes more than 1000 / 16 times their anchor: the R-CNN code's traditional bound.
MAX_LOG_SCALE = math.log(1000.0 / 16)


def full_precision(values: Tensor) -> Tensor:
    """float32 from half precision, in which coordinates beyond 256 are no longer whole pixels; others as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def area(boxes: Tensor) -> Tensor:
    """(..., N) areas in square pixels of (..., N, 4) boxes; zero for boxes of no width or height."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def intersection(a: Tensor, b: Tensor) -> Tensor:
    """(..., N, M) areas common to each of (..., N, 4) and each of (..., M, 4) boxes."""
    width = torch.minimum(a[..., :, None, 2], b[..., None, :, 2]) - torch.maximum(
        a[..., :, None, 0], b[..., None, :, 0]
    )
    height = torch.minimum(a[..., :, None, 3], b[..., None, :, 3]) - torch.maximum(
        a[..., :, None, 1], b[..., None, :, 1]
    )
    return width.clamp(min=0) * height.clamp(min=0)


def iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every pair.

    Args:
        a: (..., N, 4).
        b: (..., M, 4), with leading dimensions that broadcast with those of `a`.

    Returns:
        (..., N, M) in [0, 1]; 0 where both boxes are empty.
    """
    common = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - common
    return common / union.clamp(min=torch.finfo(common.dtype).tiny)  # of empty boxes the gradient, too, is a number


def giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of every pair (Rezatofighi et al. 2019, https://arxiv.org/abs/1902.09630, algorithm 1).

    Args and shapes as `iou`; values in (-1, 1]. `giou(a, a) == 1` for boxes of positive area.
    """
    common = intersection(a, b)
    union = area(a)[..., :, None] + area(b)[..., None, :] - common
    low = torch.minimum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.maximum(a[..., :, None, 2:], b[..., None, :, 2:])
    hull = (high - low).clamp(min=0).prod(dim=-1)
    tiny = torch.finfo(common.dtype).tiny
    return common / union.clamp(min=tiny) - (hull - union) / hull.clamp(min=tiny)


def encode(boxes: Tensor, anchors: Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """Offsets from anchors to boxes (R-CNN, https://arxiv.org/abs/1311.2524, appendix C, eq. 6 to 9).

    Args:
        boxes: (..., 4), xyxy of positive width and height.
        anchors: (..., 4), likewise.
        weights: what (dx, dy, dw, dh) are multiplied with; Fast R-CNN uses (10, 10, 5, 5), one over the usual deviations.

    Returns:
        (..., 4): (dx, dy, dw, dh), dx and dy in anchor widths and heights, dw and dh in log scale.
    """
    x, y, width, height = _centres(boxes)
    anchor_x, anchor_y, anchor_width, anchor_height = _centres(anchors)
    return torch.stack(
        [
            weights[0] * (x - anchor_x) / anchor_width,
            weights[1] * (y - anchor_y) / anchor_height,
            weights[2] * torch.log(width / anchor_width),
            weights[3] * torch.log(height / anchor_height),
        ],
        dim=-1,
    )


def decode(
    deltas: Tensor, anchors: Tensor, weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
) -> Tensor:
    """Boxes from offsets: the inverse of `encode`.

    Args:
        deltas: (..., 4), as `encode` returns; dw and dh are clamped at log(1000 / 16).
        anchors: (..., 4), xyxy.
        weights: those given to `encode`.

    Returns:
        (..., 4), xyxy in pixels, not clipped to the image. `decode(encode(b, a, w), a, w) == b` up to rounding.
    """
    anchor_x, anchor_y, anchor_width, anchor_height = _centres(anchors)
    x = deltas[..., 0] / weights[0] * anchor_width + anchor_x
    y = deltas[..., 1] / weights[1] * anchor_height + anchor_y
    half_width = 0.5 * anchor_width * torch.exp((deltas[..., 2] / weights[2]).clamp(max=MAX_LOG_SCALE))
    half_height = 0.5 * anchor_height * torch.exp((deltas[..., 3] / weights[3]).clamp(max=MAX_LOG_SCALE))
    return torch.stack([x - half_width, y - half_height, x + half_width, y + half_height], dim=-1)


def _centres(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    width, height = boxes[..., 2] - boxes[..., 0], boxes[..., 3] - boxes[..., 1]
    return boxes[..., 0] + 0.5 * width, boxes[..., 1] + 0.5 * height, width, height


def clip(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes cut off at their image's border.

    Args:
        boxes: (B, ..., 4), xyxy.
        sizes: (B, 2), (height, width) of each image.
    """
    limits = sizes.flip(-1).repeat(1, 2).to(boxes.dtype)  # (B, 4): width, height, width, height
    return torch.minimum(boxes.clamp(min=0), limits.view(-1, *[1] * (boxes.ndim - 2), 4))
