"""Features of rotated regions, cropped by a spatial transformer, with gradients to the features and to the boxes.

The third way beside RoIAlign and RoIPool (`roi_pool.py`), with the same arguments and results where boxes may lie askew;
but it takes them as (B, K, 5), see `upright_to_rotated`. Spatial transformer: https://arxiv.org/abs/1506.02025; as pooling
of regions: Dai et al. 2016, https://arxiv.org/abs/1512.04412, section 3.2 ("RoI warping"). An upright box gives what
RoIAlign gives, except below one cell, to which RoIAlign widens it.

A rotated box is (cx, cy, w, h, angle): centre and sides in pixels, angle in radians, from the x axis towards the y axis,
which is clockwise as one sees the picture. At angle 0, w runs along x and h along y.

Letters: B images, K regions an image, C channels, P bins a side, S samples a bin and side, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone.spatial_transformer import Affine
from .boxes import full_precision
from .roi_pool import assign_levels


class RoITransformer(nn.Module):
    """An affine transformer whose parameters are the box: each region turned upright and resampled to P x P bins.

    All regions of an image are one call of `grid_sample`: fixed shapes, no loop over regions. Of a pyramid, every region
    is cropped from every level and one is picked, which is dearer than RoIAlign's single table of levels.

    Args:
        strides: pixels per cell of each feature map given to `forward`, finest first.
        output_size: P.
        sampling_ratio: S; bins are the means of S x S bilinear samples.
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
        """Crops regions.

        Args:
            features: L maps (B, C, H, W), as many as there are strides.
            rois: (B, K, 5), rotated boxes in image pixels.

        Returns:
            (B * K, C, P, P), the box's own x along the last dimension; zero where a sample is over a cell outside.
        """
        if rois.ndim != 3 or rois.shape[-1] != 5:
            raise ValueError(f"rois must be (B, K, 5), (cx, cy, w, h, angle), got {tuple(rois.shape)}")
        if rois.shape[1] == 0:  # which neither affine_grid nor grid_sample takes
            return features[0].new_zeros(0, features[0].shape[1], self.output_size, self.output_size)
        rois = full_precision(rois)
        crops = [self._crop(level, stride, rois) for level, stride in zip(features, self.strides, strict=True)]
        if len(crops) == 1:
            return crops[0]
        upright = torch.cat([torch.zeros_like(rois[..., 2:4]), rois[..., 2:4]], dim=-1)
        levels = assign_levels(
            upright, self.strides, canonical_size=self.canonical_size, canonical_level=self.canonical_level
        )
        index = levels.flatten().view(1, -1, 1, 1, 1).expand(1, *crops[0].shape)
        return torch.stack(crops).gather(0, index)[0]

    def _crop(self, level: Tensor, stride: int, rois: Tensor) -> Tensor:
        """(B * K, C, P, P) of one level."""
        batch, channels, height, width = level.shape
        side = self.output_size * self.sampling_ratio
        theta = box_to_affine(rois, stride, (height, width)).flatten(0, 1)
        with torch.autocast(level.device.type, enabled=False):
            grid = Affine().grid(theta, (side, side)).reshape(batch, -1, side, 2)
            samples = F.grid_sample(
                full_precision(level).to(grid.dtype), grid, padding_mode="border", align_corners=False
            )
        # Up to a cell outside, the border counts, as in RoIAlign.
        near = (grid[..., 0].abs() <= 1 + 1 / width) & (grid[..., 1].abs() <= 1 + 1 / height)
        samples = samples * near[:, None]
        crops = samples.view(batch, channels, -1, side, side).transpose(1, 2).flatten(0, 1)
        return F.avg_pool2d(crops, self.sampling_ratio).to(level.dtype)


def box_to_affine(rois: Tensor, stride: int, size: tuple[int, int]) -> Tensor:
    """The spatial transformer's parameters (..., 6) that read rotated boxes (..., 5), in pixels, from a map.

    Args:
        rois: (..., 5), rotated boxes in image pixels.
        stride: pixels per cell of the map. As in RoIAlign, cell i lies at pixel i * stride.
        size: (height, width) of the map, in cells.
    """
    cx, cy, w, h, angle = rois.unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    across, down = stride * size[1], stride * size[0]
    x, y = (2 * cx + stride) / across - 1, (2 * cy + stride) / down - 1
    return torch.stack([w * cos / across, -h * sin / across, x, w * sin / down, h * cos / down, y], dim=-1)


def upright_to_rotated(boxes: Tensor) -> Tensor:
    """(..., 5) rotated boxes of angle 0 from (..., 4) xyxy."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low, torch.zeros_like(low[..., :1])], dim=-1)
