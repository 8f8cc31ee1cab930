"""Regions cut out of the picture itself and brought to one size, whatever their shape (R-CNN, https://arxiv.org/abs/1311.2524).

Appendix A's choice: "warp" with p = 16 pixels of context. Letters: B images, K regions an image, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .boxes import full_precision

TAPS = 2  # bilinear samples a pixel and axis


class Warp(nn.Module):
    """Each region with its surroundings, stretched along each axis to S x S pixels.

    A region fills the inner S - 2 context pixels exactly; the rim around it is the picture around the region, and zero
    (the mean, of normalised pictures) where the picture ends.

    A pixel is the mean of two bilinear samples along each axis, whose distance follows the reduction: enlarged or of the
    same size, that is bilinear interpolation; reduced by 2 or by 4, the mean of all pixels that become one. From about 5
    on pixels are skipped, so pictures should not be many times larger than S.

    Args:
        size: S.
        context: width of the rim, in pixels of the result.

    Raises:
        ValueError: no room for the region between the rims.
    """

    strides = (1,)  # of the one map it takes: the picture

    def __init__(self, size: int = 227, context: int = 16) -> None:
        super().__init__()
        if context < 0 or size - 2 * context < 1:
            raise ValueError(f"context must be at least 0 and below half of size, got context {context}, size {size}")
        self.size, self.context = size, context

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Warped regions (B * K, 3, S, S).

        Args:
            features: one map, the normalised pictures (B, 3, H, W), zero beyond their valid part.
            rois: (B, K, 4), xyxy in pixels.
        """
        (images,) = features
        batch, number = rois.shape[:2]
        numbers = full_precision(images)  # half has no room for coordinates
        left, top, right, bottom = rois.to(numbers.dtype).unbind(-1)
        columns = self._places(left, right, images.shape[3])[:, :, None, :]
        rows = self._places(top, bottom, images.shape[2])[:, :, :, None]
        grid = torch.stack(torch.broadcast_tensors(columns, rows), dim=-1).flatten(1, 2)  # (B, K 2S, 2S, 2)
        taken = F.grid_sample(numbers, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        pixels = F.avg_pool2d(taken, TAPS).to(images.dtype).view(batch, -1, number, self.size, self.size)
        return pixels.transpose(1, 2).flatten(0, 1)

    def _places(self, low: Tensor, high: Tensor, length: int) -> Tensor:
        """Where to sample along one axis (B, K, 2 S), from the regions' ends (B, K): -1 and 1 are the picture's."""
        step = (high - low) / (self.size - 2 * self.context)  # pixels of the picture per pixel of the result
        pixel = torch.arange(self.size, device=low.device, dtype=low.dtype) + 0.5 - self.context
        centre = low[..., None] + step[..., None] * pixel
        apart = torch.minimum(0.5 * (step - 1), 0.25 * step).clamp(min=0)[..., None]
        return torch.stack([centre - apart, centre + apart], dim=-1).flatten(-2) * (2 / length) - 1

    def extra_repr(self) -> str:
        return f"size={self.size}, context={self.context}"
