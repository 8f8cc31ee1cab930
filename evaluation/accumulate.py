"""From COCO's matching to precision and recall: the sums behind `coco.py`.

Along a ranking, precision can only rise at a true positive. So its envelope at recall r is the maximum over the true
positives from the one that reaches r on: these are found by counting, and no curve over all detections is ever written.

Letters: D detections, J contenders (detections that overlap a truth), K truths, C categories, T thresholds, R recall
points, A size ranges.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .matching import Matching
from .records import Detections, Truth

RECALLS = np.linspace(0.0, 1.0, 101)


@dataclass(frozen=True)
class Ranking:
    """Two orders of the detections that are within the largest limit (D of them from here on)."""

    grouped: np.ndarray  # (D,) rows by (category, image, falling score)
    groups: np.ndarray  # (D,) the (category, image) of each, ascending
    truth_groups: np.ndarray  # (K,)
    rank: np.ndarray  # (D,) place within the group
    place: np.ndarray  # (D,) where each stands in the order of (category, falling score)

    @staticmethod
    def of(truth: Truth, detections: Detections, limit: int) -> Ranking:
        # Equal scores: by image id, then by the order given. Stable sorts of 16-bit keys are radix sorts.
        images = np.argsort(np.argsort(truth.image_ids))
        image, label = images[detections.image], detections.labels
        by_image = _stable(image)
        by_score = by_image[np.argsort(-detections.scores[by_image], kind="stable")]
        ranked = by_score[_stable(label[by_score])]
        grouped = by_score[_stable(image[by_score])]
        grouped = grouped[_stable(label[grouped])]
        groups = label[grouped] * len(images) + image[grouped]
        first = np.flatnonzero(np.diff(groups, prepend=-1))
        rank = np.arange(len(groups)) - np.repeat(first, np.diff(first, append=len(groups)))
        keep = rank < limit
        grouped, groups, rank = grouped[keep], groups[keep], rank[keep]
        kept = np.zeros(len(label), bool)
        kept[grouped] = True
        ranked = ranked[kept[ranked]]
        place = np.empty(len(label), np.int64)
        place[ranked] = np.arange(len(ranked))
        return Ranking(grouped, groups, truth.labels * len(images) + images[truth.image], rank, place[grouped])

    def per_detection(self, count: int, matching: Matching) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """By row of `count` detections: the truth matched at IoU 0.5 or -1, within the limit or not, ignored or not."""
        matched, considered, ignored = np.full(count, -1), np.zeros(count, bool), np.zeros(count, bool)
        considered[self.grouped] = True
        rows = self.grouped[matching.contenders]
        matched[rows], ignored[rows] = matching.truth, matching.ignored[:, 0, 0]
        return matched, considered, ignored


def _stable(keys: np.ndarray) -> np.ndarray:
    small = len(keys) and keys.max() < 1 << 16
    return np.argsort(keys.astype(np.uint16) if small else keys, kind="stable")


@dataclass(frozen=True)
class Outcomes:
    """The detections' outcomes in the order of (category, falling score)."""

    rank: np.ndarray  # (D,) place within image and category
    category: np.ndarray  # (D,)
    in_range: np.ndarray  # (A, D) bool, of a size that counts
    place: np.ndarray  # (J,) where each contender stands among the D, ascending
    counted: np.ndarray  # (A, T, J) bool, true positives
    change: np.ndarray  # (A, T, J) int8, what the match makes of `in_range`: +1 counts after all, -1 does not

    @staticmethod
    def of(detections: Detections, ranking: Ranking, matching: Matching, in_range: np.ndarray) -> Outcomes:
        """Args: in_range (D, A) bool, for all detections by row."""
        order = np.empty(len(ranking.place), np.int64)
        order[ranking.place] = np.arange(len(order))
        rows = ranking.grouped[order]
        contenders = np.argsort(ranking.place[matching.contenders])
        place = ranking.place[matching.contenders][contenders]
        counted, ignored = (x[contenders].transpose(2, 1, 0) for x in (matching.counted, matching.ignored))
        in_range = np.ascontiguousarray(in_range[rows].T)
        counts = in_range[:, None, place]
        # One that matched counts exactly if its truth does; one that did not, if its own size is in range.
        change = (counted & ~counts).astype(np.int8) - (ignored & counts)
        return Outcomes(ranking.rank[order], detections.labels[rows], in_range, place, counted.copy(), change)


