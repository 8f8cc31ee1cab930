"""Greedy merging of boxes: instead of keeping the best of a heap, as suppression does, the heap's mean is taken, and
boxes that many agree on come out on top (OverFeat, https://arxiv.org/abs/1312.6229, section 4.3).

Deviations: the sum of centre distance and intersection area by which the paper picks the best match, taken at its word,
would prefer boxes that do not meet; ours is a distance in units of size plus one minus the IoU. Boxes of different classes
do not merge. The mean of two is weighted by the confidence that each has gathered: the place of a merged box is the mean
over the windows that it came from, in whatever order they met.

Letters: B images, K, N, M boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .boxes import iou


def match_score(a: Tensor, b: Tensor) -> Tensor:
    """How badly boxes match, of every pair: centre distance over the diagonal of the box around both, plus 1 - IoU.

    Args:
        a: (..., N, 4).
        b: (..., M, 4).

    Returns:
        (..., N, M) in [0, 2): 0 for equal boxes, more than 1 for boxes that do not meet.
    """
    low = torch.minimum(a[..., :, None, :2], b[..., None, :, :2])
    high = torch.maximum(a[..., :, None, 2:], b[..., None, :, 2:])
    apart = (a[..., :, None, :2] + a[..., :, None, 2:] - b[..., None, :, :2] - b[..., None, :, 2:]) / 2
    return apart.norm(dim=-1) / (high - low).norm(dim=-1).clamp(min=1e-6) + 1 - iou(a, b)


def merge(boxes: Tensor, labels: Tensor, scores: Tensor, *, limit: float) -> tuple[Tensor, Tensor, Tensor]:
    """The best matching two boxes of one class become one, until none match.

    The new box is their mean, weighted by what each has gathered, and gathers the sum. Each of K - 1 rounds merges at
    most one pair of every image: no shape depends on the data.

    Args:
        boxes: (B, K, 4), xyxy.
        labels: (B, K); -1 marks padding.
        scores: (B, K), positive but for padding.
        limit: pairs of a greater `match_score` stay apart.

    Returns:
        Boxes, labels and scores of the same shapes, in no order; label -1 and score 0 where a box went into another.
        Scores keep their gradients; boxes, and what merges with what, have none.
    """
    boxes, labels, scores = boxes.detach().clone(), labels.clone(), scores.clone()
    image, number = torch.arange(len(boxes), device=boxes.device), boxes.shape[1]
    strangers = (labels[:, :, None] != labels[:, None]) | (labels < 0)[:, :, None]
    strangers |= torch.eye(number, dtype=torch.bool, device=boxes.device)
    costs = match_score(boxes, boxes).masked_fill(strangers, torch.inf)
    for _ in range(number - 1):
        cost, pair = costs.flatten(1).min(dim=1)
        kept, gone = torch.minimum(pair // number, pair % number), torch.maximum(pair // number, pair % number)
        near = cost <= limit
        mine, theirs = scores[image, kept], torch.where(near, scores[image, gone], 0)
        share = (theirs / (mine + theirs).clamp(min=1e-12)).detach()[:, None]
        merged = torch.lerp(boxes[image, kept], boxes[image, gone], share)
        boxes[image, kept], scores[image, kept] = merged, mine + theirs
        scores[image, gone] -= theirs
        labels[image, gone] = torch.where(near, -1, labels[image, gone])
        strangers[image, gone] |= near[:, None]
        strangers[image, :, gone] |= near[:, None]
        again = match_score(boxes, merged[:, None])[..., 0].masked_fill(strangers[image, kept], torch.inf)
        costs[image, kept] = costs[image, :, kept] = again
        costs.masked_fill_(strangers, torch.inf)
    return boxes, labels, torch.where(labels >= 0, scores, 0)
