"""Anchors: boxes of fixed sizes and shapes tied to the cells of feature maps (Faster R-CNN, https://arxiv.org/abs/1506.01497, 3.1.1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Anchors(nn.Module):
    """Anchors of every cell of every feature map, in the order in which torchvision's heads number them.

    Args:
        sizes: for each feature map, the sides in pixels of its square anchors, e.g. ((32,), (64,), (128,), (256,), (512,)).
        ratios: heights over widths, the same on every map.
        strides: pixels per cell of each map.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float], strides: Sequence[int]) -> None:
        super().__init__()
        if len(sizes) != len(strides):
            raise ValueError(f"{len(sizes)} rows of anchor sizes for {len(strides)} feature maps (strides {tuple(strides)})")
        self.strides = tuple(strides)
        self.per_cell = [len(row) * len(ratios) for row in sizes]
        self.num_levels = len(sizes)
        for level, row in enumerate(sizes):
            self.register_buffer(f"cell_{level}", cell_anchors(row, ratios), persistent=False)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """One (H * W * A, 4) float32 tensor a map (B, C, H, W): rows, then columns, then the A anchors of a cell."""
        anchors = []
        for level, (feature, stride) in enumerate(zip(features, self.strides, strict=True)):
            cell: Tensor = getattr(self, f"cell_{level}")
            height, width = feature.shape[-2:]
            y = torch.arange(height, device=cell.device, dtype=cell.dtype) * stride
            x = torch.arange(width, device=cell.device, dtype=cell.dtype) * stride
            y, x = torch.meshgrid(y, x, indexing="ij")
            corners = torch.stack([x, y, x, y], dim=-1)
            anchors.append((corners[:, :, None] + cell).view(-1, 4))
        return anchors


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> Tensor:
    """(len(ratios) * len(sizes), 4) boxes around the origin, rounded to whole pixels; ratios vary slowest."""
    roots = torch.tensor(ratios, dtype=torch.float32).sqrt()
    sides = torch.tensor(sizes, dtype=torch.float32)
    height, width = (roots[:, None] * sides).flatten(), ((1 / roots)[:, None] * sides).flatten()
    return (torch.stack([-width, -height, width, height], dim=1) / 2).round()