def curves(outcomes: Outcomes, positives: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
    """Precision (T, R, C, A) and recall (T, C, A) from the `limit` best detections of each image and category.

    Args:
        outcomes: of D detections.
        positives: (C, A) truths that count; -1 is returned where there are none.
        limit: detections an image and category.
    """
    num_classes = len(positives)
    ranges, thresholds, contenders = outcomes.counted.shape
    kept = outcomes.rank < limit
    kept_contenders = kept[outcomes.place]
    # Detections that count, up to and including each, over all categories; less those before the category's first.
    sized = _running(outcomes.in_range & kept)
    changed = _running(outcomes.change * kept_contenders)
    edges = np.arange(num_classes + 1)
    starts = np.searchsorted(outcomes.category, edges)
    contender_starts = np.searchsorted(outcomes.place, starts)
    before = sized[:, None, starts] + changed[:, :, contender_starts]  # (A, T, C + 1)

    hits = np.flatnonzero(
        outcomes.counted & kept_contenders
    )  # true positives by size range, threshold, category, score
    curve, contender = np.divmod(hits, contenders) if contenders else (hits, hits)
    place = outcomes.place[contender]
    total = sized[curve // thresholds, place + 1] + changed.reshape(-1, contenders + 1)[curve, contender + 1]
    total -= before.reshape(-1, num_classes + 1)[curve, outcomes.category[place]]
    bounds = np.arange(ranges * thresholds)[:, None] * contenders + contender_starts
    bounds = np.searchsorted(hits, bounds)  # (A * T, C + 1)
    first, count = bounds[:, :-1].reshape(ranges, thresholds, -1), np.diff(bounds).reshape(ranges, thresholds, -1)
    found = np.arange(1, len(hits) + 1) - np.repeat(first.ravel(), count.ravel())
    precision = _envelope(found / (total + np.spacing(1)), first, count, _needed(positives.T)[:, None])
    recall = count / np.maximum(positives.T, 1)[:, None]
    defined = (positives > 0).T[:, None]
    precision = np.where(defined[..., None], precision, -1.0)
    return precision.transpose(1, 3, 2, 0), np.where(defined, recall, -1.0).transpose(1, 2, 0)


def _running(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, 2, … along the last axis."""
    sums = np.zeros((*values.shape[:-1], values.shape[-1] + 1), np.int32)
    np.cumsum(values, axis=-1, out=sums[..., 1:])
    return sums


def _needed(positives: np.ndarray) -> np.ndarray:
    """(..., R) the least number of true positives, at least 1, whose recall as a float reaches each recall point."""
    total = np.maximum(positives, 1)[..., None]
    count = np.ceil(RECALLS * total)
    count -= (count - 1) / total >= RECALLS
    count += count / total < RECALLS
    return np.maximum(count, 1).astype(np.int64)


def _envelope(precision: np.ndarray, first: np.ndarray, count: np.ndarray, needed: np.ndarray) -> np.ndarray:
    """(..., R) the highest precision at each recall point or beyond; 0 beyond the last true positive.

    Args:
        precision: at each true positive, curve after curve.
        first: (...) where each curve starts in `precision`.
        count: (...) its length.
        needed: (..., R) true positives at each recall point.
    """
    reached = needed <= count[..., None]
    start = first[..., None] + np.where(reached, needed - 1, count[..., None])
    # The maximum from each recall point to the next, then from each to the end.
    best = np.maximum.reduceat(np.append(precision, 0.0), start.ravel()).reshape(start.shape)
    best = np.where(reached, best, 0.0)
    return np.maximum.accumulate(best[..., ::-1], axis=-1)[..., ::-1]
