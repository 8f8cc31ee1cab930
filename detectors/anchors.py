"""Anchors: boxes of fixed sizes and shapes tied to the cells of feature maps.

Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .boxes import full_precision


class Anchors(nn.Module):
    """Anchors of every cell of every feature map, in the order in which torchvision's heads number them.

    Args:
        sizes: for each feature map, the sides in pixels of its square anchors, e.g. ((32,), (64,), (128,), (256,), (512,)).
        ratios: heights over widths, the same on every map.
    """

    def __init__(self, sizes: Sequence[Sequence[float]], ratios: Sequence[float]) -> None:
        super().__init__()
        self.per_cell = [len(row) * len(ratios) for row in sizes]
        self.num_levels = len(sizes)
        for level, row in enumerate(sizes):
            self.register_buffer(f"cell_{level}", cell_anchors(row, ratios), persistent=False)

    def forward(self, features: Sequence[Tensor], frame: tuple[int, int]) -> list[Tensor]:
        """Anchors of each map.

        The spacing is the frame's side over the map's, rounded down, as in torchvision: where a map's side was rounded up
        (13 cells of a coarsest level for 800 pixels), it is less than the nominal stride (61, not 64).

        Args:
            features: maps (B, C, H, W).
            frame: (height, width) in pixels of the padded images.

        Returns:
            One (H * W * A, 4) tensor a map: rows, then columns, then the A anchors of a cell.
        """
        if len(features) != self.num_levels:
            raise ValueError(f"{self.num_levels} rows of anchor sizes for {len(features)} feature maps")
        anchors = []
        for level, feature in enumerate(features):
            cell = full_precision(getattr(self, f"cell_{level}"))  # half precision rounds beyond pixel 256
            height, width = feature.shape[-2:]
            y = torch.arange(height, device=cell.device, dtype=cell.dtype) * (frame[0] // height)
            x = torch.arange(width, device=cell.device, dtype=cell.dtype) * (frame[1] // width)
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
