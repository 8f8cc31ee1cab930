"""Copy-paste: objects of one picture put on another (Ghiasi et al. 2021, https://arxiv.org/abs/2012.07177).

As there, the picture that gives is changed at random as a whole first, and a random half of its objects is put where it
then lies, with hard edges: by their masks, or else their whole boxes. The objects beneath lose what is covered.

Letters: N objects, M cells along a mask's side, H, W pixels of the frame.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import torch

from .masks import from_pixels, pixels, reach
from .perspective import LEAST_SHARE, LEAST_SIDE
from .structures import Instances, Sample
from .transforms import from_hwc, to_hwc

CHANCE = 0.5  # that an object is put on the other picture


def paste(source: Sample, ground: Sample, rng: np.random.Generator) -> Sample:
    """`ground` with random objects of `source` on it, both of one size; crowds are not taken.

    Without masks whole boxes are taken, and what else of the source's objects lies in them for the greater part.
    """
    taken = rng.random(len(source.target)) < CHANCE
    if source.target.crowd is not None:
        taken &= ~source.target.crowd.numpy()
    if not taken.any():
        return ground
    size = tuple(ground.image.shape[1:])
    cover = _cover(source.target[torch.from_numpy(taken)], size)
    if source.target.masks is None:
        taken = _covered(source.target.boxes.numpy(), cover) > 0.5
    image = to_hwc(ground.image).copy()
    cv2.copyTo(to_hwc(source.image), cover.view(np.uint8), image)
    objects = [_uncovered(ground.target, cover), source.target[torch.from_numpy(taken)]]
    return Sample(from_hwc(image), Instances.concatenate(objects), ground.info)


def _cover(instances: Instances, size: tuple[int, int]) -> np.ndarray:
    """(H, W) bool, the pixels on any of the objects."""
    cover = np.zeros(size, bool)
    for k, box in enumerate(instances.boxes.numpy()):
        if instances.masks is None:  # the pixels whose centres are inside
            x0, y0, x1, y1 = np.ceil(box - 0.5).clip(0).astype(int).tolist()
            cover[y0:y1, x0:x1] = True
        else:
            rows, columns = reach(box, size)
            cover[rows, columns] |= pixels(instances.masks[k].numpy(), box, rows, columns)
    return cover


def _covered(boxes: np.ndarray, cover: np.ndarray) -> np.ndarray:
    """(N,), the share of each box's pixels that is covered."""
    parts = [cover[reach(box, cover.shape)] for box in boxes]
    return np.array([part.mean() if part.size else 0.0 for part in parts])


def _uncovered(target: Instances, cover: np.ndarray) -> Instances:
    """Objects without what is covered of them: boxes and masks shrink where there are masks, and what is hardly seen goes."""
    share = 1 - _covered(target.boxes.numpy(), cover)
    crowd = np.zeros(len(target), bool) if target.crowd is None else target.crowd.numpy()
    if target.masks is None:
        return target[torch.from_numpy((share >= LEAST_SHARE) | (crowd & (share > 0)))]
    boxes, masks, stays = target.boxes.numpy().copy(), target.masks.numpy().copy(), np.ones(len(target), bool)
    for k in np.flatnonzero(share < 1):
        boxes[k], masks[k], left = _cut(boxes[k], masks[k], cover)
        large = (boxes[k, 2:] - boxes[k, :2] >= LEAST_SIDE).all()
        stays[k] = left > 0 if crowd[k] else left >= LEAST_SHARE and large
    return replace(target, boxes=torch.from_numpy(boxes), masks=torch.from_numpy(masks))[torch.from_numpy(stays)]


def _cut(box: np.ndarray, mask: np.ndarray, cover: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """The box (4,) and mask (M, M) of what is not covered of an object, and which share of it that is.

    A side of the box moves only where something was cut off there.
    """
    rows, columns = reach(box, cover.shape)
    whole = pixels(mask, box, rows, columns)
    rest = whole & ~cover[rows, columns]
    if not rest.any() or rest.sum() == whole.sum():
        return box, mask, float(rest.any())
    old, new = _extents(whole), _extents(rest)
    corner = np.array([columns.start, rows.start] * 2, np.float32)
    box = np.where(old == new, box, new + corner).astype(np.float32)
    return box, from_pixels(rest, box - corner, mask.shape[0]), rest.sum() / whole.sum()


def _extents(picture: np.ndarray) -> np.ndarray:
    """(4,) float32 xyxy, the tight box of a picture (h, w) bool that is not empty."""
    columns, rows = (np.flatnonzero(picture.any(axis=axis)) for axis in (0, 1))
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)
