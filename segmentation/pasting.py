"""Predicted masks at a picture's resolution, from compact ones within their boxes.

A mask is stretched over its box as it is, bilinearly between the centres of its cells, and read at the centres of pixels:
as `datasets.masks` reads true ones. torchvision's way rounds boxes to whole pixels, see `whole_pixels`.

Letters: N masks, M cells along a mask's side, H, W pixels of a picture, h, w of what of it a mask reaches.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = TypeVar("Array", np.ndarray, Tensor)
# Values held at a time, on a GPU, before they are compared with the threshold: 256 MB.
AT_ONCE = 2**26


def paste(masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float | None = None) -> Tensor:
    """Masks in their picture, each in a frame of its own, (N, H, W) on their device; 0 where they do not reach.

    Frames are large: what is scored or written goes through `datasets.mask_encoding.from_compact`, without them.

    Args:
        masks: (N, M, M) in [0, 1].
        boxes: (N, 4), xyxy in the picture's pixels; what sticks out of it is left out.
        size: (H, W).
        threshold: gives bool, true from this value on; None gives the values themselves, float32.
    """
    if masks.device.type != "cpu":
        return paste_everywhere(masks, boxes, size, threshold=threshold)
    # Unlike torch's, numpy's zeros cost nothing where nobody writes.
    frames = np.zeros((len(masks), *size), np.float32 if threshold is None else bool)
    for frame, (rows, columns, values) in zip(frames, _patches(masks, boxes, size), strict=True):
        frame[rows, columns] = values if threshold is None else values >= threshold
    return torch.from_numpy(frames)


def paste_everywhere(masks: Tensor, boxes: Tensor, size: tuple[int, int], *, threshold: float | None = None) -> Tensor:
    """`paste` in plain tensors, many masks and all pixels at a time: what a GPU is good at."""
    frames = masks.new_empty((len(masks), *size), dtype=torch.float32 if threshold is None else torch.bool)
    number, side = max(1, AT_ONCE // (size[0] * size[1])), masks.shape[-1]
    chunks = (values.split(number) for values in (frames, masks.float(), boxes.float()))
    for some, mask, box in zip(*chunks, strict=True):
        x0, y0, x1, y1 = box[..., None].unbind(1)
        y, x = (torch.arange(n, device=box.device, dtype=box.dtype) for n in size)
        with torch.autocast(masks.device.type, enabled=False):
            values = _shares(y, y0, y1, side) @ mask @ _shares(x, x0, x1, side).mT
        some.copy_(values if threshold is None else values >= threshold)
    return frames


def whole_pixels(masks: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Masks with a border of one empty cell, and boxes that have grown with them and been cut to whole pixels.

    `paste(*whole_pixels(masks, boxes), size)` equals torchvision's `paste_masks_in_image`, and is for comparison with it:
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


def _patches(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """The rows and columns of the pixels whose centres are in each box, and the mask's values (h, w) there."""
    side = masks.shape[-1]
    for mask, (x0, y0, x1, y1) in zip(masks.float().cpu().numpy(), boxes.float().cpu().numpy(), strict=True):
        rows, columns = _centres(y0, y1, size[0]), _centres(x0, x1, size[1])
        y, x = (np.arange(some.start, some.stop, dtype=np.float32) for some in (rows, columns))
        yield rows, columns, _shares(y, y0, y1, side) @ mask @ _shares(x, x0, x1, side).T


def _centres(low: float, high: float, pixels: int) -> slice:
    """Which of so many pixels have their centre from low to high."""
    start = min(max(math.ceil(low - 0.5), 0), pixels)
    return slice(start, min(max(math.floor(high - 0.5) + 1, start), pixels))


def _shares(at: Array, low: Array, high: Array, cells: int) -> Array:
    """Along one axis, the weight of each of a mask's cells in the pixels `at` (n,), of masks stretched from low to high.

    Of one mask (n, cells) from plain numbers, of many (N, n, cells) from (N, 1); 0 for pixels outside. All in float32.
    """
    numpy = isinstance(at, np.ndarray)
    cell = np.arange(cells, dtype=at.dtype) if numpy else torch.arange(cells, device=at.device, dtype=at.dtype)
    centre = at + 0.5
    position = ((centre - low) * (cells / (high - low).clip(min=1e-6)) - 0.5).clip(0, cells - 1)
    weights = (1 - abs(position[..., None] - cell)).clip(min=0)
    return weights * ((centre >= low) & (centre <= high))[..., None]
