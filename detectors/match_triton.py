"""The matching of anchors with objects as Triton kernels that hold no IoU of all pairs: `assignment`'s plain versions, fused.

A program holds a block of an image's anchors, one a thread, and goes over the objects, a few at a time. Memory is that of
anchors plus objects, and the number of launches depends on neither.

Letters: B images, N objects (padded), A anchors.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .boxes_triton import box_area, box_intersection, box_iou, load_boxes

ANCHORS = 128  # of a program
OBJECTS = 16  # that it looks at together


def best_objects_triton(anchors: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `assignment.best_objects`; in float32."""
    anchors, boxes = _shared(anchors), boxes.float().contiguous()
    images, objects = boxes.shape[:2]
    best = boxes.new_empty(images, anchors.shape[1])
    idxs, favourite = torch.empty_like(best, dtype=torch.int64), torch.empty_like(best, dtype=torch.uint8)
    highest = torch.zeros(images, objects, dtype=torch.int32, device=boxes.device)
    if best.numel() > 0:
        sizes, options = _launch(anchors, boxes)
        grid = (triton.cdiv(anchors.shape[1], ANCHORS), images)
        _best[grid](anchors, boxes, best, idxs, highest, *sizes, **options)
        _favourite[grid](anchors, boxes, highest, favourite, *sizes, **options)
    return best, idxs, favourite.view(torch.bool)


def covered_triton(anchors: Tensor, crowds: Tensor) -> Tensor:
    """See `assignment.covered`; in float32."""
    anchors, crowds = _shared(anchors), crowds.float().contiguous()
    share = crowds.new_empty(len(crowds), anchors.shape[1])
    if share.numel() > 0:
        sizes, options = _launch(anchors, crowds)
        _covered[(triton.cdiv(anchors.shape[1], ANCHORS), len(crowds))](anchors, crowds, share, *sizes, **options)
    return share


def _shared(anchors: Tensor) -> Tensor:
    """(1 or B, A, 4), in one piece: those that all images share stand once, also where they were expanded."""
    return (anchors[:1] if anchors.stride(0) == 0 else anchors).float().contiguous()


def _launch(anchors: Tensor, boxes: Tensor) -> tuple[tuple[int, int, int], dict[str, int]]:
    """(boxes from one image's anchors to the next one's, A, N), and how every kernel here is compiled."""
    step = 0 if len(anchors) == 1 else anchors.shape[1]
    options = {"ANCHORS": ANCHORS, "OBJECTS": OBJECTS, "num_warps": ANCHORS // 32, "enable_fp_fusion": False}
    return (step, anchors.shape[1], boxes.shape[1]), options


@triton.jit(do_not_specialize=["step", "number", "objects"])
def _best(
    anchors, boxes, best, idxs, highest, step, number, objects, ANCHORS: tl.constexpr, OBJECTS: tl.constexpr
):  # fmt: skip
    """Each anchor's highest IoU and the first object that has it, and each object's highest IoU with any anchor.

    That is kept as the bits of its float32, which order like integers where nothing is negative.
    """
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    ax0, ay0, ax1, ay1 = load_boxes(anchors + image * step * 4, place, place < number)
    top, which = tl.zeros((ANCHORS,), tl.float32), tl.zeros((ANCHORS,), tl.int32)
    for first in range(0, objects, OBJECTS):
        here = first + tl.arange(0, OBJECTS)
        overlap = _overlaps(ax0, ay0, ax1, ay1, boxes + image * objects * 4, here, objects)
        value, index = tl.max(overlap, axis=0, return_indices=True)
        which = tl.where(value > top, first + index, which)
        top = tl.where(value > top, value, top)
        seen = tl.max(overlap.to(tl.int32, bitcast=True), axis=1)
        tl.atomic_max(highest + image * objects + here, seen, mask=(here < objects) & (seen > 0), sem="relaxed")
    tl.store(best + image * number + place, top, mask=place < number)
    tl.store(idxs + image * number + place, which.to(tl.int64), mask=place < number)


@triton.jit(do_not_specialize=["step", "number", "objects"])
def _favourite(
    anchors, boxes, highest, favourite, step, number, objects, ANCHORS: tl.constexpr, OBJECTS: tl.constexpr
):  # fmt: skip
    """Whether an anchor's IoU with some object is that object's highest: computed again, to the same bits."""
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    ax0, ay0, ax1, ay1 = load_boxes(anchors + image * step * 4, place, place < number)
    found = tl.zeros((ANCHORS,), tl.int32)
    for first in range(0, objects, OBJECTS):
        here = first + tl.arange(0, OBJECTS)
        overlap = _overlaps(ax0, ay0, ax1, ay1, boxes + image * objects * 4, here, objects)
        top = tl.load(highest + image * objects + here, mask=here < objects, other=0)[:, None]
        equal = (overlap.to(tl.int32, bitcast=True) == top) & (top > 0)
        found |= tl.max(equal.to(tl.int32), axis=0)
    tl.store(favourite + image * number + place, found, mask=place < number)


@triton.jit(do_not_specialize=["step", "number", "objects"])
def _covered(anchors, crowds, share, step, number, objects, ANCHORS: tl.constexpr, OBJECTS: tl.constexpr):
    image = tl.program_id(1).to(tl.int64)
    place = tl.program_id(0) * ANCHORS + tl.arange(0, ANCHORS)
    ax0, ay0, ax1, ay1 = load_boxes(anchors + image * step * 4, place, place < number)
    common = tl.zeros((ANCHORS,), tl.float32)
    for first in range(0, objects, OBJECTS):
        here = first + tl.arange(0, OBJECTS)
        bx0, by0, bx1, by1 = load_boxes(crowds + image * objects * 4, here, here < objects)
        inside = box_intersection(
            ax0[None, :], ay0[None, :], ax1[None, :], ay1[None, :],
            bx0[:, None], by0[:, None], bx1[:, None], by1[:, None],
        )  # fmt: skip
        common = tl.maximum(common, tl.max(inside, axis=0))
    area = tl.maximum(box_area(ax0, ay0, ax1, ay1), 1e-6)
    tl.store(share + image * number + place, tl.div_rn(common, area), mask=place < number)


@triton.jit
def _overlaps(ax0, ay0, ax1, ay1, boxes, here, objects):
    """IoU (OBJECTS, ANCHORS) of the objects at `here` with the anchors; 0 of those past the last."""
    bx0, by0, bx1, by1 = load_boxes(boxes, here, here < objects)
    return box_iou(
        ax0[None, :], ay0[None, :], ax1[None, :], ay1[None, :],
        bx0[:, None], by0[:, None], bx1[:, None], by1[:, None],
    )  # fmt: skip
