"""Scores of label maps: pixel and mean accuracy, mean and frequency-weighted IoU (Long, Shelhamer and Darrell 2015,
https://arxiv.org/abs/1411.4038, section 5), and Boundary IoU (Cheng et al. 2021, https://arxiv.org/abs/2103.16562).

Letters: I pictures, C categories.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

IGNORED = "Void pixels are not counted."
COUNTED = (
    "Void pixels count as wrong for the category predicted there (IoU); accuracies and Boundary IoU leave them out."
)
MEANS = "Means are over the categories that the truth has."
TITLES = {
    "mean_IoU": "intersection over union, mean over categories",
    "pixel_accuracy": "share of pixels that are right",
    "mean_accuracy": "that share, mean over categories",
    "frequency_weighted_IoU": "IoU weighted by the categories' true pixels",
    "boundary_IoU": "IoU near contours, mean over categories",
}


class Areas(NamedTuple):
    """Pixels of each category, (..., C) int64: those that are right, all true ones, and all that were predicted."""

    right: np.ndarray
    true: np.ndarray
    found: np.ndarray

    def iou(self) -> np.ndarray:
        """(..., C) float64 in [0, 1], right ones as a share of true or predicted ones; NaN where none are true."""
        return np.where(self.true > 0, _share(self.right, self.true + self.found - self.right), np.nan)

    def accuracy(self) -> np.ndarray:
        """(..., C) float64 in [0, 1], right ones as a share of the true ones (recall); NaN where there are none."""
        return _share(self.right, self.true)

    def precision(self) -> np.ndarray:
        """(..., C) float64 in [0, 1], right ones as a share of those predicted; NaN where there are none."""
        return _share(self.right, self.found)


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.maximum(whole, 1), np.nan)


def areas_of(matrix: np.ndarray, *, void_is_wrong: bool = False) -> Areas:
    """The categories' areas from confusion matrices (..., C + 1, C + 1), see `SegmentationResult`."""
    cells = matrix[..., :-1, :-1]
    judged = matrix if void_is_wrong else matrix[..., :-1, :]
    return Areas(np.diagonal(cells, axis1=-2, axis2=-1), matrix[..., :-1, :].sum(-1), judged[..., :-1].sum(-2))


@dataclass(frozen=True)
class SegmentationResult:
    """What was taken for what, and the scores that follow. Shares are in [0, 1].

    A category that is not in the truth has no scores and is in no mean, though its prediction is a mistake where it stands.
    A pixel that has a truth and was given no category (-1) is a mistake for the true category and for no other.

    Attributes:
        categories: C names.
        matrix: (C + 1, C + 1) int64 pixels, rows true, columns predicted. The last row is void (what was predicted where
            there is no truth), the last column pixels that were given no category.
        pictures: (I, C), the areas in each picture, counted by the same rule for void.
        image_ids: (I,) int64, in the order of `pictures`.
        boundary: (C,), the areas near contours; None where they were not counted.
        void_is_wrong: what is predicted on void pixels is wrong for the predicted category; else it is not looked at.
    """

    categories: list[str]
    matrix: np.ndarray
    pictures: Areas
    image_ids: np.ndarray
    boundary: Areas | None = None
    void_is_wrong: bool = False

    @cached_property
    def areas(self) -> Areas:
        """(C,), the areas in all pictures together."""
        return areas_of(self.matrix, void_is_wrong=self.void_is_wrong)

    def summary(self) -> dict[str, float]:
        """mean_IoU, pixel_accuracy, mean_accuracy, frequency_weighted_IoU and, where counted, boundary_IoU.

        All are -1 where no pixel has a truth.
        """
        areas, iou = self.areas, self.areas.iou()
        known = areas.true > 0
        numbers = {
            "mean_IoU": mean_of_known(iou),
            "pixel_accuracy": self._weighted(areas.accuracy(), known),
            "mean_accuracy": mean_of_known(areas.accuracy()),
            "frequency_weighted_IoU": self._weighted(iou, known),
        }
        if self.boundary is not None:
            numbers["boundary_IoU"] = mean_of_known(self.boundary.iou())
        return {name: float(np.nan_to_num(value, nan=-1.0)) for name, value in numbers.items()}

    def _weighted(self, values: np.ndarray, known: np.ndarray) -> float:
        """The mean of (C,) over known categories, each as often as it has true pixels; NaN where none are known."""
        return float(np.average(values[known], weights=self.areas.true[known])) if known.any() else np.nan

    def per_class(self) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths (its pixels), IoU, accuracy, precision and, where counted, boundary_IoU.

        Scores are -1 where the truth has no such pixel, precision where none was predicted.
        """
        columns = {"IoU": self.areas.iou(), "accuracy": self.areas.accuracy(), "precision": self.areas.precision()}
        if self.boundary is not None:
            columns["boundary_IoU"] = self.boundary.iou()
        return [
            {"category": name, "truths": int(self.areas.true[c])}
            | {title: float(np.nan_to_num(values[c], nan=-1.0)) for title, values in columns.items()}
            for c, name in enumerate(self.categories)
        ]

    @cached_property
    def picture_iou(self) -> np.ndarray:
        """(I,) float64, the mean IoU of each picture alone, over its own categories; NaN where it has no truth."""
        return mean_of_known(self.pictures.iou())

    @cached_property
    def picture_accuracy(self) -> np.ndarray:
        """(I,) float64, the share of each picture's pixels that are right; NaN where it has no truth."""
        return _share(self.pictures.right.sum(-1), self.pictures.true.sum(-1))

    def worst(self) -> np.ndarray:
        """(I,) rows of pictures, the least mean IoU first, then the least accuracy; those without truth last."""
        return np.lexsort((self.picture_accuracy, self.picture_iou))

    def per_image(self) -> list[dict[str, float | int]]:
        """One record a picture that has a truth, the worst first: image_id, mean_IoU, pixel_accuracy."""
        return [
            {
                "image_id": int(self.image_ids[row]),
                "mean_IoU": float(self.picture_iou[row]),
                "pixel_accuracy": float(self.picture_accuracy[row]),
            }
            for row in self.worst()
            if not np.isnan(self.picture_iou[row])
        ]

    @property
    def rule(self) -> str:
        """How pixels without a truth were counted, and over what means are taken, in two sentences."""
        return f"{COUNTED if self.void_is_wrong else IGNORED} {MEANS}"

    def table(self) -> str:
        """A line for each number of the summary, and what was counted by which rule."""
        lines = [f"{name:<22}  {TITLES[name]:<46}  {value:6.3f}" for name, value in self.summary().items()]
        labelled, void = int(self.areas.true.sum()), int(self.matrix[-1, :-1].sum())
        lines.append(f"{len(self.image_ids):,} pictures, {labelled:,} pixels with a truth, {void:,} void.")
        lines.append(self.rule)
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """The summary, the rule for void, every category and every picture (the worst first), ready for json.dump."""
        rule = {"void": "wrong" if self.void_is_wrong else "ignored"}
        return {**self.summary(), **rule, "per_class": self.per_class(), "per_image": self.per_image()}


def mean_of_known(values: np.ndarray) -> np.ndarray:
    """(...) float64, the mean of (..., C) without NaN; NaN where all are."""
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(-1), known.sum(-1))
