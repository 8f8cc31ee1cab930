"""Segmentations as COCO writes them (https://cocodataset.org/#format-data), made into compact masks.

Polygons are lists of x0, y0, x1, y1, ... in continuous pixels; an object is the union of its polygons. Run lengths
({"size": [H, W], "counts": ...}) count pixels column by column, background first. In a string each is, from the fourth
on, the difference to the one two before it, low bits first, five to a character and a sixth that says whether more follow
(https://github.com/cocodataset/cocoapi, common/maskApi.c).

Letters: K objects of a table, N of a picture, M cells along a mask's side, H, W pixels of a picture, R runs.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from .masks import SAMPLES, coverage, from_pixels
from .run_strings import unpack_one
from .table import DataError, Table

_BITS = 8  # of a sample's fraction that OpenCV is told


class Outlines:
    """A table's segmentations in a few arrays, which worker processes share; masks are drawn when asked for.

    Raises:
        DataError: a segmentation is neither polygons nor run lengths of its picture's size.
    """

    def __init__(self, table: Table) -> None:
        self._image, self._sizes = table.image, table.sizes
        polygons, runs = [], []
        for k, segmentation in enumerate(table.segmentations or [None] * len(table.image)):
            try:
                one = _parsed(segmentation, tuple(table.sizes[table.image[k]].tolist()))
            except (TypeError, ValueError, KeyError, OverflowError) as error:
                where = f"{table.paths[table.image[k]]}, object {k - int(table.offsets[table.image[k]])} from 0"
                raise DataError(
                    f"{where}: its segmentation cannot be used ({error}); correct it, or take boxes only (masks: null)"
                ) from None
            polygons.append(one if isinstance(one, list) else [])
            runs.append(one if isinstance(one, np.ndarray) else np.zeros(0))
        self._parts = _Ragged([part for parts in polygons for part in parts], np.float32)
        self._first_part = np.cumsum([0, *map(len, polygons)])
        self._runs = _Ragged(runs, np.int32)

    def masks(self, rows: range, boxes: np.ndarray, side: int) -> np.ndarray:
        """(N, M, M) float32, the masks of the objects in these rows of the table; all of its box for one without.

        Args:
            rows: N.
            boxes: (N, 4) float32, theirs, xyxy in their picture.
            side: M.
        """
        drawn = [self._mask(k, box.astype(np.float64), side) for k, box in zip(rows, boxes, strict=True)]
        return np.stack(drawn) if drawn else np.zeros((0, side, side), np.float32)

    def _mask(self, k: int, box: np.ndarray, side: int) -> np.ndarray:
        if parts := self.parts(k):
            return draw_polygons(parts, box, side)
        if len(self.runs(k)):
            # Of the picture only the columns that the box reaches: a large one of many small objects is drawn at once.
            height, width = self._sizes[self._image[k]].tolist()
            start, stop = max(int(box[0]), 0), min(math.ceil(box[2]), width)
            edges = np.cumsum(self.runs(k)).clip(start * height, stop * height)
            columns = decode(np.diff(edges, prepend=start * height), (height, stop - start))
            return from_pixels(columns, box - (start, 0, start, 0), side)
        return np.ones((side, side), np.float32)

    def parts(self, k: int) -> list[np.ndarray]:
        """The polygons of an object, each (2 * points,) float32; none for one without, or of run lengths."""
        return [self._parts[part] for part in range(self._first_part[k], self._first_part[k + 1])]

    def runs(self, k: int) -> np.ndarray:
        """The run lengths (R,) of an object, see `decode`; none for one without, or of polygons."""
        return self._runs[k]


class _Ragged:
    """Arrays of different lengths in one block of memory."""

    def __init__(self, rows: list[np.ndarray], dtype: type) -> None:
        self._offsets = np.cumsum([0, *map(len, rows)])
        self._values = np.concatenate([np.zeros(0), *rows]).astype(dtype)

    def __getitem__(self, row: int) -> np.ndarray:
        return self._values[self._offsets[row] : self._offsets[row + 1]]


def _parsed(segmentation: Any, size: tuple[int, int]) -> list[np.ndarray] | np.ndarray:
    """Polygons, each (2 * points,), of which those with fewer than three points enclose nothing and go, or runs (R,)."""
    if isinstance(segmentation, dict):
        height, width = segmentation["size"]
        if (height, width) != size:
            raise ValueError(
                f"its run lengths are for {height}x{width} pixels (height x width), the picture has {size}"
            )
        counts = segmentation["counts"]
        runs = unpack_one(counts) if isinstance(counts, (str, bytes)) else np.array(counts, np.int64)
        if runs.ndim != 1 or (runs < 0).any() or runs.sum() != height * width:
            raise ValueError(f"its run lengths are not of {height * width} pixels")
        return runs
    parts = [np.array(part, np.float64) for part in segmentation or []]
    if any(part.ndim != 1 or len(part) % 2 or not np.isfinite(part).all() for part in parts):
        raise ValueError("a polygon is not a list of finite x0, y0, x1, y1, ...")
    return [part for part in parts if len(part) >= 6]


def draw_polygons(parts: list[np.ndarray], box: np.ndarray, side: int) -> np.ndarray:
    """The mask (M, M) float32, within a box (4,), of the union of polygons (2 * points,), in the same pixels."""
    fine = np.zeros((side * SAMPLES, side * SAMPLES), np.uint8)  # in halves
    for part in parts:
        points = (part.reshape(-1, 2) - box[:2]) / (box[2:] - box[:2]) * len(fine) - 0.5  # OpenCV's 0 is a centre
        points = [np.rint(points * 2**_BITS).clip(-(2**30), 2**30).astype(np.int32)]
        one = fine if part is parts[0] else np.zeros_like(fine)
        cv2.fillPoly(one, points, 2, shift=_BITS)
        # OpenCV fills the outline too, all around; counted half, areas of COCO's objects come out right to 1 %, not 6 %.
        cv2.polylines(one, points, True, 1, shift=_BITS)
        np.maximum(fine, one, out=fine)
    return coverage(fine, side) / 2


def decode(runs: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The picture (H, W) uint8 of 0 and 1 that runs (R,) mean; they add up to H * W."""
    return np.repeat((np.arange(len(runs)) & 1).astype(np.uint8), runs).reshape(size[::-1]).T


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Run lengths of a picture (H, W), not 0 where the object is: `decode` gives it back."""
    flat = np.concatenate([[0], (mask != 0).T.ravel(), [2]]).astype(np.int8)  # 0 first: background, if only none
    changes = np.flatnonzero(np.diff(flat))
    return {"size": list(mask.shape), "counts": np.diff(changes, prepend=0).tolist()}
