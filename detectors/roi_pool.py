"""Features of regions: RoIAlign and RoIPool over one feature map or the levels of a pyramid.

RoIAlign: Mask R-CNN, https://arxiv.org/abs/1703.06870, section 3. Levels: FPN, https://arxiv.org/abs/1612.03144, eq. 1.
RoIPool: Fast R-CNN, https://arxiv.org/abs/1504.08083, section 2.1. Numbers equal those of torchvision's MultiScaleRoIAlign.

Letters: B images, K regions an image, C channels, P bins a side, S samples a bin and side, L levels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import area, full_precision


class RoIAlign(nn.Module):
    """Bilinear samples of each region's own pyramid level, averaged bin by bin.

    All levels are laid end to end as rows of one table, and each bin is a weighted sum of 4 S^2 of its rows, so that every
    region of every image and level is pooled by a single `embedding_bag`: one launch, fixed shapes, no sorting of regions
    by level (torchvision's way, which stalls the GPU once a level), and gradients to the boxes as well.

    Args:
        strides: pixels per cell of each feature map given to `forward`, finest first.
        output_size: P.
        sampling_ratio: S.
        canonical_size, canonical_level: a region of this side belongs to this level (log2 of its stride).
    """

    def __init__(
        self,
        strides: Sequence[int],
        *,
        output_size: int = 7,
        sampling_ratio: int = 2,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
    ) -> None:
        super().__init__()
        self.strides, self.output_size, self.sampling_ratio = tuple(strides), output_size, sampling_ratio
        self.canonical_size, self.canonical_level = canonical_size, canonical_level

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Pools the features of regions.

        Args:
            features: L maps (B, C, H, W), as many as there are strides.
            rois: (B, K, 4), xyxy in image pixels.

        Returns:
            (B * K, C, P, P).
        """
        batch, number = rois.shape[:2]
        channels, bins = features[0].shape[1], self.output_size
        table = torch.cat([level.permute(0, 2, 3, 1).flatten(1, 2) for level in features], dim=1)
        rows, weights = self._samples([level.shape[-2:] for level in features], full_precision(rois))
        first_row = torch.arange(batch, device=rois.device).view(-1, 1, 1, 1) * table.shape[1]
        pooled = F.embedding_bag(
            (rows + first_row).flatten(0, 2).int(),  # sorting them, in the backward pass, is quicker than of int64
            table.flatten(0, 1),
            per_sample_weights=weights.flatten(0, 2).to(table.dtype),
            mode="sum",
        )
        return pooled.view(batch * number, bins * bins, channels).transpose(1, 2).reshape(-1, channels, bins, bins)

    def _samples(self, shapes: list[torch.Size], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Rows of the table of levels, and their weights, for every bin: both (B, K, P * P, 4 * S * S)."""
        levels = assign_levels(
            rois, self.strides, canonical_size=self.canonical_size, canonical_level=self.canonical_level
        )
        heights, widths = [shape[0] for shape in shapes], [shape[1] for shape in shapes]
        cells = [height * width for height, width in shapes]
        offset = _of_level(levels, [sum(cells[:i]) for i in range(len(cells))])  # (B, K), as the next three
        height, width, stride = (_of_level(levels, values) for values in (heights, widths, self.strides))
        scaled = rois / stride[..., None]
        y_low, y_high, y_weight = self._axis(scaled[..., 1], scaled[..., 3], height)
        x_low, x_high, x_weight = self._axis(scaled[..., 0], scaled[..., 2], width)
        rows = torch.stack([y_low, y_high], dim=-1) * width[..., None, None, None]
        rows = rows + offset[..., None, None, None]
        columns = torch.stack([x_low, x_high], dim=-1)
        # (B, K, P, S, 2) by (B, K, P, S, 2) -> (B, K, P, P, S, S, 2, 2)
        index = rows[:, :, :, None, :, None, :, None] + columns[:, :, None, :, None, :, None, :]
        weight = y_weight[:, :, :, None, :, None, :, None] * x_weight[:, :, None, :, None, :, None, :]
        bins, taps = self.output_size**2, 4 * self.sampling_ratio**2
        shape = (*rois.shape[:2], bins, taps)
        return index.reshape(shape), weight.reshape(shape) / self.sampling_ratio**2

    def _axis(self, low: Tensor, high: Tensor, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Along one axis: the cells before and after every sample (B, K, P, S), and both weights (B, K, P, S, 2)."""
        bins, samples = self.output_size, self.sampling_ratio
        size = ((high - low).clamp(min=1.0) / bins)[..., None, None]
        bin_index = torch.arange(bins, device=low.device, dtype=low.dtype)[:, None]
        sample_index = torch.arange(samples, device=low.device, dtype=low.dtype)
        # torchvision's order of operations, so that positions agree to the last bit
        position = low[..., None, None] + bin_index * size + (sample_index + 0.5) * size / samples
        length = length[..., None, None]
        inside = ((position >= -1) & (position <= length)).to(position.dtype)  # beyond a cell outside, samples are zero
        position = position.clamp(min=0).minimum(length - 1)
        before = position.floor()
        fraction = position - before
        weights = torch.stack([1 - fraction, fraction], dim=-1) * inside[..., None]
        return before.long(), (before + 1).minimum(length - 1).long(), weights


class RoIPool(nn.Module):
    """The largest value in each of P x P quantised bins, from each region's own pyramid level.

    Args:
        strides: pixels per cell of each feature map given to `forward`, finest first.
        output_size: P.
    """

    def __init__(self, strides: Sequence[int], *, output_size: int = 7) -> None:
        super().__init__()
        self.strides, self.output_size = tuple(strides), output_size

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """As `RoIAlign.forward`: L maps and (B, K, 4) regions to (B * K, C, P, P)."""
        batch, number = rois.shape[:2]
        images = torch.arange(batch, device=rois.device, dtype=rois.dtype).repeat_interleave(number)
        # In full precision: bfloat16 rounds 803 pixels to 804, and torchvision's operator does not take it.
        flat = torch.cat([images[:, None], rois.flatten(0, 1)], dim=1).to(full_precision(features[0]).dtype)
        pooled = [
            torchvision.ops.roi_pool(full_precision(level), flat, self.output_size, 1 / stride).to(level.dtype)
            for level, stride in zip(features, self.strides, strict=True)
        ]
        if len(pooled) == 1:
            return pooled[0]
        # Every level is pooled and one is picked: dearer than sorting regions by level, but of fixed shape.
        levels = assign_levels(rois, self.strides).flatten()
        index = levels.view(1, -1, 1, 1, 1).expand(1, *pooled[0].shape)
        return torch.stack(pooled).gather(0, index)[0]


def _of_level(levels: Tensor, values: Sequence[int]) -> Tensor:
    """Each region's own of one value a level. Chosen by comparison: a table would have to be copied to the GPU."""
    chosen = torch.full_like(levels, values[0])
    for level, value in enumerate(values[1:], start=1):
        chosen = torch.where(levels == level, value, chosen)
    return chosen


def assign_levels(
    rois: Tensor, strides: Sequence[int], *, canonical_size: float = 224.0, canonical_level: int = 4
) -> Tensor:
    """The pyramid level of each region by its size (FPN, eq. 1): (...) int64, 0 the finest, from (..., 4) boxes."""
    finest, coarsest = round(math.log2(strides[0])), round(math.log2(strides[-1]))
    level = torch.floor(canonical_level + torch.log2(area(rois).sqrt() / canonical_size) + 1e-6)
    return level.clamp(min=finest, max=coarsest).long() - finest
