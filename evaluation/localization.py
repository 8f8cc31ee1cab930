"""Classification and localization error: of the best answers a picture, is the class right, and is the box?

ImageNet's measures (Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575, section 4.2). An image-level label is an
object whose box is the whole picture, so one function scores classifiers and localizers. Landmarks are scored as PCK does
(Yang and Ramanan 2013, "Articulated human detection with flexible mixtures of parts", section 6.1), with the square root
of the box's area as the measure in place of its longer side.

Letters: I images, K true objects, D detections, C categories, P landmarks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..datasets.table import DataError
from .pairs import box_overlap, overlapping_pairs
from .records import Detections, Truth, check_labels

LIMITS = (1, 5)  # answers a true object
IOU = 0.5
CLOSE = 0.1  # of the square root of the box's area: PCK's threshold


@dataclass(frozen=True)
class LocalizationResult:
    """Which true objects were named and which were found.

    A picture with n true objects has its n (or 5 n) best-scored detections looked at. Crowds are no objects; where an
    answer has the right class and place for two objects, it finds both.

    Attributes:
        categories: C names.
        rows: (K,) int64, the objects' rows in the truth.
        labels: (K,) int64, the objects' categories.
        considered: (D,) bool, the n best of each picture.
        right: (D,) bool, among the 5 n best, with the class of some object and IoU of at least 0.5 with it.
        named: {limit: (K,) bool}, some detection looked at has the object's class.
        found: {limit: (K,) bool}, some detection looked at has its class and IoU of at least 0.5 with it.
        best: (K,) int64, which of the n best detections overlaps most with the object, whatever its class, or is scored
            best of those that overlap alike; -1 for none.
        overlap: (K,) float64, its IoU; 0 for none.
        answer: (K,) int64, its label; -1 for none.
        places: whether boxes are judged; a classifier's answers have none, so that what is named is found.
        distance: (K, P) float64, from its landmarks to the object's, in square roots of the box's area; NaN where the
            truth is not known, infinite where there is no answer. None where nothing was to be compared.
    """

    categories: list[str]
    rows: np.ndarray
    labels: np.ndarray
    considered: np.ndarray
    right: np.ndarray
    named: dict[int, np.ndarray]
    found: dict[int, np.ndarray]
    best: np.ndarray
    overlap: np.ndarray
    answer: np.ndarray
    places: bool = True
    distance: np.ndarray | None = None

    def summary(self) -> dict[str, float]:
        """top1_error, top5_error, localization_error, localization5_error in [0, 1], and IoU; -1 without any truth.

        Only the first two where places are not judged. With landmarks also landmark_error, their mean distance over those
        answered, and PCK, the share within 0.1.
        """
        one, five = LIMITS
        numbers = {
            "top1_error": _share(~self.named[one]),
            "top5_error": _share(~self.named[five]),
            "localization_error": _share(~self.found[one]),
            "localization5_error": _share(~self.found[five]),
            "IoU": _share(self.overlap),
        }
        if not self.places:
            return {name: numbers[name] for name in ("top1_error", "top5_error")}
        return numbers | ({} if self.distance is None else self._of_landmarks(self.distance))

    def _of_landmarks(self, distance: np.ndarray) -> dict[str, float]:
        known = distance[~np.isnan(distance)]
        return {"landmark_error": _share(known[np.isfinite(known)]), "PCK": _share(known <= CLOSE)}

    def per_class(self) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths, top1_error and, where places are judged, localization_error and IoU."""
        records, one = [], LIMITS[0]
        for label, name in enumerate(self.categories):
            rows = self.labels == label
            record = {"category": name, "truths": int(rows.sum()), "top1_error": _share(~self.named[one][rows])}
            if self.places:
                record |= {"localization_error": _share(~self.found[one][rows]), "IoU": _share(self.overlap[rows])}
            records.append(record)
        return records

    def table(self) -> str:
        """A line for each number of the summary."""
        return "\n".join(f"{name:<20}  {TITLES[name]:<46}  {value:6.3f}" for name, value in self.summary().items())

    def to_dict(self) -> dict:
        """Headline and categories, ready for json.dump."""
        return {"summary": self.summary(), "per_class": self.per_class()}


