"""`boxes.iou` inside Triton kernels: the same float32 operations in the same order, so the same bits.

Kernels that call these are launched with `enable_fp_fusion=False`: a fused multiply-add rounds once where PyTorch rounds
twice, and a box on the threshold would fall on the other side.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def load_boxes(boxes, place, inside):
    """x0, y0, x1 and y1 of the boxes at `place`; zero where not `inside`."""
    x0 = tl.load(boxes + place * 4, mask=inside, other=0.0)
    y0 = tl.load(boxes + place * 4 + 1, mask=inside, other=0.0)
    x1 = tl.load(boxes + place * 4 + 2, mask=inside, other=0.0)
    y1 = tl.load(boxes + place * 4 + 3, mask=inside, other=0.0)
    return x0, y0, x1, y1


@triton.jit
def box_area(x0, y0, x1, y1):
    return _positive(x1 - x0) * _positive(y1 - y0)


@triton.jit
def box_intersection(ax0, ay0, ax1, ay1, bx0, by0, bx1, by1):
    return _positive(_least(ax1, bx1) - _most(ax0, bx0)) * _positive(_least(ay1, by1) - _most(ay0, by0))


@triton.jit
def box_iou(ax0, ay0, ax1, ay1, bx0, by0, bx1, by1):
    """Division rounded as PyTorch rounds it; the bound, float32's tiny, only keeps empty boxes from 0 / 0."""
    common = box_intersection(ax0, ay0, ax1, ay1, bx0, by0, bx1, by1)
    union = box_area(ax0, ay0, ax1, ay1) + box_area(bx0, by0, bx1, by1) - common
    return tl.div_rn(common, _most(union, 1.1754943508222875e-38))


@triton.jit
def _positive(side):
    return _most(side, 0.0)


# NaN in, NaN out, as in PyTorch; a GPU's own minimum and maximum return the other number.
@triton.jit
def _least(a, b):
    return tl.minimum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def _most(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)
