"""Greedy non-maximum suppression of many groups at once, with results of fixed shape, and the best of what it leaves.

Letters: G groups (an image, or one pyramid level of an image), K boxes a group, B images.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from ..datasets.structures import Instances
from .assignment import gather
from .boxes import iou

# Boxes resolved together on the plain path: the IoU held at a time is G x BLOCK x K.
BLOCK = 128


def nms(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None = None) -> Tensor:
    """Which boxes survive: each that overlaps no better surviving box of its label by more than the threshold.

    On CUDA one Triton kernel does it without waiting for the device (`nms_triton`); elsewhere the plain version below,
    which is the kernel's test. Both equal `torchvision.ops.nms` group by group.

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
def _kernel():
    """The Triton version, or None where Triton is absent (it comes with PyTorch's CUDA packages on Linux)."""
    try:
        from .nms_triton import nms_triton
    except ImportError:
        return None
    return nms_triton


def nms_plain(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None = None) -> Tensor:
    """`nms` in plain PyTorch: block by block, a block's survivors are found, then strike out what follows."""
    alive = valid.clone()
    number = boxes.shape[1]
    for start in range(0, number, BLOCK):
        end = min(start + BLOCK, number)
        overlapping = iou(boxes[:, start:end], boxes[:, start:]) > iou_threshold  # (G, block, rest)
        if labels is not None:
            overlapping &= labels[:, start:end, None] == labels[:, None, start:]
        kept = _survivors(alive[:, start:end], overlapping[..., : end - start].triu(diagonal=1))
        alive[:, start:end] = kept
        alive[:, end:] &= ~(overlapping[..., end - start :] & kept[..., None]).any(dim=1)
    return alive


def _survivors(alive: Tensor, overlapping: Tensor) -> Tensor:
    """Survivors within a block (G, b), given which earlier box overlaps which later one (G, b, b).

    Repeats "alive, and overlapped by no survivor" until it holds still: box i is right after at most i rounds, in practice
    after a few. The comparison is a synchronisation on a GPU; CUDA takes the Triton kernel instead.
    """
    kept = alive
    while True:
        again = alive & ~(overlapping & kept[..., None]).any(dim=1)
        if torch.equal(again, kept):
            return kept
        kept = again
