"""Masks over a picture: each object's pixels tinted, and a line around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from ..datasets.mask_encoding import from_compact
from ..datasets.run_lengths import RunLengths
from ..datasets.structures import Instances

OPACITY = 0.45  # of the tint: what lies under it stays visible


def masks_of(instances: Instances, size: tuple[int, int]) -> RunLengths:
    """The masks of one image's objects in its pixels; `size` is (H, W)."""
    count = len(instances)
    masks, boxes = (tensor.detach().float().cpu().numpy() for tensor in (instances.masks, instances.boxes))
    return from_compact(masks, boxes, np.tile(np.array(size), (count, 1)))


def paint_masks(image: np.ndarray, masks: RunLengths, colours: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """A picture with masks over it, large ones first; the lines around them grow with the picture.

    Args:
        image: (H, W, 3) uint8 RGB; it is not changed.
        masks: N masks in its pixels.
        colours: N (red, green, blue), 0 to 255.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    painted = image.copy()
    line = max(1, round(math.sqrt(image.shape[0] * image.shape[1]) / 500))
    for row in np.argsort(-masks.areas, kind="stable").tolist():
        if masks.areas[row]:
            _paint(painted, masks, row, colours[row], line)
    return painted


def _paint(image: np.ndarray, masks: RunLengths, row: int, colour: tuple[int, int, int], line: int) -> None:
    x0, y0, x1, y1 = masks.boxes[row].tolist()
    mask = masks.part(row, slice(y0, y1), slice(x0, x1))
    window = image[y0:y1, x0:x1]
    tint = cv2.addWeighted(window, 1 - OPACITY, np.broadcast_to(np.uint8(colour), window.shape).copy(), OPACITY, 0)
    np.copyto(window, tint, where=mask[..., None] > 0)
    contours, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE, offset=(x0, y0))
    cv2.drawContours(image, contours, -1, colour, line, cv2.LINE_AA)
