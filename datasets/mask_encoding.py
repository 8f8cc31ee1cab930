"""Masks of every form to `RunLengths`: COCO's segmentations, pictures of ids, parts of pictures, compact masks.

Letters: N objects, E edges of all of them, H, W pixels of a picture, h, w of a part of it, M cells along a compact mask's
side.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from .masks import pixels
from .polygons import crossings
from .run_lengths import RunLengths
from .run_strings import unpack

_AT_ONCE = 1 << 12  # segmentations that are read at once: what is made of them stays in the processor's cache
_TOGETHER = 1 << 24  # pixels that are drawn before they are encoded
_Edges = tuple[np.ndarray, np.ndarray]  # (E,) the object of each, and (E,) its place


class SegmentationError(ValueError):
    """A segmentation that cannot be used.

    Attributes:
        row: which of those given.
    """

    def __init__(self, row: int, reason: str) -> None:
        super().__init__(reason)
        self.row = row


def from_coco(segmentations: Sequence[Any], sizes: np.ndarray) -> RunLengths:
    """What N of COCO's segmentations mean: lists of polygons, or run lengths, as strings or as numbers.

    Polygons are drawn exactly as COCO's own code draws them. One of fewer than three corners encloses nothing.

    Args:
        segmentations: None or an empty list is an empty mask.
        sizes: (N, 2), (H, W) of their pictures.

    Raises:
        SegmentationError: one is nothing of the kind, or is of another size than its picture.
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    parts = []
    for start in range(0, len(segmentations), _AT_ONCE):
        try:
            parts.append(_from_coco(segmentations[start : start + _AT_ONCE], sizes[start : start + _AT_ONCE]))
        except SegmentationError as error:
            raise SegmentationError(start + error.row, str(error)) from None
    return RunLengths.concatenate(parts)


def _from_coco(segmentations: Sequence[Any], sizes: np.ndarray) -> RunLengths:
    encoded = np.array([k for k, one in enumerate(segmentations) if isinstance(one, dict)], np.int64)
    drawn = [k for k, one in enumerate(segmentations) if one and not isinstance(one, dict)]
    parts = [(k, part) for k in drawn for part in polygons_of(segmentations[k], k)]
    runs = _from_runs([segmentations[k] for k in encoded], encoded, sizes)
    owner, edges = (np.concatenate(column) for column in zip(runs, _from_polygons(parts, sizes), strict=True))
    return RunLengths.from_edges(owner, edges, sizes)


def polygons_of(segmentation: Any, row: int) -> list[np.ndarray]:
    """COCO's polygons, each (2 * corners,) float64, without those that enclose nothing; raises as `from_coco`."""
    try:
        parts = [np.array(part, np.float64) for part in segmentation]
    except (TypeError, ValueError, OverflowError):
        raise SegmentationError(row, "a polygon is not a list of x0, y0, x1, y1, ...") from None
    if any(part.ndim != 1 or len(part) % 2 or not np.isfinite(part).all() for part in parts):
        raise SegmentationError(row, "a polygon is not a list of finite x0, y0, x1, y1, ...")
    return [part for part in parts if len(part) >= 6]


def _from_polygons(parts: list[tuple[int, np.ndarray]], sizes: np.ndarray) -> _Edges:
    """The edges of the unions of polygons, given with the object of each."""
    objects = np.array([k for k, _ in parts], np.int64)
    each = RunLengths.from_edges(*crossings([part for _, part in parts], sizes[objects]), sizes[objects])
    owner, ends = np.repeat(objects, np.diff(each.offsets)), np.arange(len(each.edges)) % 2
    # Along an object's pixels, how many of its polygons cover: a mask begins where that leaves 0 and ends where it is 0 again.
    stride = int(sizes.prod(axis=1).max(initial=0)) + 1
    keys = np.sort(2 * (owner * stride + each.edges) + ends, kind="stable")
    places = keys // 2
    last = np.diff(places, append=-1) != 0
    covered = np.cumsum(1 - 2 * (keys % 2))[last] > 0
    owner, edges = np.divmod(places[last], stride)
    changes = np.flatnonzero(np.diff(covered, prepend=False))
    return owner[changes], edges[changes]


def _from_runs(segmentations: list[dict], rows: np.ndarray, sizes: np.ndarray) -> _Edges:
    """The edges of run lengths, which lie in these rows; strings all at once."""
    for row, one in zip(rows.tolist(), segmentations, strict=True):
        size = one.get("size")
        if "counts" not in one or not isinstance(size, Iterable) or list(size) != sizes[row].tolist():
            raise SegmentationError(
                row,
                f"its run lengths are for {size} pixels [height, width], the picture has {sizes[row].tolist()}",
            )
    texts = [k for k, one in enumerate(segmentations) if isinstance(one["counts"], (str, bytes))]
    others = [k for k, one in enumerate(segmentations) if not isinstance(one["counts"], (str, bytes))]
    lists = [_counts(segmentations[k]["counts"], int(rows[k])) for k in others]
    packed, offsets = _unpacked([segmentations[k]["counts"] for k in texts], rows[texts])
    runs = np.concatenate([packed, *lists])
    owner = np.concatenate(
        [np.repeat(rows[texts], np.diff(offsets)), np.repeat(rows[others], [len(one) for one in lists])]
    )
    return _summed(owner, runs, sizes)


def _counts(counts: Any, row: int) -> np.ndarray:
    try:
        runs = np.array(counts, np.int64)
    except (TypeError, ValueError, OverflowError):
        raise SegmentationError(row, "its run lengths are neither a string nor whole numbers") from None
    if runs.ndim != 1 or not len(runs):
        raise SegmentationError(row, "its run lengths are neither a string nor whole numbers")
    return runs


