"""Compact masks: each object's within its own box, as a grid of M x M cells, whatever the box's size in pixels.

A cell holds the share of its area that the object covers, float32 in [0, 1]; from 0.5 on it is the object's. Boxes and
points are (x, y) in pixels, continuous.

Letters: N objects, M cells along a mask's side, H, W pixels of a picture, h, w of what a box reaches.
"""

from __future__ import annotations

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 4  # points along each side of a cell at which coverage is probed


def to_pixels(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Masks at a picture's resolution: (N, H, W) bool, true where a pixel's centre lies on the object.

    Args:
        masks: (N, M, M).
        boxes: (N, 4), xyxy; what sticks out of the picture is left out.
        size: (H, W).
    """
    out = np.zeros((len(masks), *size), bool)
    for picture, mask, box in zip(out, masks.numpy(), boxes.numpy(), strict=True):
        rows, columns = reach(box, size)
        picture[rows, columns] = pixels(mask, box, rows, columns)
    return torch.from_numpy(out)


def reach(box: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a picture (H, W) = `size` that a box (4,) touches."""
    low = np.floor(box[:2]).clip(0, size[::-1]).astype(int).tolist()
    high = np.ceil(box[2:]).clip(low, size[::-1]).astype(int).tolist()
    return slice(low[1], high[1]), slice(low[0], high[0])


def pixels(mask: np.ndarray, box: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """(h, w) bool, which pixels of these rows and columns have their centre on the object of `mask` (M, M) in `box`."""
    size = max(columns.stop - columns.start, 0), max(rows.stop - rows.start, 0)
    if 0 in size:
        return np.zeros(size[::-1], bool)
    x, y = (np.arange(s.start, s.stop, dtype=np.float32) + np.float32(0.5) for s in (columns, rows))
    x, y = (x - box[0]) / (box[2] - box[0]), (y - box[1]) / (box[3] - box[1])
    inside = ((y >= 0) & (y <= 1))[:, None] & ((x >= 0) & (x <= 1))
    grid = np.empty((2, *size[::-1]), np.float32)  # OpenCV takes no broadcast array, and numpy is slow to make one
    for cells, v in zip(grid, (x, y[:, None]), strict=True):
        cells[:] = v * mask.shape[0] - np.float32(0.5)
    values = cv2.remap(mask.astype(np.float32, copy=False), *grid, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return (values >= 0.5) & inside


def from_pixels(picture: np.ndarray, box: np.ndarray, side: int) -> np.ndarray:
    """The mask (M, M) of an object within its box.

    Args:
        picture: (H, W) uint8 or bool, not 0 where the object is.
        box: (4,), xyxy in that picture, of positive width and height.
        side: M.
    """
    at = (np.arange(side * SAMPLES) + 0.5) / (side * SAMPLES)
    columns, rows = (
        np.floor(box[k] + at * (box[k + 2] - box[k])).clip(0, picture.shape[1 - k] - 1).astype(np.int64) for k in (0, 1)
    )
    return coverage((picture[rows[:, None], columns] != 0).view(np.uint8), side)


def coverage(fine: np.ndarray, side: int) -> np.ndarray:
    """(M, M) float32, the mean in each cell of a finer grid (M * SAMPLES, M * SAMPLES) uint8."""
    return cv2.resize(fine * np.float32(1), (side, side), interpolation=cv2.INTER_AREA)


def resample(masks: Tensor, points: Tensor) -> Tensor:
    """Masks of other boxes than their own.

    Args:
        masks: (N, M, M).
        points: (N, M, M, 2), where the new cells' centres lie in the old box: (x, y), from 0 to 1 within it.

    Returns:
        (N, M, M), 0 outside the old boxes.
    """
    inside = ((points >= 0) & (points <= 1)).all(dim=-1)
    values = F.grid_sample(masks[:, None], 2 * points - 1, padding_mode="border", align_corners=False)
    return values[:, 0] * inside


def recrop(masks: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The masks (N, M, M) within boxes `new` (N, 4), of those within boxes `old`, in the same pixels."""
    points = cell_centres(new, masks.shape[-1])
    return resample(masks, (points - old[:, None, None, :2]) / (old[:, 2:] - old[:, :2])[:, None, None])


def cell_centres(boxes: Tensor, side: int) -> Tensor:
    """(N, M, M, 2), the (x, y) of the centres of the cells of boxes (N, 4)."""
    at = (torch.arange(side, device=boxes.device) + 0.5) / side
    at = torch.stack(torch.broadcast_tensors(at, at[:, None]), dim=-1)
    return boxes[:, None, None, :2] + at * (boxes[:, 2:] - boxes[:, :2])[:, None, None]
