"""COCO's average precision and recall, from columns to numbers without a loop over detections.

The numbers are those of the reference code (pycocotools 2.0, https://github.com/cocodataset/cocoapi), ties and all,
with two deviations: the headline uses the largest of `max_dets`, where the reference's AP is -1 unless that is 100; and
a truth whose annotation id is 0 counts like any other, where the reference takes it for "no match".

What makes it fast: the matching looks at overlapping pairs alone (matching.py), and so does the rest. Along a ranking
precision can only rise at a true positive, so its envelope at recall r is the maximum over the true positives from the
one that reaches r; these are found by counting, with no curve over all detections ever written.

Letters: D detections, J contenders (detections that overlap a truth), K truths, C categories, T thresholds, R recall
points, A size ranges, M limits on detections an image and category.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .accumulate import Outcomes, Ranking, curves
from .matching import match
from .pairs import Overlap, box_overlap, overlapping_pairs
from .records import Detections, Truth, check_labels

THRESHOLDS = np.linspace(0.5, 0.95, 10)
SIZES = {"all": (0.0, 1e5**2), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e5**2)}


@dataclass(frozen=True)
class CocoResult:
    """COCO's numbers; -1 wherever there was no truth to find.

    Attributes:
        categories: C names.
        max_dets: M limits, ascending; the headline numbers use the last.
        precision: (T, R, C, A, M) highest precision at each recall or above.
        recall: (T, C, A, M) highest recall reached.
        positives: (C, A) int64, truths that count.
        matched: (D,) int64, the row of the truth each detection found at IoU 0.5, all sizes; -1 for none. Truths
            that do not count (crowds) are there too.
        considered: (D,) bool, within the largest limit for its image and category; the others were dropped unseen.
        ignored: (D,) bool, neither right nor wrong at IoU 0.5: it found a crowd.
    """

    categories: list[str]
    max_dets: tuple[int, ...]
    precision: np.ndarray
    recall: np.ndarray
    positives: np.ndarray
    matched: np.ndarray
    considered: np.ndarray
    ignored: np.ndarray

    def summary(self) -> dict[str, float]:
        """AP, AP50, AP75, APs, APm, APl, one AR for each of `max_dets` (AR1, AR10, AR100), ARs, ARm, ARl."""
        areas = list(SIZES)[1:]
        precision, recall = self.precision[..., -1], self.recall
        numbers = {"AP": precision[..., 0], "AP50": precision[0, ..., 0], "AP75": precision[5, ..., 0]}
        numbers |= {f"AP{area}": precision[..., a] for a, area in enumerate(areas, 1)}
        numbers |= {f"AR{limit}": recall[..., 0, m] for m, limit in enumerate(self.max_dets)}
        numbers |= {f"AR{area}": recall[..., a, -1] for a, area in enumerate(areas, 1)}
        return {name: _mean(values) for name, values in numbers.items()}

    def per_class(self) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths, AP, AP50 and AR (at the largest limit)."""
        precision, recall = self.precision[:, :, :, 0, -1], self.recall[:, :, 0, -1]
        return [
            {
                "category": name,
                "truths": int(self.positives[c, 0]),
                "AP": _mean(precision[:, :, c]),
                "AP50": _mean(precision[0, :, c]),
                "AR": _mean(recall[:, c]),
            }
            for c, name in enumerate(self.categories)
        ]

    def table(self) -> str:
        """The well-known twelve lines."""
        most, lines = self.max_dets[-1], []
        for name, value in self.summary().items():
            kind, rest = name[:2], name[2:]
            iou = f"0.{rest}" if kind == "AP" and rest.isdigit() else "0.50:0.95"
            area = {"s": "small", "m": "medium", "l": "large"}.get(rest, "all")
            limit = rest if kind == "AR" and rest.isdigit() else most
            title = "Average precision" if kind == "AP" else "Average recall"
            lines.append(f"{title:<17}  {name:<5}  IoU {iou:<9}  area {area:<6}  max dets {limit:>4}  {value:6.3f}")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """Headline and categories, ready for json.dump."""
        return {"summary": self.summary(), "per_class": self.per_class(), "max_dets": list(self.max_dets)}

    @cached_property
    def true_positive(self) -> np.ndarray:
        """(D,) bool, found a truth that counts at IoU 0.5."""
        return (self.matched >= 0) & ~self.ignored


def _mean(values: np.ndarray) -> float:
    defined = values[values > -1]
    return float(defined.mean()) if defined.size else -1.0


def evaluate_coco(
    truth: Truth,
    detections: Detections,
    categories: Sequence[str],
    *,
    max_dets: Sequence[int] = (1, 10, 100),
    overlap: Overlap | None = None,
) -> CocoResult:
    """Scores detections as COCO does.

    Args:
        truth: K objects of I images.
        detections: D detections in those images.
        categories: C names; labels index them.
        max_dets: limits on the detections of an image and category, the best scores first. The largest is used for the
            headline.
        overlap: the overlap of given (detection rows, truth rows), over the detection's own area for crowds; by default
            that of boxes. A function on masks gives mask AP (with `detections.area` the masks').

    Raises:
        ValueError: a label has no category, an image row does not exist, or a limit is not positive.
    """
    limits = np.unique(np.asarray(max_dets, np.int64))
    if not len(limits) or limits[0] < 1:
        raise ValueError(f"max_dets must be positive, got {tuple(max_dets)}")
    check_labels(truth, detections, len(categories))
    void = ~_in_range(truth.area) | truth.crowd[:, None]
    ranking = Ranking.of(truth, detections, int(limits[-1]))
    pairs = overlapping_pairs(
        ranking.groups, ranking.truth_groups, overlap or box_overlap(truth, detections),
        at_least=THRESHOLDS[0], detection_rows=ranking.grouped,
    )  # fmt: skip
    matching = match(pairs, ranking.groups, THRESHOLDS, void=void, crowd=truth.crowd)
    positives = np.stack([np.bincount(truth.labels[~out], minlength=len(categories)) for out in void.T], axis=1)
    outcomes = Outcomes.of(detections, ranking, matching, _in_range(detections.area))
    parts = [curves(outcomes, positives, int(limit)) for limit in limits]
    precision, recall = (np.stack(part, axis=-1) for part in zip(*parts, strict=True))
    details = ranking.per_detection(len(detections), matching)
    return CocoResult(list(categories), tuple(limits.tolist()), precision, recall, positives, *details)


def _in_range(area: np.ndarray) -> np.ndarray:
    """(N, A) whether each area lies in each size range; both ends belong to it."""
    low, high = np.array(list(SIZES.values())).T
    return (area[:, None] >= low) & (area[:, None] <= high)