def _unpacked(texts: list[str | bytes], rows: np.ndarray) -> _Edges:
    try:
        return unpack(texts)
    except ValueError:
        for row, text in zip(rows.tolist(), texts, strict=True):  # again, one by one, to name the culprit
            try:
                unpack([text])
            except ValueError as error:
                raise SegmentationError(row, str(error)) from None
        raise


def _summed(owner: np.ndarray, runs: np.ndarray, sizes: np.ndarray) -> _Edges:
    """From the runs of objects, background first, to edges."""
    starts = np.flatnonzero(np.diff(owner, prepend=-1))
    lengths = np.diff(np.append(starts, len(owner)))
    sums = np.cumsum(runs)
    ends = sums - np.repeat(sums[starts] - runs[starts], lengths)
    total = ends[starts + lengths - 1]
    negative = np.minimum.reduceat(runs, starts) < 0 if len(starts) else np.zeros(0, bool)
    for k in np.flatnonzero(negative | (total != sizes[owner[starts]].prod(axis=1))):
        height, width = sizes[owner[starts[k]]].tolist()
        raise SegmentationError(int(owner[starts[k]]), f"its run lengths are not of {height * width} pixels")
    # The last run ends with the picture: an edge only where it is the object's, the second, fourth, ... run.
    keep = np.ones(len(runs), bool)
    keep[(starts + lengths - 1)[lengths % 2 == 1]] = False
    return owner[keep], ends[keep]


def from_windows(windows: Sequence[np.ndarray], corners: np.ndarray, sizes: np.ndarray) -> RunLengths:
    """Masks of which only a part of the picture is given; there is nothing of them around it.

    Args:
        windows: N of (h, w), not 0 where the object is.
        corners: (N, 2), the (y, x) of each one's upper left pixel in its picture.
        sizes: (N, 2), (H, W).
    """
    corners, sizes = (np.asarray(values, np.int64).reshape(-1, 2) for values in (corners, sizes))
    shapes = np.array([window.shape for window in windows], np.int64).reshape(-1, 2)
    # All pixels, column after column, window after window; each column begins and ends in nothing.
    covered = np.concatenate([np.zeros(0, bool), *[(window != 0).T.ravel() for window in windows]])
    ends = np.cumsum(np.repeat(shapes[:, 0], shapes[:, 1]))
    border = np.zeros(len(covered) + 1, bool)
    border[0] = border[ends] = True
    begin = np.flatnonzero(covered & (border[:-1] | ~np.append(False, covered[:-1])))
    last = np.flatnonzero(covered & (border[1:] | ~np.append(covered[1:], False)))
    column = np.searchsorted(ends, begin, side="right")
    owner = np.repeat(np.arange(len(shapes)), shapes[:, 1])[column]
    x = column - (np.cumsum(shapes[:, 1]) - shapes[:, 1])[owner] + corners[owner, 1]
    place = x * sizes[owner, 0] + corners[owner, 0] + begin - (ends - np.repeat(shapes[:, 0], shapes[:, 1]))[column]
    edges = np.concatenate([place, place + last + 1 - begin])
    return RunLengths.from_edges(np.tile(owner, 2), edges, sizes)


def from_compact(masks: np.ndarray, boxes: np.ndarray, sizes: np.ndarray) -> RunLengths:
    """Masks within boxes, as `Instances` have them, at their pictures' resolution: a pixel counts by its centre.

    Args:
        masks: (N, M, M) float32; from 0.5 on a cell is the object's.
        boxes: (N, 4) float32, xyxy in their pictures; what sticks out is left out.
        sizes: (N, 2), (H, W).
    """
    sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
    parts, windows, corners, drawn = [], [], [], 0
    boxes = np.where((boxes[:, 2:] > boxes[:, :2]).all(axis=1)[:, None], boxes, 0)  # others have no pixel
    limits = sizes[:, ::-1]
    low = np.floor(boxes[:, :2]).clip(0, limits).astype(int)
    high = np.ceil(boxes[:, 2:]).clip(low, limits).astype(int)
    reaches = np.hstack([low, high]).tolist()  # as `masks.reach` has it, of all boxes at once
    for k, (mask, box, (x0, y0, x1, y1)) in enumerate(zip(masks, boxes, reaches, strict=True)):
        rows, columns = slice(y0, y1), slice(x0, x1)
        windows.append(pixels(mask, box, rows, columns))
        corners.append((rows.start, columns.start))
        drawn += windows[-1].size
        if drawn > _TOGETHER or k == len(masks) - 1:
            parts.append(from_windows(windows, np.array(corners), sizes[k + 1 - len(windows) : k + 1]))
            windows, corners, drawn = [], [], 0
    return RunLengths.concatenate(parts)


def from_ids(picture: np.ndarray) -> tuple[np.ndarray, RunLengths]:
    """The objects of a picture of ids.

    Args:
        picture: (H, W) of whole numbers, 0 where there is no object.

    Returns:
        (N,) the ids that occur, ascending, and their masks.
    """
    flat = picture.T.ravel()
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1])) if len(flat) else np.zeros(0, np.int64)
    ends = np.append(starts[1:], len(flat))[: len(starts)]
    some = flat[starts] != 0
    ids, owner = np.unique(flat[starts][some], return_inverse=True)
    sizes = np.tile(np.array(picture.shape, np.int64), (len(ids), 1))
    edges = np.concatenate([starts[some], ends[some]])
    return ids, RunLengths.from_edges(np.tile(owner.reshape(-1), 2), edges, sizes)
