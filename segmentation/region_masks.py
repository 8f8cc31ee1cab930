"""What regions with masks need in common: how much they overlap, and which of them are picked.

Letters: B images, K regions an image, Q picked ones, N objects, M and T cells along masks' sides.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..datasets.structures import Instances
from ..detectors.assignment import gather
from ..detectors.boxes import area
from ..detectors.nms import nms
from .mask_head import coverage


def overlap(masks: Tensor, boxes: Tensor, others: Tensor, other_boxes: Tensor) -> Tensor:
    """(...) IoU in [0, 1] of what masks (..., M, M) in boxes (..., 4) cover, and others (..., T, T) in theirs."""
    shared = (masks * coverage(others, other_boxes, boxes, masks.shape[-1])).mean((-1, -2)) * area(boxes)
    both = masks.mean((-1, -2)) * area(boxes) + others.mean((-1, -2)) * area(other_boxes)
    return shared / (both - shared).clamp(min=torch.finfo(shared.dtype).tiny)


def gather_masks(masks: Tensor, idxs: Tensor) -> Tensor:
    """Each image's masks (B, K, M, M) at idxs (B, Q): (B, Q, M, M)."""
    return gather(masks.flatten(2), idxs).unflatten(-1, masks.shape[2:])


def without_garbage(targets: Instances) -> Instances:
    """Targets with masks whose padding, otherwise undefined and perhaps NaN, is zero.

    Raises:
        ValueError: they have no masks.
    """
    if targets.masks is None:
        raise ValueError("masks are learnt from masks, and the targets have none; let the data load them (masks=28)")
    present = (targets.labels >= 0)[..., None]
    masks = torch.where(present[..., None], targets.masks, 0)
    return replace(targets, boxes=torch.where(present, targets.boxes, 0), masks=masks)


def best_regions(
    boxes: Tensor, scores: Tensor, *, iou_threshold: float, candidates: int, most: int
) -> tuple[Tensor, Instances]:
    """What a detector answers that does not move boxes: suppression category by category, and the best of what stays.

    Args:
        boxes: (B, K, 4), xyxy.
        scores: (B, K, C); those of at most 0 are no answers.
        iou_threshold: of the suppression.
        candidates: (box, category) pairs an image that enter it, best first.
        most: D.

    Returns:
        (B, D) int64, which box each detection is; and the detections (B, D), best first, as padding zero with label -1.
    """
    categories, flat = scores.shape[-1], scores.flatten(1)
    scores, idxs = flat.topk(min(candidates, flat.shape[1]), dim=1)
    region, label = idxs // categories, idxs % categories
    kept = nms(gather(boxes, region), scores > 0, iou_threshold, label)
    scores, order = torch.where(kept, scores, -1).topk(min(most, scores.shape[1]), dim=1)
    region, label, present = gather(region, order), gather(label, order), scores > 0
    found = torch.where(present[..., None], gather(boxes, region), 0)
    return region, Instances(found, torch.where(present, label, -1), scores.clamp(min=0))
