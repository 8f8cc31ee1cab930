"""Greedy non-maximum suppression of many groups at once, with results of fixed shape, and the best of what it leaves.

Letters: G groups (an image, or one pyramid level of an image), K boxes a group, B images.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.structures import Instances
from .assignment import gather
from .boxes import area

# Boxes resolved together on the plain path: the IoU held at a time is that of BLOCK boxes with those left of their group.
BLOCK = 256


def nms(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None = None) -> Tensor:
    """Which boxes survive: each that overlaps no better surviving box of its label by more than the threshold.

    On CUDA two Triton kernels do it without waiting for the device (`nms_triton`); elsewhere the plain version below,
    which is their test. Both equal `torchvision.ops.nms` group by group.

    Args:
        boxes: (G, K, 4), xyxy, best first.
        valid: (G, K) bool; the others neither survive nor suppress.
        iou_threshold: in [0, 1].
        labels: (G, K) int64; boxes of different labels leave each other alone. None: all are of one label.

    Returns:
        (G, K) bool.
    """
    return _nms(boxes.detach(), valid, iou_threshold, labels)


def best(boxes: Tensor, scores: Tensor, labels: Tensor, kept: Tensor, most: int) -> Instances:
    """What a detector answers: of each image the best boxes among those that were kept.

    Args:
        boxes: (B, K, 4), xyxy.
        scores: (B, K).
        labels: (B, K) int64.
        kept: (B, K) bool, e.g. the survivors of `nms`; those of score 0 are no answers either.
        most: how many an image gets at most.

    Returns:
        Instances of (B, min(most, K)), best first; as padding boxes and scores are 0, labels -1.
    """
    scores, order = torch.where(kept, scores, -1).topk(min(most, scores.shape[1]), dim=1)
    found = scores > 0
    return Instances(
        torch.where(found[..., None], gather(boxes, order), 0),
        torch.where(found, labels.gather(1, order), -1),
        scores.clamp(min=0),
    )


# One operator to torch.compile and torch.export, which cannot look into the plain version: how often it repeats depends on
# the boxes.
@torch.library.custom_op(
    "sightline::nms",
    mutates_args=(),
    schema="(Tensor boxes, Tensor valid, float iou_threshold, Tensor? labels) -> Tensor",
)
def _nms(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None) -> Tensor:
    if boxes.is_cuda and (kernel := _kernel()) is not None:
        with torch.cuda.device(boxes.device):  # Triton launches on the current GPU, whichever the boxes lie on
            return kernel(boxes, valid, iou_threshold, labels)
    return nms_plain(boxes, valid, iou_threshold, labels)


@_nms.register_fake
def _(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None) -> Tensor:
    return torch.empty_like(valid)


@functools.cache
def _kernel() -> Callable[[Tensor, Tensor, float, Tensor | None], Tensor] | None:
    """The Triton version, or None where Triton is absent (it comes with PyTorch's CUDA packages on Linux)."""
    try:
        from .nms_triton import nms_triton
    except ImportError:
        return None
    return nms_triton


def nms_plain(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None = None) -> Tensor:
    """`nms` in plain PyTorch: all boxes that may overlap in one row, one segment (a group's boxes of a label) after another.

    Its shapes and the number of its steps depend on the boxes, so on a GPU it waits for the device again and again.
    """
    group, place = valid.nonzero(as_tuple=True)
    segment = group
    if labels is not None:
        order = labels[group, place].argsort(stable=True)
        order = order[group[order].argsort(stable=True)]
        group, place = group[order], place[order]
        segment = F.pad((torch.stack([group, labels[group, place]]).diff() != 0).any(dim=0).cumsum(0), (1, 0))
        segment = segment[: len(group)]  # of no boxes there is none
    kept = torch.zeros_like(valid)
    kept[group, place] = _walk(boxes[group, place], segment, iou_threshold)
    return kept


def _walk(boxes: Tensor, segment: Tensor, iou_threshold: float) -> Tensor:
    """Survivors (n,) of boxes (n, 4), segment (n,) after segment: the next few find theirs, these strike out the rest."""
    coordinates = boxes.T.contiguous()  # each in one piece, over which a CPU computes several times as fast
    alive = torch.ones_like(segment, dtype=torch.bool)
    ends = torch.searchsorted(segment, segment, right=True).tolist()  # where each box's segment does
    segment = segment.float()  # as answers below are 0.0 or 1.0: a CPU computes with bool only one by one

    def overlapping(a: Tensor, b: Tensor) -> Tensor:
        over = _iou(coordinates[:, a], coordinates[:, b]).gt_(iou_threshold)
        return over if one_segment else over.mul_((segment[a, None] - segment[b]).eq_(0))

    start = 0
    while start < len(ends):
        rows = start + alive[start : start + 8 * BLOCK].nonzero()[:BLOCK, 0]
        if len(rows) == 0:
            start += 8 * BLOCK
            continue
        first, last = rows[[0, -1]].tolist()
        start, end, one_segment = last + 1, ends[last], ends[first] == ends[last]
        kept = _survivors(overlapping(rows, rows).triu_(diagonal=1))
        alive[rows] = kept
        rest = start + alive[start:end].nonzero()[:, 0]
        if len(rest) > 0:
            alive[rest] = overlapping(rows[kept], rest).amax(dim=0) == 0
    return alive


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """`boxes.iou`, to the bit, of boxes (4, n) and (4, m): (n, m). In place and both sides at a time: a third of the work."""
    side = torch.minimum(a[2:, :, None], b[2:, None]).sub_(torch.maximum(a[:2, :, None], b[:2, None])).clamp_(min=0)
    common = side[0].mul_(side[1])
    union = (area(a.T)[:, None] + area(b.T)).sub_(common)
    return common.div_(union.clamp_(min=torch.finfo(union.dtype).tiny))


def _survivors(overlapping: Tensor) -> Tensor:
    """(b,) bool, given which earlier box overlaps which later one: (b, b), 0 or 1.

    Repeats "overlapped by no survivor" until it holds still: box i is right after at most i rounds, in practice after a few.
    """
    kept = torch.ones_like(overlapping[0])
    while True:
        again = (kept @ overlapping).eq_(0)
        if torch.equal(again, kept):
            return kept > 0
        kept = again
