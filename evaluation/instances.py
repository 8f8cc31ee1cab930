"""Scores of objects with masks: COCO's average precision by masks, beside that by boxes.

The reference code (pycocotools 2.0, https://github.com/cocodataset/cocoapi) sizes a detection by its box where its record
has one, and by its mask only where it has none; here it is the mask, as COCO's own server has it.

Letters: D detections, K truths, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..datasets.run_lengths import RunLengths
from .coco import THRESHOLDS, CocoResult, evaluate_coco
from .mask_overlap import mask_overlap
from .records import Detections, Truth


@dataclass(frozen=True)
class InstanceResult:
    """COCO's numbers twice.

    Attributes:
        boxes: by the overlap of boxes.
        masks: by the overlap of masks.
    """

    boxes: CocoResult
    masks: CocoResult

    @property
    def categories(self) -> list[str]:
        """C names."""
        return self.masks.categories

    def summary(self) -> dict[str, float]:
        """AP, AP50, … of boxes, see `CocoResult.summary`; then mask_AP, mask_AP50, … of masks."""
        masks = {f"mask_{name}": value for name, value in self.masks.summary().items()}
        return self.boxes.summary() | masks

    def per_class(self) -> list[dict[str, str | float | int]]:
        """One record a category: category, truths, AP, AP50 and AR of boxes, mask_AP, mask_AP50 and mask_AR."""
        names = ("AP", "AP50", "AR")
        columns = zip(self.boxes.per_class(), self.masks.per_class(), strict=True)
        return [box | {f"mask_{name}": mask[name] for name in names} for box, mask in columns]

    def table(self) -> str:
        """The well-known twelve lines, of boxes and then of masks."""
        return f"Boxes\n{self.boxes.table()}\n\nMasks\n{self.masks.table()}"

    def to_dict(self) -> dict:
        """Headline and categories, ready for json.dump."""
        return {"summary": self.summary(), "per_class": self.per_class(), "max_dets": list(self.masks.max_dets)}


def evaluate_instances(
    truth: Truth, detections: Detections, categories: Sequence[str], *, max_dets: Sequence[int] = (1, 10, 100)
) -> InstanceResult:
    """Scores detections by their boxes and by their masks; arguments and errors as of `evaluate_masks`."""
    boxes = evaluate_coco(truth, detections, categories, max_dets=max_dets)
    return InstanceResult(boxes, evaluate_masks(truth, detections, categories, max_dets=max_dets))


def evaluate_masks(
    truth: Truth, detections: Detections, categories: Sequence[str], *, max_dets: Sequence[int] = (1, 10, 100)
) -> CocoResult:
    """Scores detections by their masks as COCO does.

    Args:
        truth: K objects with masks; `area` says their size.
        detections: D detections with masks, whose own areas say their sizes.
        categories: C names; labels index them.
        max_dets: see `evaluate_coco`.

    Raises:
        ValueError: as `evaluate_coco`; also where either has no masks, or two of one image differ in the picture's size.
    """
    if detections.masks is None and not len(detections):
        detections = replace(detections, masks=RunLengths.concatenate([]))
    overlap = mask_overlap(truth, detections, at_least=float(THRESHOLDS[0]))
    sized = replace(detections, area=detections.masks.areas)
    return evaluate_coco(truth, sized, categories, max_dets=max_dets, overlap=overlap)
