"""Pixels to what a network was trained on: the first layer of every model, so that a checkpoint is complete in itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(images / 255 - mean) / std on the device, and one value in the padding.

    Args:
        mean, std: three numbers each, of RGB in [0, 1].
        padding: the grey, 0 to 255, that padding is taken for; None for what normalises to zero, torchvision's detectors' way.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float], padding: float | None = None) -> None:
        super().__init__()
        self.padding = padding
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1))

    def adopt(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Takes other constants, such as those of one's own pictures, for a network that starts from random weights.

        Raises:
            ValueError: not three of each, or a deviation that is not positive.
        """
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise ValueError(f"need three means and three positive deviations (RGB), got {list(mean)} and {list(std)}")
        self.mean.copy_(torch.tensor(mean).view(3, 1, 1))
        self.std.copy_(torch.tensor(std).view(3, 1, 1))

    def forward(self, images: Tensor, sizes: Tensor) -> Tensor:
        """(B, 3, H, W) floats from (B, 3, H, W) RGB, uint8 or float in 0..255; sizes (B, 2) are the valid (height, width)."""
        channels, height, width = images.shape[1:]
        # Over rows of W x 3 numbers, as they lie in memory: over a last dimension of 3 a CPU takes two to three times as long.
        rows = images.contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(2)
        mean, std = (value.flatten().repeat(width) for value in (self.mean, self.std))
        normalized = rows.to(mean.dtype, copy=True).div_(255).sub_(mean).div_(std)
        padding = 0.0 if self.padding is None else (self.padding / 255 - mean) / std
        above = torch.arange(height, device=images.device) < sizes[:, 0, None]
        left = torch.arange(channels * width, device=images.device) < channels * sizes[:, 1, None]
        normalized = torch.where(above[:, :, None] & left[:, None], normalized, padding)
        return normalized.unflatten(2, (width, channels)).permute(0, 3, 1, 2)
