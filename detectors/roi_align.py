"""RoIAlign of regions whose pyramid levels are known (Mask R-CNN, https://arxiv.org/abs/1703.06870, section 3).

On CUDA one Triton kernel pools all regions of all levels and images, and one scatters their gradients (`roi_align_triton`);
elsewhere the plain version below, which is the kernels' test. Numbers equal those of torchvision's operator, except that a
region of NaN is zero. `roi_pool.RoIAlign` is the layer.

Letters: B images, K regions an image, C channels, P bins a side, S samples a bin and side, L levels, T = 4 S^2 cells a bin.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# The kernels name their maps one by one.
MOST_LEVELS = 5
HAS_TRITON = importlib.util.find_spec("triton") is not None  # it comes with PyTorch's CUDA packages on Linux


def roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """Averages of bilinear samples in each region's bins, from its own level.

    The kernels accumulate in float32 and read channels-last maps as they lie; others are copied into that order first. With
    gradients to the boxes, in float64 or under `torch.use_deterministic_algorithms` the plain version runs on CUDA too.

    Args:
        features: L maps (B, C, H, W).
        rois: (B, K, 4), xyxy in image pixels, float32 or float64.
        levels: (B, K) int64, which map each is pooled from.
        strides: L, pixels per cell of each map.
        output_size: P.
        sampling_ratio: S.

    Returns:
        (B * K, C, P, P), channels-last, of the maps' dtype.
    """
    # In a graph exported on a CPU the one operator says what is meant, whatever runs it (`onnx_operators`).
    if _fused(features, rois) or (torch.compiler.is_exporting() and not features[0].is_cuda):
        return _roi_align(list(features), rois, levels, list(strides), output_size, sampling_ratio)
    return roi_align_plain(
        features, rois, levels, strides=strides, output_size=output_size, sampling_ratio=sampling_ratio
    )


def _fused(features: Sequence[Tensor], rois: Tensor) -> bool:
    """Whether the kernels may stand in for the plain version; reads no values, and compilers can follow it."""
    return (
        features[0].is_cuda
        and HAS_TRITON
        and len(features) <= MOST_LEVELS
        and features[0].dtype in (torch.float32, torch.bfloat16, torch.float16)
        and all(level.dtype == features[0].dtype for level in features)
        and rois.dtype == torch.float32
        and not (rois.requires_grad and torch.is_grad_enabled())  # the kernels have none for the boxes
        and not torch.are_deterministic_algorithms_enabled()  # gradients are added in any order
        and _new_enough(features[0].device)
    )


@torch.compiler.assume_constant_result
def _new_enough(device: torch.device) -> bool:
    """Whether Triton builds for this GPU, bfloat16 included: from Ampere on."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


