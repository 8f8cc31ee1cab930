"""`nms.nms` as one Triton kernel: a program a group walks down the boxes, striking out later ones, all on the device."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


def nms_triton(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None = None) -> Tensor:
    """See `nms.nms`; boxes are compared in float32."""
    groups, number = valid.shape
    kept = torch.empty_like(valid, dtype=torch.int32)
    labels = torch.zeros_like(valid, dtype=torch.int32) if labels is None else labels.to(torch.int32)
    block = triton.next_power_of_2(number)
    _walk[(groups,)](
        boxes.float().contiguous(),
        valid.to(torch.int32).contiguous(),
        labels.contiguous(),
        kept,
        iou_threshold,
        number,
        BLOCK=block,
        num_warps=min(16, max(1, block // 128)),
        # Fused multiply-adds round once where PyTorch rounds twice: a box on the threshold would fall on the other side.
        enable_fp_fusion=False,
    )
    return kept.bool()


@triton.jit
def _walk(boxes, valid, labels, kept, threshold, number, BLOCK: tl.constexpr):
    column = tl.arange(0, BLOCK)
    inside = column < number
    first = tl.program_id(0) * number
    x0 = tl.load(boxes + (first + column) * 4, mask=inside, other=0.0)
    y0 = tl.load(boxes + (first + column) * 4 + 1, mask=inside, other=0.0)
    x1 = tl.load(boxes + (first + column) * 4 + 2, mask=inside, other=0.0)
    y1 = tl.load(boxes + (first + column) * 4 + 3, mask=inside, other=0.0)
    label = tl.load(labels + first + column, mask=inside, other=-1)
    alive = tl.load(valid + first + column, mask=inside, other=0)
    area = tl.maximum(x1 - x0, 0.0) * tl.maximum(y1 - y0, 0.0)
    for row in range(0, number):
        if tl.sum(tl.where(column == row, alive, 0)) > 0:
            left = tl.load(boxes + (first + row) * 4)
            top = tl.load(boxes + (first + row) * 4 + 1)
            right = tl.load(boxes + (first + row) * 4 + 2)
            bottom = tl.load(boxes + (first + row) * 4 + 3)
            width = tl.maximum(tl.minimum(x1, right) - tl.maximum(x0, left), 0.0)
            height = tl.maximum(tl.minimum(y1, bottom) - tl.maximum(y0, top), 0.0)
            common = width * height
            union = area + tl.maximum(right - left, 0.0) * tl.maximum(bottom - top, 0.0) - common
            # Rounded division, as in the plain version; the bound only keeps empty boxes from 0 / 0.
            overlapping = tl.div_rn(common, tl.maximum(union, 1e-30)) > threshold
            same = label == tl.load(labels + first + row)
            alive = tl.where(overlapping & same & (column > row), 0, alive)
    tl.store(kept + first + column, alive, mask=inside)
