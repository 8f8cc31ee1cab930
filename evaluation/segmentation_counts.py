"""Pixels counted picture by picture, on the device where the label maps are and without waiting for it: exact integers
from which all scores of label maps follow.

Letters: B pictures of one shape, C categories, H, W pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

NEAR = 0.02  # of a picture's diagonal: how far from a contour Boundary IoU looks
OUTSIDE = -2  # the label of what lies around a picture: no category, and no void either


def pair_counts(truth: Tensor, found: Tensor, num_classes: int) -> Tensor:
    """How many pixels of each true category were taken for which.

    Args:
        truth, found: (B, H, W) of an integer type; any negative label is "none": void in the truth, and in a
            prediction a pixel that is given no category.
        num_classes: C.

    Returns:
        (B, (C + 1)² + 1) int64: of each picture the rows of a (C + 1, C + 1) matrix, rows true, columns predicted, "none"
        last; and behind them how many pixels have a label from C on, and are in no cell.
    """
    side = num_classes + 1
    rows, columns = (torch.where(labels < 0, num_classes, labels).int() for labels in (truth, found))
    stray = (truth >= num_classes) | (found >= num_classes)
    return _tally(torch.where(stray, side * side, rows * side + columns), side * side + 1)


def boundary_counts(truth: Tensor, found: Tensor, num_classes: int) -> Tensor:
    """How many pixels near a contour of their category there are, for Boundary IoU.

    Cheng et al. 2021 (https://arxiv.org/abs/2103.16562), equation 2, for each category: its pixels within d of its own
    contour, in the truth, in the prediction, and in both, with d = 2 % of the picture's diagonal, at least one pixel.
    As in the authors' code, distance is the larger of both axes' (they erode d times by a 3 x 3 square), and the
    picture's edge is a contour. What is predicted on void is not looked at: void is void in the prediction, too.

    Args:
        truth, found, num_classes: as for `pair_counts`.

    Returns:
        (B, 3, C) int64: pixels in both, in the truth, in the prediction.
    """
    distance = max(1, round(NEAR * math.hypot(*truth.shape[1:])))
    found = torch.where(truth < 0, -1, found)
    true_edge, found_edge = near_contour(truth, distance), near_contour(found, distance)
    parts = ((truth, true_edge & found_edge & (truth == found)), (truth, true_edge), (found, found_edge))
    counts = [_tally(_labels_where(labels, near, num_classes), num_classes + 1) for labels, near in parts]
    return torch.stack(counts, dim=1)[..., :num_classes]


def _labels_where(labels: Tensor, chosen: Tensor, num_classes: int) -> Tensor:
    """Labels at the chosen pixels; C elsewhere, and for what is no category."""
    return torch.where(chosen & (labels >= 0) & (labels < num_classes), labels, num_classes)


def near_contour(labels: Tensor, distance: int) -> Tensor:
    """(B, H, W) bool, the pixels of (B, H, W) that have another label, or the picture's edge, within `distance` pixels.

    Once for all categories: a pixel is deep inside its own where the square around it holds one label, which then is both
    the largest and the smallest.
    """
    padded = F.pad(labels, (distance,) * 4, value=OUTSIDE)
    largest, negative_smallest = (
        _largest_around(_largest_around(x, distance, 1), distance, 2) for x in (padded, -padded)
    )
    return largest != -negative_smallest


def _largest_around(values: Tensor, distance: int, dim: int) -> Tensor:
    """The largest of each 2 * distance + 1 values in a row along one dimension, which gets 2 * distance shorter.

    By doubling the row's length, so it takes few passes whatever the distance, on any device.
    """
    wanted, reached = 2 * distance + 1, 1
    while reached < wanted:
        step = min(reached, wanted - reached)
        length = values.shape[dim] - step
        values = torch.maximum(values.narrow(dim, 0, length), values.narrow(dim, step, length))
        reached += step
    return values


def _tally(codes: Tensor, count: int) -> Tensor:
    """(B, count) int64, how often each of 0..count - 1 is among a picture's codes (B, H, W).

    Not `bincount`, which waits for the GPU to learn its length. Integers are added, so their order is of no matter.
    """
    codes = codes.flatten(1).long()
    one = torch.ones((), dtype=torch.int64, device=codes.device).expand_as(codes)
    return torch.zeros(len(codes), count, dtype=torch.int64, device=codes.device).scatter_add_(1, codes, one)
