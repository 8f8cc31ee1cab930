"""AP^r, the average precision of regions, as the papers of the lineage before COCO report it on Pascal VOC.

A detection is right if its mask overlaps an object's by so much, otherwise by Pascal VOC's rule (Hariharan et al., "Simultaneous
Detection and Segmentation", 2014, https://arxiv.org/abs/1407.1808, section 5.1): see `voc`. AP^r is mostly given at overlaps
of 0.5 and 0.7; AP^r_vol, the volume under the curves, is the mean over 0.1, 0.2, … 0.9.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .mask_overlap import mask_overlap
from .records import Detections, Truth
from .voc import VocResult, evaluate_voc, ordinary

OVERLAPS = tuple(k / 10 for k in range(1, 10))


@dataclass(frozen=True)
class RegionResult:
    """Pascal VOC's numbers at each of nine overlaps of masks.

    Attributes:
        by_overlap: from 0.1, 0.2, … 0.9 to the numbers.
    """

    by_overlap: dict[float, VocResult]

    @property
    def categories(self) -> list[str]:
        """C names."""
        return self.by_overlap[0.5].categories

    def summary(self) -> dict[str, float]:
        """APr50, APr70 and APr_vol, means over the categories that have truths; -1 where none has."""
        means = {overlap: result.summary()["mAP"] for overlap, result in self.by_overlap.items()}
        return {"APr50": means[0.5], "APr70": means[0.7], "APr_vol": float(np.mean(list(means.values())))}

    def per_class(self) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths, APr50, APr70 and APr_vol."""
        volumes = np.mean([result.ap for result in self.by_overlap.values()], axis=0).tolist()
        halves, sevenths = (self.by_overlap[overlap].per_class() for overlap in (0.5, 0.7))
        return [
            {"category": half["category"], "truths": half["truths"], "APr50": half["AP"], "APr70": seventh["AP"],
             "APr_vol": volume}
            for half, seventh, volume in zip(halves, sevenths, volumes, strict=True)
        ]  # fmt: skip


def evaluate_regions(
    truth: Truth, detections: Detections, categories: Sequence[str], *, eleven_point: bool = False
) -> RegionResult:
    """Scores detections by their masks as Pascal VOC scores boxes.

    Args:
        truth: K objects with masks; those marked difficult or crowd are neither to be found nor wrong to find.
        detections: D detections with masks.
        categories: C names; labels index them.
        eleven_point: the precision at recall 0, 0.1, … 1, instead of the area under the curve.

    Raises:
        ValueError: as `evaluate_voc`; also where either has no masks, or two of one image differ in the picture's size.
    """
    overlap = mask_overlap(ordinary(truth), detections, at_least=OVERLAPS[0])
    results = (
        evaluate_voc(truth, detections, categories, iou=iou, eleven_point=eleven_point, overlap=overlap)
        for iou in OVERLAPS
    )
    return RegionResult(dict(zip(OVERLAPS, results, strict=True)))
