"""Which category is taken for which: the confusion matrix of a detector, background included.

Letters: D detections, K truths, C categories, P pairs.
"""

from __future__ import annotations

import numpy as np

from .pairs import Pairs, box_overlap, overlapping_pairs
from .records import Detections, Truth, check_labels


def confusion_matrix(
    truth: Truth, detections: Detections, num_classes: int, *, score: float = 0.25, iou: float = 0.5
) -> np.ndarray:
    """Counts of (true category, predicted category), matched by place alone.

    Within each image the pair of truth and detection that overlaps most is matched first, whatever the categories, then
    the next among the rest. Crowds and difficult truths are not counted, nor are detections that would else be wrong
    and lie on one.

    Args:
        truth: K objects.
        detections: D detections.
        num_classes: C.
        score: detections below it are left out.
        iou: least overlap of a match, > 0.

    Returns:
        (C + 1, C + 1) int64, rows true, columns predicted; the last row is background taken for an object (false
        positives), the last column are objects missed.
    """
    check_labels(truth, detections, num_classes)
    detections = detections.select(np.flatnonzero(detections.scores >= score))
    pairs = overlapping_pairs(detections.image, truth.image, box_overlap(truth, detections), at_least=iou)
    countable = ~(truth.crowd | truth.difficult)
    on_void = np.zeros(len(detections), bool)
    on_void[pairs.detection[~countable[pairs.truth]]] = True
    found = match_by_overlap(Pairs(*(column[countable[pairs.truth]] for column in pairs)), detections.scores)

    matched = found >= 0
    missed = countable.copy()
    missed[found[matched]] = False
    matrix = np.zeros((num_classes + 1, num_classes + 1), np.int64)
    np.add.at(matrix, (truth.labels[found[matched]], detections.labels[matched]), 1)
    np.add.at(matrix, (truth.labels[missed], num_classes), 1)
    np.add.at(matrix, (num_classes, detections.labels[~matched & ~on_void]), 1)
    return matrix


def match_by_overlap(pairs: Pairs, scores: np.ndarray) -> np.ndarray:
    """One-to-one matching, the largest overlap first; of equal overlaps the better score.

    A pair that is the first choice of both its sides is matched, in every image at once, until no pair is left.

    Args:
        pairs: P pairs of D detections.
        scores: (D,).

    Returns:
        (D,) int64, the truth's row or -1.
    """
    order = np.lexsort((-scores[pairs.detection], -pairs.overlap))
    detection, truth = pairs.detection[order], pairs.truth[order]
    found = np.full(len(scores), -1)
    while len(detection):
        first_of_detection, first_of_truth = _is_first(detection), _is_first(truth)
        mutual = first_of_detection & first_of_truth
        found[detection[mutual]] = truth[mutual]
        left = ~np.isin(detection, detection[mutual]) & ~np.isin(truth, truth[mutual])
        detection, truth = detection[left], truth[left]
    return found


def _is_first(values: np.ndarray) -> np.ndarray:
    first = np.zeros(len(values), bool)
    first[np.unique(values, return_index=True)[1]] = True
    return first
