"""`roi_align.roi_align` as two Triton kernels: one pools every region of every level and image, one scatters gradients.

A program is a region, a block of its bins and a block of channels. Maps are read channels-last, where the channels of a cell
lie side by side: 64 of them are one cache line of 128 bytes in half precision. Regions of one image and the same channels
run next to each other, so that what they read (10 MB of an 800 x 1216 picture's pyramid) stays in the L2 cache.

The result is channels-last too, as the plain version's is and as convolutions want it. Fully connected layers flatten it in
the other order, which is a copy; to write that order here would take stores of single values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from .roi_align import MOST_LEVELS

# What a program holds: 32 bins of 64 channels are 16 sums a thread, which leaves room for four programs a multiprocessor.
BLOCK_BINS, BLOCK_CHANNELS = 32, 64
# Fused multiply-adds round once where PyTorch rounds twice: a sample on the border would fall on its other side. Sums of
# samples, where it does not matter, ask for them by name.
OPTIONS = {"num_warps": 4, "enable_fp_fusion": False}


def pool(
    features: Sequence[Tensor],
    rois: Tensor,
    levels: Tensor,
    strides: Sequence[int],
    output_size: int,
    sampling_ratio: int,
) -> Tensor:
    """See `roi_align.roi_align`; sums are in float32."""
    maps = [level.contiguous(memory_format=torch.channels_last) for level in features]  # no copy where they are already
    shapes = [level.shape[-2:] for level in features]
    pooled = maps[0].new_empty(levels.numel(), output_size, output_size, maps[0].shape[1]).permute(0, 3, 1, 2)
    _launch(maps, shapes, rois, levels, pooled, strides, sampling_ratio, scatter=False)
    return pooled


def scatter(
    gradient: Tensor,
    rois: Tensor,
    levels: Tensor,
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sampling_ratio: int,
) -> list[Tensor]:
    """The gradients to maps of these (height, width) from that to what `pool` gave; added up in float32, in any order.

    Args:
        gradient: (B * K, C, P, P).

    Returns:
        L maps (B, C, H, W), channels-last, of the gradient's dtype.
    """
    batch, channels = rois.shape[0], gradient.shape[1]
    maps = [gradient.new_zeros(batch, *shape, channels, dtype=torch.float32).permute(0, 3, 1, 2) for shape in shapes]
    gradient = gradient.contiguous(memory_format=torch.channels_last)
    _launch(maps, shapes, rois, levels, gradient, strides, sampling_ratio, scatter=True)
    return [level.to(gradient.dtype) for level in maps]


def _launch(
    maps: Sequence[Tensor],
    shapes: Sequence[tuple[int, int]],
    rois: Tensor,
    levels: Tensor,
    regions: Tensor,
    strides: Sequence[int],
    sampling_ratio: int,
    *,
    scatter: bool,
) -> None:
    """Runs the kernel: `regions` (B * K, C, P, P), channels-last, is what it writes, or scatters to the maps."""
    (batch, number), (_, channels, bins, _) = levels.shape, regions.shape
    if regions.numel() == 0:
        return
    block_bins = min(BLOCK_BINS, triton.next_power_of_2(bins**2))
    block_channels = min(BLOCK_CHANNELS, triton.next_power_of_2(channels))
    bin_blocks, channel_blocks = triton.cdiv(bins**2, block_bins), triton.cdiv(channels, block_channels)
    heights, widths = zip(*shapes, strict=True)
    _visit[(number, bin_blocks * channel_blocks, batch)](
        *_five(maps),
        *_five(heights),
        *_five(widths),
        *_five(strides),
        rois.contiguous(),
        levels.contiguous(),
        regions,
        channels,
        SCATTER=scatter,
        BINS=bins,
        SAMPLES=sampling_ratio,
        BLOCK_BINS=block_bins,
        BLOCK_CHANNELS=block_channels,
        **OPTIONS,
    )


def _five(values: Sequence) -> list:
    """One for each level that the kernels can name; the last stands in for those that are not there."""
    return [*values, *[values[-1]] * (MOST_LEVELS - len(values))]


# Sizes are numbers like any other: else every frame that is a multiple of 16, and every one that is not, is a kernel anew.
SIZES = [f"{name}{i}" for name in ("height", "width", "stride") for i in range(MOST_LEVELS)]


@triton.jit(do_not_specialize=SIZES)
def _visit(
    map0, map1, map2, map3, map4,
    height0, height1, height2, height3, height4,
    width0, width1, width2, width3, width4,
    stride0, stride1, stride2, stride3, stride4,
    rois, levels, regions, channels,
    SCATTER: tl.constexpr, BINS: tl.constexpr, SAMPLES: tl.constexpr,
    BLOCK_BINS: tl.constexpr, BLOCK_CHANNELS: tl.constexpr,
):  # fmt: skip
    """Either way the same cells with the same weights: read into the bins, or, if SCATTER, given the bins' gradients."""
    region = tl.program_id(2).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    level = tl.load(levels + region)
    left, top = tl.load(rois + region * 4), tl.load(rois + region * 4 + 1)
    right, bottom = tl.load(rois + region * 4 + 2), tl.load(rois + region * 4 + 3)
    height = _own(level, height0, height1, height2, height3, height4)
    width = _own(level, width0, width1, width2, width3, width4)
    stride = _own(level, stride0, stride1, stride2, stride3, stride4).to(tl.float32)
    left, bin_width = _extent(left, right, stride, BINS)
    top, bin_height = _extent(top, bottom, stride, BINS)

    bin_blocks: tl.constexpr = (BINS * BINS + BLOCK_BINS - 1) // BLOCK_BINS
    bin = tl.program_id(1) % bin_blocks * BLOCK_BINS + tl.arange(0, BLOCK_BINS)  # counted row by row
    channel = tl.program_id(1) // bin_blocks * BLOCK_CHANNELS + tl.arange(0, BLOCK_CHANNELS)
    inside = (bin < BINS * BINS)[:, None] & (channel < channels)[None, :]
    image = tl.program_id(2).to(tl.int64) * height * width * channels
    cells = _own(level, map0, map1, map2, map3, map4) + image + channel[None, :]
    places = regions + region * channels * (BINS * BINS) + bin[:, None] * channels + channel[None, :]

    if SCATTER:
        # Four channels a thread, as many as it adds at once: eight would be exchanged between threads for every cell.
        places = tl.max_contiguous(places, [1, 4])
        values = tl.load(places, mask=inside).to(tl.float32) * (1.0 / (SAMPLES * SAMPLES))
    else:
        values = tl.zeros([BLOCK_BINS, BLOCK_CHANNELS], tl.float32)
    for i in tl.static_range(SAMPLES):
        y0, y1, y0_weight, y1_weight = _sample(top, bin_height, bin // BINS, i, height, SAMPLES)
        y0, y1 = y0 * width * channels, y1 * width * channels
        for j in tl.static_range(SAMPLES):
            x0, x1, x0_weight, x1_weight = _sample(left, bin_width, bin % BINS, j, width, SAMPLES)
            x0, x1 = x0 * channels, x1 * channels
            values = _cell(values, cells, y0 + x0, y0_weight * x0_weight, inside, SCATTER)
            values = _cell(values, cells, y0 + x1, y0_weight * x1_weight, inside, SCATTER)
            values = _cell(values, cells, y1 + x0, y1_weight * x0_weight, inside, SCATTER)
            values = _cell(values, cells, y1 + x1, y1_weight * x1_weight, inside, SCATTER)
    if not SCATTER:
        tl.store(places, (values * (1.0 / (SAMPLES * SAMPLES))).to(regions.dtype.element_ty), mask=inside)


@triton.jit
def _own(level, value0, value1, value2, value3, value4):
    """The level's own of five values, or pointers; what is no level is the finest, as in the plain version."""
    own = tl.where(level == 1, value1, value0)
    own = tl.where(level == 2, value2, own)
    own = tl.where(level == 3, value3, own)
    return tl.where(level == 4, value4, own)


@triton.jit
def _extent(low, high, stride, BINS: tl.constexpr):
    """A region's start and the size of its bins along one axis: pixels to cells."""
    low, high = tl.div_rn(low, stride), tl.div_rn(high, stride)
    side = tl.where(high - low < 1.0, 1.0, high - low)  # keeps NaN, which `maximum` would not
    return low, tl.div_rn(side, tl.full([], BINS, tl.float32))


@triton.jit
def _sample(low, size, bin, sample, length, SAMPLES: tl.constexpr):
    """Along one axis: the cells before and after a sample of every bin, and both weights."""
    offset = tl.div_rn((sample + 0.5) * size, tl.full([], SAMPLES, tl.float32))
    position = low + bin.to(tl.float32) * size + offset
    inside = (position >= -1.0) & (position <= length)
    position = tl.where(inside, position, 0.0)
    position = tl.minimum(tl.maximum(position, 0.0), (length - 1).to(tl.float32))
    before = position.to(tl.int32)
    fraction = position - before.to(tl.float32)
    after = tl.minimum(before + 1, length - 1)
    return before, after, tl.where(inside, 1.0 - fraction, 0.0), tl.where(inside, fraction, 0.0)


@triton.jit
def _cell(values, cells, offset, weight, inside, SCATTER: tl.constexpr):
    """One of the cells that make up each bin: read and added to `values`, which are returned, or added to."""
    places = cells + offset[:, None]
    if SCATTER:
        tl.atomic_add(places, weight[:, None] * values, mask=inside & (weight != 0.0)[:, None], sem="relaxed")
        return values
    else:
        return tl.fma(weight[:, None], tl.load(places, mask=inside).to(tl.float32), values)