TITLES = {
    "top1_error": "class wrong, best answer",
    "top5_error": "class wrong, five answers",
    "localization_error": f"class or box (IoU {IOU}) wrong, best answer",
    "localization5_error": f"class or box (IoU {IOU}) wrong, five answers",
    "IoU": "mean IoU of the best answer's box",
    "landmark_error": "mean distance of landmarks over sqrt(box area)",
    "PCK": f"landmarks closer than {CLOSE} sqrt(box area)",
}


def evaluate_localization(
    truth: Truth, detections: Detections, categories: Sequence[str], *, places: bool = True
) -> LocalizationResult:
    """Scores the best answers in each picture.

    Args:
        truth: objects of I images; crowds do not count.
        detections: D detections in those images.
        categories: C names; labels index them.
        places: judge boxes too; False for classifiers, which only name.

    Raises:
        ValueError: a label has no category, or an image row does not exist.
        DataError: truth and detections have different numbers of landmarks.
    """
    check_labels(truth, detections, len(categories))
    rows, overlap = np.flatnonzero(~truth.crowd), box_overlap(truth, detections)
    objects_of = np.bincount(truth.image[rows], minlength=len(truth.image_ids))[detections.image]  # (D,)
    place = _places(detections)
    looked = np.flatnonzero(place < max(LIMITS) * objects_of)
    # Every answer looked at with every object of its picture.
    pairs = overlapping_pairs(
        detections.image[looked], truth.image[rows], lambda d, k: overlap(looked[d], rows[k]), at_least=0.0
    )
    answers, objects = looked[pairs.detection], pairs.truth
    within = {limit: place[answers] < limit * objects_of[answers] for limit in LIMITS}
    alike = detections.labels[answers] == truth.labels[rows[objects]]
    near = alike & (pairs.overlap >= IOU) if places else alike

    def per_object(which: np.ndarray) -> np.ndarray:
        return np.bincount(objects[which], minlength=len(rows)) > 0

    order = np.flatnonzero(within[1])
    order = order[np.lexsort((place[answers[order]], -pairs.overlap[order], objects[order]))]
    known, first = np.unique(objects[order], return_index=True)
    best, largest = np.full(len(rows), -1), np.zeros(len(rows))
    best[known], largest[known] = answers[order[first]], pairs.overlap[order[first]]
    return LocalizationResult(
        categories=list(categories),
        rows=rows,
        labels=truth.labels[rows],
        considered=place < objects_of,
        right=np.bincount(answers[near], minlength=len(detections)) > 0,
        named={limit: per_object(inside & alike) for limit, inside in within.items()},
        found={limit: per_object(inside & near) for limit, inside in within.items()},
        best=best,
        overlap=largest,
        answer=np.append(detections.labels, -1)[best],
        places=places,
        distance=_distance(truth, detections, rows, best) if places else None,
    )


def _places(detections: Detections) -> np.ndarray:
    """(D,) int64, each detection's place among those of its image, from 0, best first, equal ones as they came."""
    order = np.lexsort((-detections.scores, detections.image))
    image = detections.image[order]
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order)) - np.searchsorted(image, image)
    return place


def _distance(truth: Truth, detections: Detections, rows: np.ndarray, best: np.ndarray) -> np.ndarray | None:
    """See `LocalizationResult.distance`."""
    if truth.landmarks is None or detections.landmarks is None:
        return None
    wanted, given = truth.landmarks[rows], detections.landmarks
    if wanted.shape[1] != given.shape[1]:
        raise DataError(f"the model gives {given.shape[1]} landmarks of an object, the data have {wanted.shape[1]}")
    distance, answered = np.full(wanted.shape[:2], np.inf), best >= 0
    gap = np.linalg.norm(wanted[answered] - given[best[answered]], axis=-1)
    distance[answered] = np.nan_to_num(gap / np.sqrt(truth.box_area[rows[answered]])[:, None], nan=np.inf)
    return np.where(np.isnan(wanted).any(axis=-1), np.nan, distance)


def _share(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else -1.0
