"""Compact masks: each object's within its own box, as a grid of M x M cells, whatever the box's size in pixels.

A cell holds the share of its area that the object covers, float32 in [0, 1]; from 0.5 on it is the object's. Boxes and
points are (x, y) in pixels, continuous.

Letters: N objects, M cells along a mask's side, H, W pixels of a picture, h, w of what a box reaches.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SAMPLES = 4  # points along each side of a cell at which coverage is probed
AT_ONCE = 2**26  # values held at a time, on a GPU, before they are compared with the threshold: 256 MB


def to_pixels(masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float | None = 0.5) -> Tensor:
    """Masks at a picture's resolution, each in a frame of its own, (N, H, W) on their device; 0 where they do not reach.

    Each is stretched over its box, bilinearly between the centres of its cells, and read at the centres of pixels. Frames
    are large: what is scored or written goes through `mask_encoding.from_compact`, without them.

    Args:
        masks: (N, M, M).
        boxes: (N, 4), xyxy; what sticks out of the picture is left out.
        size: (H, W).
        threshold: gives bool, true from this value on; None gives the values themselves, float32.
    """
    if masks.device.type != "cpu":
        return to_pixels_everywhere(masks, boxes, size, threshold=threshold)
    # Unlike torch's, numpy's zeros cost nothing where nobody writes.
    frames = np.zeros((len(masks), *size), np.float32 if threshold is None else bool)
    for frame, mask, box in zip(frames, masks.float().numpy(), boxes.float().numpy(), strict=True):
        rows, columns = reach(box, size)
        shown = values(mask, box, rows, columns)
        frame[rows, columns] = shown if threshold is None else shown >= threshold
    return torch.from_numpy(frames)


def to_pixels_everywhere(
    masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float | None = 0.5
) -> Tensor:
    """`to_pixels` in plain tensors, many masks and all pixels at a time: what a GPU is good at."""
    frames = masks.new_empty((len(masks), *size), dtype=torch.float32 if threshold is None else torch.bool)
    number, side = max(1, AT_ONCE // (size[0] * size[1])), masks.shape[-1]
    for some, mask, box in zip(*(one.split(number) for one in (frames, masks.float(), boxes.float())), strict=True):
        x0, y0, x1, y1 = box[..., None].unbind(1)
        with torch.autocast(masks.device.type, enabled=False):
            shown = _shares(y0, y1, size[0], side) @ mask @ _shares(x0, x1, size[1], side).mT
        some.copy_(shown if threshold is None else shown >= threshold)
    return frames


def _shares(low: Tensor, high: Tensor, pixels: int, cells: int) -> Tensor:
    """(N, pixels, cells), what each cell of masks stretched from low to high (N, 1) counts in each pixel; 0 outside."""
    cell, centre = (torch.arange(n, device=low.device, dtype=low.dtype) for n in (cells, pixels))
    centre = centre + 0.5
    place = ((centre - low) * (cells / (high - low).clamp(min=1e-6)) - 0.5).clamp(0, cells - 1)
    weights = (1 - (place[..., None] - cell).abs()).clamp(min=0)
    return weights * ((centre >= low) & (centre <= high))[..., None]


def reach(box: np.ndarray, size: tuple[int, int]) -> tuple[slice, slice]:
    """The rows and columns of a picture (H, W) = `size` that a box (4,) touches."""
    low = np.floor(box[:2]).clip(0, size[::-1]).astype(int).tolist()
    high = np.ceil(box[2:]).clip(low, size[::-1]).astype(int).tolist()
    return slice(low[1], high[1]), slice(low[0], high[0])


def pixels(mask: np.ndarray, box: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """(h, w) bool, which pixels of these rows and columns have their centre on the object of `mask` (M, M) in `box`."""
    return values(mask, box, rows, columns) >= 0.5


def values(mask: np.ndarray, box: np.ndarray, rows: slice, columns: slice) -> np.ndarray:
    """(h, w) float32, `mask` (M, M) float32 in `box` at the centres of these rows' and columns' pixels; 0 outside the box."""
    # First along x, where there are few rows yet. No product of matrices: BLAS would start threads for each mask.
    across = _stretched(mask.T, box[0], box[2], columns)
    return _stretched(np.ascontiguousarray(across.T), box[1], box[3], rows)


def _stretched(cells: np.ndarray, low: float, high: float, at: slice) -> np.ndarray:
    """(n, K): of rows (M, K) stretched from low to high what lies at the centres of the pixels `at`; 0 outside."""
    low, high = float(low), float(high)
    scale = len(cells) / max(high - low, 1e-6)
    place = np.arange(at.start, at.stop, dtype=np.float32)
    place += 0.5 - low
    place *= scale
    place -= 0.5
    np.maximum(place, 0, out=place)
    before = place.astype(np.intp)
    place -= before
    lower = cells.take(before, axis=0, mode="clip")  # behind the last row's middle that row goes on
    found = cells.take(before + 1, axis=0, mode="clip")
    found -= lower
    found *= place[:, None]
    found += lower
    found[: max(math.ceil(low - 0.5) - at.start, 0)] = 0
    found[max(math.floor(high + 0.5) - at.start, 0) :] = 0
    return found


def whole_pixels(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Masks with a border of one empty cell, and boxes that have grown with them and been cut to whole pixels.

    `to_pixels(*whole_pixels(masks, boxes), size)` equals torchvision's `paste_masks_in_image`, and is for comparison with it:
    small objects change by it.

    Args:
        masks: (N, M, M).
        boxes: (N, 4), xyxy in pixels.

    Returns:
        (N, M + 2, M + 2) and (N, 4).
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    half, centre = (high - low) * 0.5 * ((masks.shape[-1] + 2) / masks.shape[-1]), (low + high) * 0.5
    low, high = (centre - half).trunc(), (centre + half).trunc() + 1
    return F.pad(masks, (1, 1, 1, 1)), torch.cat([low, torch.maximum(high, low + 1)], dim=1)


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
    return torch.where(inside, values[:, 0], 0)  # not a product: of boxes without area the points are no numbers


def recrop(masks: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """The masks (N, M, M) within boxes `new` (N, 4), of those within boxes `old`, in the same pixels."""
    points = cell_centres(new, masks.shape[-1])
    return resample(masks, (points - old[:, None, None, :2]) / (old[:, 2:] - old[:, :2])[:, None, None])


def cell_centres(boxes: Tensor, side: int) -> Tensor:
    """(N, M, M, 2), the (x, y) of the centres of the cells of boxes (N, 4)."""
    at = (torch.arange(side, device=boxes.device) + 0.5) / side
    at = torch.stack(torch.broadcast_tensors(at, at[:, None]), dim=-1)
    return boxes[:, None, None, :2] + at * (boxes[:, 2:] - boxes[:, :2])[:, None, None]
