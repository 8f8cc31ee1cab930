"""Pascal VOC's average precision, 11-point (2007) or over every point (2010 and later), at any overlap.

The rule (M. Everingham et al., "The Pascal Visual Object Classes Challenge", IJCV 2010, section 4.2, and its VOCdevkit,
VOCevaldet.m): each detection is compared with the one truth of its image and category that it overlaps most, difficult
ones included; of equal overlaps the first. If the overlap suffices, the best-scored detection of that truth is right
and later ones are wrong; all those of a difficult truth are left out. There is no second choice, unlike COCO's rule.
Crowds count as difficult.

So nothing here is sequential: the detections of a truth are known before any is judged.

Letters: D detections, K truths, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from .pairs import Overlap, box_overlap, overlapping_pairs, run_starts
from .records import Detections, Truth, check_labels


@dataclass(frozen=True)
class VocResult:
    """Pascal VOC's numbers; -1 for a category without truth.

    Attributes:
        categories: C names.
        ap: (C,) average precision.
        precision, recall: C arrays, one value for each detection that is right or wrong, by falling score.
        positives: (C,) int64, truths that count.
    """

    categories: list[str]
    ap: np.ndarray
    precision: list[np.ndarray]
    recall: list[np.ndarray]
    positives: np.ndarray

    def summary(self) -> dict[str, float]:
        """The mean over categories that have truths: {"mAP": …}."""
        defined = self.ap[self.ap > -1]
        return {"mAP": float(defined.mean()) if defined.size else -1.0}

    def per_class(self) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths and AP."""
        columns = zip(self.categories, self.positives.tolist(), self.ap.tolist(), strict=True)
        return [{"category": name, "truths": truths, "AP": ap} for name, truths, ap in columns]


def evaluate_voc(
    truth: Truth,
    detections: Detections,
    categories: Sequence[str],
    *,
    iou: float = 0.5,
    eleven_point: bool = False,
    plus_one: bool = False,
    overlap: Overlap | None = None,
) -> VocResult:
    """Scores detections as Pascal VOC does.

    Args:
        truth: K objects; those marked difficult or crowd are neither to be found nor wrong to find.
        detections: D detections; equal scores are ranked by image id and then in the order given.
        categories: C names; labels index them.
        iou: least overlap of a right detection, > 0.
        eleven_point: the mean of the precision at recall 0, 0.1, … 1 (VOC 2007), instead of the area under the curve.
        plus_one: widths are x1 - x0 + 1, as in the devkit, whose coordinates are inclusive pixel indices.
        overlap: the overlap of given (detection rows, truth rows), for crowds like for others; by default that of boxes.

    Raises:
        ValueError: iou is not in (0, 1], a label has no category, or an image row does not exist.
    """
    if not 0 < iou <= 1:
        raise ValueError(f"iou must be in (0, 1], got {iou}")
    check_labels(truth, detections, len(categories))
    order = np.lexsort((truth.image_ids[detections.image], -detections.scores, detections.labels))
    void = np.append(truth.difficult | truth.crowd, False)  # the last for detections that found nothing, -1
    # A crowd's overlap is like any other's here.
    overlap = overlap or box_overlap(ordinary(truth), detections, pixel=float(plus_one))
    found = _best_truth(truth, detections, order, iou, overlap)
    first = np.zeros(len(order), bool)
    first[np.unique(found, return_index=True)[1]] = True
    judged = ~void[found]
    hit = (found >= 0) & first

    hit, labels = hit[judged], detections.labels[order][judged]
    positives = np.bincount(truth.labels[~void[:-1]], minlength=len(categories))
    bounds = np.searchsorted(labels, np.arange(len(categories) + 1))
    precision, recall, ap = [], [], []
    for total, start, stop in zip(positives, bounds[:-1], bounds[1:], strict=True):
        right = np.cumsum(hit[start:stop])
        precision.append(right / np.arange(1, len(right) + 1))
        recall.append(right / max(total, 1))
        average = _eleven_points if eleven_point else _every_point
        ap.append(average(precision[-1], recall[-1]) if total else -1.0)
    return VocResult(list(categories), np.array(ap, float), precision, recall, positives)


def ordinary(truth: Truth) -> Truth:
    """The truth with crowds that overlap like single objects: by the union, not by the detection's own area."""
    return replace(truth, crowd=np.zeros_like(truth.crowd))


def _best_truth(truth: Truth, detections: Detections, order: np.ndarray, iou: float, overlap: Overlap) -> np.ndarray:
    """(D,) in the given order of detections: the row of the truth each overlaps most, if enough; else -1."""
    images = len(truth.image_ids)
    pairs = overlapping_pairs(
        (detections.labels * images + detections.image)[order], truth.labels * images + truth.image,
        overlap, at_least=iou, detection_rows=order,
    )  # fmt: skip
    # The first of each detection's pairs once the largest overlap stands first; ties keep the order of the truths.
    best = np.lexsort((-pairs.overlap, pairs.detection))
    best = best[run_starts(pairs.detection[best])[:-1]]
    found = np.full(len(order), -1)
    found[pairs.detection[best]] = pairs.truth[best]
    return found


def _every_point(precision: np.ndarray, recall: np.ndarray) -> float:
    """Area under the curve once precision never rises with recall."""
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float((np.diff(recall, prepend=0.0) * envelope).sum())


def _eleven_points(precision: np.ndarray, recall: np.ndarray) -> float:
    """Mean of the best precision at recall 0, 0.1, … 1 or beyond.

    In floats three of these points lie one bit above 0.3, 0.6 and 0.7, so that three of ten do not reach 0.3. The
    published numbers of the Python scorers are made so, and these are meant to stand beside them.
    """
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(recall, np.linspace(0, 1, 11))].mean())
