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

from .boxes import area, full_precision
from .roi_align import roi_align


class RoIAlign(nn.Module):
    """Bilinear samples of each region's own pyramid level, averaged bin by bin.

    Regions of all images and levels are pooled at once, see `roi_align.roi_align`; boxes get gradients where they want them.

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
        rois = full_precision(rois)
        levels = assign_levels(
            rois, self.strides, canonical_size=self.canonical_size, canonical_level=self.canonical_level
        )
        return roi_align(
            features,
            rois,
            levels,
            strides=self.strides,
            output_size=self.output_size,
            sampling_ratio=self.sampling_ratio,
        )


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


def assign_levels(
    rois: Tensor, strides: Sequence[int], *, canonical_size: float = 224.0, canonical_level: int = 4
) -> Tensor:
    """The pyramid level of each region by its size (FPN, eq. 1): (...) int64, 0 the finest, from (..., 4) boxes."""
    finest, coarsest = round(math.log2(strides[0])), round(math.log2(strides[-1]))
    level = torch.floor(canonical_level + torch.log2(area(rois).sqrt() / canonical_size) + 1e-6)
    return level.clamp(min=finest, max=coarsest).long() - finest
