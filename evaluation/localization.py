"""Classification and localization error: of the best answers a picture, is the class right, and is the box?

ImageNet's measures (Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575, section 4.2). An image-level label is an
object whose box is the whole picture, so one function scores classifiers and localizers.

Letters: I images, K truths, D detections, C categories, P pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .pairs import box_overlap
from .records import Detections, Truth, check_labels

LIMITS = (1, 5)  # answers a true object
IOU = 0.5


@dataclass(frozen=True)
class LocalizationResult:
    """Which true objects were named and which were found.

    A picture with n true objects has its n (or 5 n) best-scored detections looked at.

    Attributes:
        categories: C names.
        labels: (K,) int64, each true object's.
        named: {limit: (K,) bool}, some detection looked at has the object's class.
        found: {limit: (K,) bool}, some detection looked at has its class and IoU of at least 0.5 with it.
        overlap: (K,) float64, largest IoU with the n best, whatever their class.
        answer: (K,) int64, the label of the n best detections that overlaps most with the object; -1 for none.
    """

    categories: list[str]
    labels: np.ndarray
    named: dict[int, np.ndarray]
    found: dict[int, np.ndarray]
    overlap: np.ndarray
    answer: np.ndarray

    def summary(self) -> dict[str, float]:
        """top1_error, top5_error, localization_error, localization5_error in [0, 1], and IoU; -1 without any truth."""
        one, five = LIMITS
        return {
            "top1_error": _share(~self.named[one]),
            "top5_error": _share(~self.named[five]),
            "localization_error": _share(~self.found[one]),
            "localization5_error": _share(~self.found[five]),
            "IoU": _share(self.overlap),
        }

    def per_class(self) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths, top1_error, localization_error and IoU."""
        records = []
        for label, name in enumerate(self.categories):
            rows, one = self.labels == label, LIMITS[0]
            records.append(
                {
                    "category": name,
                    "truths": int(rows.sum()),
                    "top1_error": _share(~self.named[one][rows]),
                    "localization_error": _share(~self.found[one][rows]),
                    "IoU": _share(self.overlap[rows]),
                }
            )
        return records

    def table(self) -> str:
        """A line for each number of the summary."""
        titles = {
            "top1_error": "class wrong, best answer",
            "top5_error": "class wrong, five answers",
            "localization_error": f"class or box (IoU {IOU}) wrong, best answer",
            "localization5_error": f"class or box (IoU {IOU}) wrong, five answers",
            "IoU": "mean IoU of the best answer's box",
        }
        return "\n".join(f"{name:<20}  {titles[name]:<46}  {value:6.3f}" for name, value in self.summary().items())

    def to_dict(self) -> dict:
        """Headline and categories, ready for json.dump."""
        return {"summary": self.summary(), "per_class": self.per_class()}


def evaluate_localization(truth: Truth, detections: Detections, categories: Sequence[str]) -> LocalizationResult:
    """Scores the best answers in each picture.

    Args:
        truth: K objects of I images; crowds do not count.
        detections: D detections in those images.
        categories: C names; labels index them.

    Raises:
        ValueError: a label has no category, or an image row does not exist.
    """
    check_labels(truth, detections, len(categories))
    kept = np.flatnonzero(~truth.crowd)
    counts = np.bincount(truth.image[kept], minlength=len(truth.image_ids))
    order = np.lexsort((-detections.scores, detections.image))
    image = detections.image[order]
    rank = np.arange(len(order)) - np.searchsorted(image, image)  # within the image, best first
    # Every answer looked at, paired with every true object of its image.
    looked = order[rank < max(LIMITS) * counts[image]]
    first = np.searchsorted(truth.image[kept], detections.image[looked])
    many = counts[detections.image[looked]]
    answers = np.repeat(looked, many)
    objects = np.arange(many.sum()) - np.repeat(np.cumsum(many) - many, many) + np.repeat(first, many)
    overlap = box_overlap(truth, detections)(answers, kept[objects])
    right = detections.labels[answers] == truth.labels[kept[objects]]
    place = np.empty(len(order), np.int64)
    place[order] = rank
    within = {limit: place[answers] < limit * counts[detections.image[answers]] for limit in LIMITS}

    def per_object(pairs: np.ndarray) -> np.ndarray:
        return np.bincount(objects[pairs], minlength=len(kept)) > 0

    best = np.flatnonzero(within[1])
    best = best[np.lexsort((place[answers[best]], -overlap[best], objects[best]))]
    heads, at = np.unique(objects[best], return_index=True)
    answer, largest = np.full(len(kept), -1), np.zeros(len(kept))
    answer[heads], largest[heads] = detections.labels[answers[best[at]]], overlap[best[at]]
    return LocalizationResult(
        list(categories),
        truth.labels[kept],
        {limit: per_object(inside & right) for limit, inside in within.items()},
        {limit: per_object(inside & right & (overlap >= IOU)) for limit, inside in within.items()},
        largest,
        answer,
    )


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else -1.0
