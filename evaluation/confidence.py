"""Where to set the score threshold, and which images go wrong there; both from the matches at IoU 0.5.

A threshold only cuts the end of each ranking, and the greedy matching goes down the ranking, so the matches above
any threshold are those of the whole.

Letters: D detections, C categories, S thresholds, I images.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from .coco import CocoResult
from .records import Detections, Truth

STEPS = np.linspace(0, 1, 501)


class ConfidenceCurves(NamedTuple):
    """Precision, recall and F1 of the detections with at least each score, at IoU 0.5.

    Attributes:
        scores: (S,) ascending from 0 to 1.
        precision: (C, S); nan where no detection is left.
        recall: (C, S); nan for categories without truth.
        f1: (C, S); nan for categories without truth.
        best_score: the highest threshold at which the mean F1 over categories is best; 0 when nothing is found at any.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    best_score: float


def confidence_curves(result: CocoResult, detections: Detections) -> ConfidenceCurves:
    """Precision, recall and F1 against the score threshold.

    Args:
        result: of `evaluate_coco` on these detections.
        detections: D detections.
    """
    judged = result.considered & ~result.ignored
    right = result.true_positive
    positives = result.positives[:, :1]
    found, total = (_at_least(detections, keep, len(positives)) for keep in (right, judged))
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(total > 0, found / total, np.nan)
        recall = np.where(positives > 0, found / positives, np.nan)
        f1 = np.where(positives > 0, 2 * found / (total + positives), np.nan)
    known = (positives > 0).any(1)
    mean = f1[known].mean(0) if known.any() else np.zeros(len(STEPS))
    best = STEPS[::-1][mean[::-1].argmax()] if mean.any() else 0.0
    return ConfidenceCurves(STEPS, precision, recall, f1, float(best))


def _at_least(detections: Detections, keep: np.ndarray, num_classes: int) -> np.ndarray:
    """(C, S) how many of the kept detections of each category reach each step."""
    scores, labels = detections.scores[keep], detections.labels[keep]
    counts = np.zeros((num_classes, len(STEPS)), np.int64)
    for c in range(num_classes):
        own = np.sort(scores[labels == c])
        counts[c] = len(own) - np.searchsorted(own, STEPS.astype(own.dtype), side="left")
    return counts


class ImageErrors(NamedTuple):
    """What went wrong at one score threshold.

    Attributes:
        wrong: (D,) bool, detections that found no object (of their category, at IoU 0.5).
        missed: (K,) bool, objects not found; crowds are not missed.
        per_image: (I,) int64, wrong and missed together.
    """

    wrong: np.ndarray
    missed: np.ndarray
    per_image: np.ndarray


def image_errors(truth: Truth, detections: Detections, result: CocoResult, score: float) -> ImageErrors:
    """The mistakes among the detections with at least this score."""
    kept = result.considered & (detections.scores >= score)
    wrong = kept & (result.matched < 0)
    missed = ~truth.crowd
    missed[result.matched[kept & (result.matched >= 0)]] = False
    images = len(truth.image_ids)
    rows = np.concatenate([detections.image[wrong], truth.image[missed]])
    return ImageErrors(wrong, missed, np.bincount(rows, minlength=images))
