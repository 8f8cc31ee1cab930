"""What operators that torch cannot translate are in ONNX's: `torch.onnx.export(…, custom_translation_table=translations(3))`.

Letters: G groups, K boxes a group, C classes; B images, R regions, L levels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torchvision  # noqa: F401 - its operators are known once it is there


def translations(num_classes: int) -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `sightline::nms` and `sightline::roi_align`, and torchvision's `roi_pool`; needs the package onnxscript.

    Args:
        num_classes: labels that boxes have lie below it.
    """
    import onnx_ir as ir
    from onnxscript import opset18 as op

    def constant(*values: int) -> Any:
        return op.Constant(value_ints=values)

    def nms(boxes: Any, valid: Any, iou_threshold: float, labels: Any = None) -> Any:
        """(G, K) bool: NonMaxSuppression names the survivors of each group and class."""
        count = op.Shape(valid, start=1, end=2)
        rank = op.Range(op.Squeeze(count), op.Constant(value_int=0), op.Constant(value_int=-1))  # boxes come best first
        scores = op.Where(valid, op.Cast(rank, to=ir.DataType.FLOAT), op.Constant(value_float=0.0))
        scores = op.Unsqueeze(scores, constant(1))
        if labels is not None:
            classes = op.Constant(value=ir.tensor(np.arange(num_classes).reshape(1, -1, 1)))
            scores = op.Where(
                op.Equal(op.Unsqueeze(labels, constant(1)), classes), scores, op.Constant(value_float=0.0)
            )
        threshold, least = op.Constant(value_floats=[iou_threshold]), op.Constant(value_floats=[0.5])
        kept = op.Gather(op.NonMaxSuppression(boxes, scores, count, threshold, least), constant(0, 2), axis=1)
        ones = op.Expand(op.Constant(value_int=1), op.Shape(kept, start=0, end=1))
        nothing = op.Expand(op.Constant(value_int=0), op.Shape(valid))
        return op.Cast(op.ScatterND(nothing, kept, ones), to=ir.DataType.BOOL)

    def roi_align(
        features: Sequence[Any],
        rois: Any,
        levels: Any,
        strides: Sequence[int],
        output_size: int,
        sampling_ratio: int,
    ) -> Any:
        """(B * R, C, P, P): each level pools its own regions, which then return to their places."""
        regions, level_of = op.Reshape(rois, constant(-1, 4)), op.Reshape(levels, constant(-1))
        images = op.Range(
            op.Constant(value_int=0), op.Squeeze(op.Shape(rois, start=0, end=1)), op.Constant(value_int=1)
        )
        image_of = op.Reshape(op.Expand(op.Unsqueeze(images, constant(1)), op.Shape(levels)), constant(-1))
        places, pooled = [], []
        for level, (feature, stride) in enumerate(zip(features, strides, strict=True)):
            place = op.Reshape(op.NonZero(op.Equal(level_of, op.Constant(value_int=level))), constant(-1))
            pooled.append(
                op.RoiAlign(
                    feature,
                    op.Gather(regions, place),
                    op.Gather(image_of, place),
                    coordinate_transformation_mode="output_half_pixel",
                    output_height=output_size,
                    output_width=output_size,
                    sampling_ratio=sampling_ratio,
                    spatial_scale=1 / stride,
                )
            )
            places.append(place)
        if len(features) == 1:
            return pooled[0]
        order = op.Concat(*places, axis=0)
        count = op.Shape(order)
        numbers = op.Range(op.Constant(value_int=0), op.Squeeze(count), op.Constant(value_int=1))
        back = op.ScatterND(numbers, op.Unsqueeze(order, constant(1)), numbers)  # order[back[i]] is i
        return op.Gather(op.Concat(*pooled, axis=0), back)

    def roi_pool(features: Any, rois: Any, scale: float, height: int, width: int) -> tuple[Any, Any]:
        """(R, C, height, width); torch's own translation knows other arguments than the operator has."""
        pooled = op.MaxRoiPool(features, rois, pooled_shape=(height, width), spatial_scale=scale)
        return pooled, op.Shape(pooled)  # which cells were the largest is asked for in training alone

    return {
        torch.ops.sightline.nms.default: nms,
        torch.ops.sightline.roi_align.default: roi_align,
        torch.ops.torchvision.roi_pool.default: roi_pool,
    }
