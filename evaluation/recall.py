"""How good proposals are: how much of the truth do the best of them cover, and how closely?

Recall and average recall as in Hosang et al. 2015, "What makes for effective detection proposals?"
(https://arxiv.org/abs/1502.05082), mean average best overlap as in Uijlings et al. 2013 (selective search, section 5.1). An
object is found where any proposal overlaps with it enough: a proposal may find several objects, and no pairs are formed.

Letters: K objects, C categories, P proposals of a picture, T overlaps asked for, N numbers of proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.proposals import Regions
from ..datasets.table import Table
from .coco import THRESHOLDS

NEVER = np.iinfo(np.int64).max


@dataclass(frozen=True)
class Coverage:
    """For each object, how soon a proposal covers it and how closely; all recalls follow by counting.

    Crowds and difficult objects are left out. Where there are no objects all numbers are nan.

    Attributes:
        categories: C names.
        labels: (K,) int64, the objects' categories.
        ious: (T,) float64, overlaps asked for, ascending: COCO's 0.5, 0.55 … 0.95 unless others were given.
        ranks: (T, K) int64, from 1: the place in its picture's list of the first proposal with IoU of at least `ious[t]`
            with the object; NEVER where there is none.
        overlaps: (K,) float64, the IoU of the best of all proposals.
        longest: the most proposals that a picture has.
    """

    categories: list[str]
    labels: np.ndarray
    ious: np.ndarray
    ranks: np.ndarray
    overlaps: np.ndarray
    longest: int

    def recall(self, counts: Sequence[int] | np.ndarray) -> np.ndarray:
        """(T, N) in [0, 1]: the share of objects that the best `counts[n]` proposals of each picture cover."""
        found = [np.searchsorted(np.sort(ranks), counts, side="right") for ranks in self.ranks]
        return _shares(np.array(found), len(self.labels))

    def average_recall(self, counts: Sequence[int] | np.ndarray) -> np.ndarray:
        """(N,) in [0, 1]: AR, the mean of `recall` over the T overlaps."""
        return self.recall(counts).mean(axis=0)

    def mabo(self) -> float:
        """The mean over the categories that have objects of their average best overlap, all proposals counted."""
        averages = [self.overlaps[self.labels == label].mean() for label in np.unique(self.labels)]
        return float(np.mean(averages)) if averages else float("nan")

    def per_class(self, count: int) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths, recall (at the least IoU) and AR of `count` proposals, and ABO."""
        records = []
        for label, name in enumerate(self.categories):
            rows = self.labels == label
            truths = int(rows.sum())
            recall = _shares((self.ranks[:, rows] <= count).sum(axis=1), truths)
            abo = float(self.overlaps[rows].mean()) if truths else float("nan")
            records.append(
                {"category": name, "truths": truths, "recall": float(recall[0]), "AR": float(recall.mean()), "ABO": abo}
            )
        return records


def _shares(found: np.ndarray, total: int) -> np.ndarray:
    return found / total if total else np.full(found.shape, np.nan)


def cover(regions: Regions, table: Table, *, ious: Sequence[float] | np.ndarray = THRESHOLDS) -> Coverage:
    """Looks up, object by object, the proposals of its picture.

    Args:
        regions: of the table's pictures.
        table: the truth.
        ious: (T,), ascending, each above 0 and at most 1.

    Raises:
        ValueError: the regions are of another number of pictures, or `ious` are not as said.
    """
    ious = np.asarray(ious, np.float64)
    if len(regions) != len(table):
        raise ValueError(f"regions must be those of {len(table)} pictures, got those of {len(regions)}")
    if not len(ious) or ious[0] <= 0 or ious[-1] > 1 or (np.diff(ious) <= 0).any():
        raise ValueError(f"ious must ascend, above 0 and up to 1, got {ious.tolist()}")
    objects = np.flatnonzero(~(table.crowd | table.difficult))
    ranks, overlaps = np.full((len(ious), len(objects)), NEVER), np.zeros(len(objects))
    for k, row in enumerate(objects):
        # The best so far only rises, so that the first proposal to reach each overlap is found by bisection.
        best = np.maximum.accumulate(_overlaps(table.boxes[row], regions[table.image[row]].boxes))
        first = np.searchsorted(best, ious)
        ranks[:, k] = np.where(first < len(best), first + 1, NEVER)
        overlaps[k] = best[-1] if len(best) else 0
    longest = int(np.diff(regions.offsets).max(initial=0))
    return Coverage(table.categories, table.labels[objects], ious, ranks, overlaps, longest)


def _overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """(P,) IoU of a box (4,) of some area with boxes (P, 4), in float64."""
    # Column by column, which is six times as fast as row by row; in the order of COCO's reference code.
    x0, y0, x1, y1 = boxes.T.astype(np.float64)
    left, top, right, bottom = box.tolist()
    width = np.minimum(x1, right) - np.maximum(x0, left)
    height = np.minimum(y1, bottom) - np.maximum(y0, top)
    intersection = width.clip(min=0) * height.clip(min=0)
    return intersection / ((x1 - x0) * (y1 - y0) + (right - left) * (bottom - top) - intersection)


def proposal_recall(
    regions: Regions, table: Table, counts: Sequence[int] | np.ndarray, *, iou: float = 0.5
) -> np.ndarray:
    """The share of objects that the best proposals of each picture find.

    Args:
        regions: of the table's pictures.
        table: the truth; crowds and difficult objects are left out.
        counts: N numbers of proposals a picture.
        iou: from which overlap on an object is found, above 0 and at most 1.

    Returns:
        (N,) in [0, 1]; nan where there are no objects.

    Raises:
        ValueError: the regions are of another number of pictures, or the IoU is out of range.
    """
    return cover(regions, table, ious=[iou]).recall(counts)[0]
