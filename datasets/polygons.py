"""Polygons to run lengths exactly as COCO's own code has it, and run lengths to polygons that give them back.

The rule (https://github.com/cocodataset/cocoapi, common/maskApi.c, rleFrPoly): corners are rounded to fifths of a pixel and
joined by lines of such points. Where a line passes from the third fifth of a column of pixels to the fourth, all pixels
of the column below are turned over. So a polygon is what lies between an odd and an even crossing of each column; here
the crossings are computed, and the points between them never are.

Letters: N polygons, V corners of all of them, S sides that cross columns, X crossings, H, W pixels of a picture.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

_SCALE = 5
_FURTHEST = 2**40  # pixels; what lies further out is as far out


def crossings(polygons: Sequence[np.ndarray], sizes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each polygon's mask begins and ends along the columns of its picture.

    Args:
        polygons: N of (2 * corners,) float64, x0, y0, x1, y1, …, in pixels, finite.
        sizes: (N, 2) int64, the pictures' (H, W).

    Returns:
        (X,) int64, the polygons that are turned over, and (X,) int64 from which pixel on, x * H + y; in no order, and
        where two meet they cancel out.
    """
    owner, points, ahead = _sides(polygons)
    parts = [_level(owner, points, ahead, sizes), _steep(owner, points, ahead, sizes)]
    owner, column, y = (np.concatenate(values) for values in zip(*parts, strict=True))
    height = sizes[owner, 0]
    row = np.ceil(((y + 0.5) / _SCALE - 0.5).clip(0, height)).astype(np.int64)
    return owner, column * height + row


def _sides(polygons: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Each side's polygon (V,) and its two ends (V, 2) (x, y), in whole fifths, in the order in which they are walked."""
    counts = np.array([len(polygon) // 2 for polygon in polygons], np.int64)
    owner = np.repeat(np.arange(len(counts)), counts)
    corners = np.concatenate([np.zeros(0), *polygons]).reshape(-1, 2).clip(-_FURTHEST, _FURTHEST)
    points = (_SCALE * corners + 0.5).astype(np.int64)  # towards zero, as C does
    following = np.arange(1, len(points) + 1)
    ends = np.cumsum(counts)
    following[ends[counts > 0] - 1] = (ends - counts)[counts > 0]
    ahead = points[following]
    run, rise = np.abs(ahead - points).T
    # Each is walked from its lower end, by the axis along which it is longer.
    flip = np.where(run >= rise, points[:, 0] > ahead[:, 0], points[:, 1] > ahead[:, 1])[:, None]
    return owner, np.where(flip, ahead, points), np.where(flip, points, ahead)


def _level(
    owner: np.ndarray, start: np.ndarray, end: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The crossings (polygon, column, y in fifths) of the sides that are at least as long in x as in y."""
    run, rise = (end - start).T
    chosen = np.flatnonzero((run >= np.abs(rise)) & (run > 0))
    side, column = _columns(chosen, start[:, 0], end[:, 0], sizes[owner, 1])
    slope = rise[side] / run[side]
    before = _SCALE * column + 2 - start[side, 0]
    y = [(start[side, 1] + slope * step + 0.5).astype(np.int64) for step in (before, before + 1)]
    return owner[side], column, np.minimum(*y)


def _steep(
    owner: np.ndarray, start: np.ndarray, end: np.ndarray, sizes: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same of the others: there x stands still for several steps in y."""
    run, rise = (end - start).T
    chosen = np.flatnonzero((rise > np.abs(run)) & (run != 0))
    left, right = np.minimum(start[:, 0], end[:, 0]), np.maximum(start[:, 0], end[:, 0])
    side, column = _columns(chosen, left, right, sizes[owner, 1])
    origin, slope = start[side, 0], run[side] / rise[side]
    # The first step at which the side is beyond the crossing, which rounding may move by one.
    border = _SCALE * column + 3
    step = np.ceil((border - 0.5 - origin) / slope).astype(np.int64)
    rising = slope > 0

    def beyond(step: np.ndarray) -> np.ndarray:
        x = (origin + slope * step + 0.5).astype(np.int64)
        return np.where(rising, x >= border, x < border)

    step = np.where(beyond(step - 1), step - 1, np.where(beyond(step), step, step + 1))
    return owner[side], column, start[side, 1] + step - 1


def _columns(
    chosen: np.ndarray, left: np.ndarray, right: np.ndarray, width: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Each crossing's side and its column of pixels: those whose third fifth and fourth lie between left and right."""
    first = np.maximum(-(-(left[chosen] - 2) // _SCALE), 0)
    stop = np.minimum((right[chosen] - 3) // _SCALE, width[chosen] - 1) + 1
    counts = np.maximum(stop - first, 0)
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    return np.repeat(chosen, counts), np.arange(total) + np.repeat(first - (ends - counts), counts)


def trace(mask: np.ndarray) -> list[list[float]]:
    """The outlines of a mask along the edges of its pixels, as COCO's polygons: drawn by its rule they give the mask back.

    A hole is joined to its outline by a line there and back, which encloses nothing.

    Args:
        mask: (H, W), not 0 where the object is.

    Returns:
        Polygons x0, y0, x1, y1, …; none where the mask is empty.
    """
    # At twice the size the outlines of pixels and the edges between them fall together, half a pixel rounded away.
    double = np.repeat(np.repeat((mask != 0).astype(np.uint8), 2, axis=0), 2, axis=1)
    contours, tree = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    loops = [_corners((contour.reshape(-1, 2).astype(np.int64) + 1) // 2) for contour in contours]
    parents = [-1] * len(loops) if tree is None else tree[0, :, 3].tolist()
    holes = {i: [] for i, parent in enumerate(parents) if parent < 0}
    for loop, parent in zip(loops, parents, strict=True):
        if parent >= 0:
            holes[parent].append(loop)
    return [_joined(loops[i], inner).ravel().astype(float).tolist() for i, inner in holes.items()]


def _joined(loop: np.ndarray, holes: Sequence[np.ndarray]) -> np.ndarray:
    """(V, 2), the outline, and from its first corner to each hole, around it and back."""
    parts = [loop]
    for hole in holes:
        parts += [loop[:1], hole, hole[:1]]
    return np.concatenate(parts)


def _corners(points: np.ndarray) -> np.ndarray:
    """A closed line's points (V, 2) without those that are repeated or lie on a straight line between their neighbours."""
    points = points[(points != np.roll(points, 1, axis=0)).any(axis=1)]
    back, forth = points - np.roll(points, 1, axis=0), np.roll(points, -1, axis=0) - points
    return points[back[:, 0] * forth[:, 1] != back[:, 1] * forth[:, 0]]
