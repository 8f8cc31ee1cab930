"""Pairs of a detection and a truth that overlap enough to match: the common first step of every score here.

Letters: D detections, K truths, P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .records import Detections, Truth

# Two (P,) int64 arrays, rows of detections and rows of truths, to their overlap (P,) float64 in [0, 1].
Overlap = Callable[[np.ndarray, np.ndarray], np.ndarray]
CHUNK = 1 << 18  # pairs whose overlap is computed at once: their boxes stay in the processor's cache


class Pairs(NamedTuple):
    """Overlapping pairs, sorted by detection and then by truth, each in the order in which it was given.

    Attributes:
        detection: (P,) int64, place in the `detections` given, ascending.
        truth: (P,) int64, row of the truth.
        overlap: (P,) float64.
    """

    detection: np.ndarray
    truth: np.ndarray
    overlap: np.ndarray


def box_overlap(truth: Truth, detections: Detections, *, pixel: float = 0.0) -> Overlap:
    """Overlap of boxes: intersection over union; over the detection's own area where the truth is a crowd.

    The operations and their order are those of COCO's reference code, so that the last bit agrees.

    Args:
        truth: K true boxes.
        detections: D boxes.
        pixel: added to every width and height: 1 for Pascal VOC's inclusive pixel indices, 0 for continuous
            coordinates.
    """
    true_corners, found_corners = (np.ascontiguousarray(boxes.T) for boxes in (truth.boxes, detections.boxes))
    true_area = _area(true_corners, pixel) if pixel else truth.box_area
    found_area = _area(found_corners, pixel) if pixel else detections.area

    def overlap(found: np.ndarray, true: np.ndarray) -> np.ndarray:
        def extent(axis: int) -> np.ndarray:
            far = np.minimum(found_corners[axis + 2][found], true_corners[axis + 2][true])
            return (far - np.maximum(found_corners[axis][found], true_corners[axis][true]) + pixel).clip(min=0)

        intersection = extent(0) * extent(1)
        area = found_area[found]
        union = np.where(truth.crowd[true], area, area + true_area[true] - intersection)
        # Two empty boxes have no union and no intersection: they do not overlap.
        return np.divide(intersection, union, out=np.zeros_like(union), where=intersection > 0)

    return overlap


def _area(corners: np.ndarray, pixel: float) -> np.ndarray:
    return (corners[2] - corners[0] + pixel) * (corners[3] - corners[1] + pixel)


def overlapping_pairs(
    detection_groups: np.ndarray, truth_groups: np.ndarray, overlap: Overlap, *, at_least: float,
    detection_rows: np.ndarray | None = None,
) -> Pairs:  # fmt: skip
    """All pairs of one group whose overlap is at least so much.

    Args:
        detection_groups: (D,) int64, ascending or not: only detections and truths of the same group (say, of the same
            image and category) are compared.
        truth_groups: (K,) int64.
        overlap: the overlap of given rows.
        at_least: smallest overlap kept; 0 keeps all pairs.
        detection_rows: (D,) the rows `overlap` knows the detections by; by default 0..D-1.
    """
    truths = np.argsort(truth_groups, kind="stable")
    groups = truth_groups[truths]
    first = np.searchsorted(groups, detection_groups, side="left")
    counts = np.searchsorted(groups, detection_groups, side="right") - first
    ends = np.cumsum(counts)
    total = int(ends[-1]) if len(ends) else 0
    # Cuts between detections, so that a chunk holds about CHUNK pairs.
    cuts = np.unique([*np.searchsorted(ends, np.arange(0, total, CHUNK), side="right"), len(counts)])
    parts = [(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))]
    for start, stop in pairwise(cuts):
        found = np.repeat(np.arange(start, stop), counts[start:stop])
        true = truths[_runs(first[start:stop], counts[start:stop])]
        value = overlap(found if detection_rows is None else detection_rows[found], true)
        keep = np.flatnonzero(value >= at_least)
        parts.append((found[keep], true[keep], value[keep]))
    return Pairs(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _runs(first: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """`concatenate([arange(f, f + c) for f, c in zip(first, counts)])`, at once."""
    ends = np.cumsum(counts)
    return np.arange(ends[-1] if len(ends) else 0) + np.repeat(first - (ends - counts), counts)


def run_starts(sorted_values: np.ndarray) -> np.ndarray:
    """Where each run of equal values starts, with the length at the end: (runs + 1,)."""
    edges = np.flatnonzero(sorted_values[1:] != sorted_values[:-1]) + 1
    return np.concatenate([[0], edges, [len(sorted_values)]]) if len(sorted_values) else np.zeros(1, int)