# One operator to torch.compile and torch.export, and two kernels that neither wait for the device nor copy maps together.
@torch.library.custom_op(
    "sightline::roi_align",
    mutates_args=(),
    schema="(Tensor[] features, Tensor rois, Tensor levels, int[] strides, int output_size, int sampling_ratio) -> Tensor",
)
def _roi_align(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    if not (rois.is_cuda and _fused(features, rois)):  # an exported graph, run elsewhere than where it was made
        return roi_align_plain(
            features, rois, levels, strides=strides, output_size=output_size, sampling_ratio=sampling_ratio
        )
    from .roi_align_triton import pool

    with torch.cuda.device(rois.device):  # Triton launches on the current GPU, whichever the maps lie on
        return pool(features, rois, levels, strides, output_size, sampling_ratio)


@_roi_align.register_fake
def _(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    regions, channels = rois.shape[0] * rois.shape[1], features[0].shape[1]
    return features[0].new_empty(regions, output_size, output_size, channels).permute(0, 3, 1, 2)


@torch.library.custom_op(
    "sightline::roi_align_backward",
    mutates_args=(),
    schema="(Tensor gradient, Tensor rois, Tensor levels, SymInt[] sizes, int[] strides, int sampling_ratio) -> Tensor[]",
)
def _roi_align_backward(
    gradient: Tensor, rois: Tensor, levels: Tensor, sizes: Sequence[int], strides: Sequence[int], sampling_ratio: int
) -> list[Tensor]:
    """Gradients to the maps, channels-last, of heights and widths `sizes` (2 L) and the gradient's dtype."""
    shapes = list(zip(sizes[::2], sizes[1::2], strict=True))
    if not rois.is_cuda:
        return _scatter_plain(gradient, rois, levels, shapes, strides, sampling_ratio)
    from .roi_align_triton import scatter

    with torch.cuda.device(rois.device):
        return scatter(gradient, rois, levels, shapes, strides, sampling_ratio)


@_roi_align_backward.register_fake
def _(
    gradient: Tensor, rois: Tensor, levels: Tensor, sizes: Sequence[int], strides: Sequence[int], sampling_ratio: int
) -> list[Tensor]:
    batch, channels = rois.shape[0], gradient.shape[1]
    shapes = zip(sizes[::2], sizes[1::2], strict=True)
    return [gradient.new_empty(batch, height, width, channels).permute(0, 3, 1, 2) for height, width in shapes]


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, rois, levels, ctx.strides, _, ctx.sampling_ratio = inputs
    ctx.save_for_backward(rois, levels)  # of the maps only their sizes, so that nothing holds them
    ctx.sizes = [length for level in features for length in level.shape[-2:]]


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[list[Tensor] | None, ...]:
    rois, levels = ctx.saved_tensors
    maps = _roi_align_backward(gradient, rois, levels, ctx.sizes, ctx.strides, ctx.sampling_ratio)
    return maps, None, None, None, None, None


_roi_align.register_autograd(_differentiate, setup_context=_save)


def roi_align_plain(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    *,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """`roi_align` in plain PyTorch, with gradients to the boxes as well.

    All levels are laid end to end as rows of one table, and each bin is a weighted sum of T of its rows, so that every
    region is pooled by a single `embedding_bag`: fixed shapes, and no sorting of regions by level (torchvision's way, which
    stalls the GPU once a level).
    """
    batch, channels = rois.shape[0], features[0].shape[1]
    table = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in features], dim=1)
    shapes = [tuple(level.shape[-2:]) for level in features]
    rows, weights = _samples(shapes, rois, levels, strides, output_size, sampling_ratio)
    first_row = torch.arange(batch, device=rois.device).view(-1, 1, 1, 1) * table.shape[1]
    pooled = F.embedding_bag(
        (rows + first_row).flatten(0, 2).int(),  # sorting them, in the backward pass, is quicker than of int64
        table.flatten(0, 1),
        per_sample_weights=weights.flatten(0, 2).to(table.dtype),
        mode="sum",
    )
    return pooled.view(-1, output_size, output_size, channels).permute(0, 3, 1, 2)


def _scatter_plain(
    gradient: Tensor,
    rois: Tensor,
    levels: Tensor,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sampling_ratio: int,
) -> list[Tensor]:
    """The gradients to the maps, T times a row for every bin: slow, for graphs that leave the GPU they were made on."""
    batch, channels, bins = rois.shape[0], *gradient.shape[1:3]
    cells = [height * width for height, width in shapes]
    rows, weights = _samples(shapes, rois, levels, strides, bins, sampling_ratio)
    rows = rows + torch.arange(batch, device=rois.device).view(-1, 1, 1, 1) * sum(cells)
    values = gradient.flatten(2).transpose(1, 2).to(weights.dtype)  # (B * K, P * P, C)
    table = values.new_zeros(batch * sum(cells), channels)
    for row, weight in zip(rows.flatten(0, 1).unbind(-1), weights.flatten(0, 1).unbind(-1), strict=True):
        table.index_add_(0, row.flatten(), (values * weight[..., None]).flatten(0, 1))
    maps = table.view(batch, -1, channels).to(gradient.dtype).split(cells, dim=1)
    return [
        level.clone().view(batch, *shape, channels).permute(0, 3, 1, 2)
        for level, shape in zip(maps, shapes, strict=True)
    ]


def _samples(
    shapes: Sequence[tuple[int, int]],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> tuple[Tensor, Tensor]:
    """Rows of an image's table of levels, and their weights, for every bin: both (B, K, P * P, T)."""
    heights, widths = [shape[0] for shape in shapes], [shape[1] for shape in shapes]
    cells = [height * width for height, width in shapes]
    offset = _of_level(levels, [sum(cells[:i]) for i in range(len(cells))])  # (B, K), as the next three
    height, width, stride = (_of_level(levels, values) for values in (heights, widths, strides))
    low, high = (rois / stride[..., None]).split(2, dim=-1)
    y_low, y_high, y_weight = _axis(low[..., 1], high[..., 1], height, output_size, sampling_ratio)
    x_low, x_high, x_weight = _axis(low[..., 0], high[..., 0], width, output_size, sampling_ratio)
    rows = torch.stack([y_low, y_high], dim=-1) * width[..., None, None, None]
    rows = rows + offset[..., None, None, None]
    columns = torch.stack([x_low, x_high], dim=-1)
    # (B, K, P, S, 2) by (B, K, P, S, 2) -> (B, K, P, P, S, S, 2, 2)
    index = rows[:, :, :, None, :, None, :, None] + columns[:, :, None, :, None, :, None, :]
    weight = y_weight[:, :, :, None, :, None, :, None] * x_weight[:, :, None, :, None, :, None, :]
    shape = (*rois.shape[:2], output_size**2, 4 * sampling_ratio**2)
    return index.reshape(shape), weight.reshape(shape) / sampling_ratio**2


def _axis(low: Tensor, high: Tensor, length: Tensor, bins: int, samples: int) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the cells before and after every sample (B, K, P, S), and both weights (B, K, P, S, 2)."""
    size = ((high - low).clamp(min=1.0) / bins)[..., None, None]
    bin_index = torch.arange(bins, device=low.device, dtype=low.dtype)[:, None]
    sample_index = torch.arange(samples, device=low.device, dtype=low.dtype)
    # torchvision's order of operations, so that positions agree to the last bit
    position = low[..., None, None] + bin_index * size + (sample_index + 0.5) * size / samples
    length = length[..., None, None]
    inside = (position >= -1) & (position <= length)  # beyond a cell outside, samples are zero; so is NaN
    position = torch.where(inside, position, 0).clamp(min=0).minimum(length - 1)
    before = position.floor()
    fraction = position - before
    weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None].to(position.dtype)
    return before.long(), (before + 1).minimum(length - 1).long(), weights


def _of_level(levels: Tensor, values: Sequence[int]) -> Tensor:
    """Each region's own of one value a level. Chosen by comparison: a table would have to be copied to the GPU."""
    chosen = torch.full_like(levels, values[0])
    for level, value in enumerate(values[1:], start=1):
        chosen = torch.where(levels == level, value, chosen)
    return chosen
