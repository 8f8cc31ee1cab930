"""Where words and cells stand, as sines and cosines (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Positions (N,) as vectors (N, width): sines, then cosines, of wavelengths from 2 pi to 10000 * 2 pi."""
    rates = torch.exp(torch.arange(0, width, 2, device=positions.device) * (-math.log(10000.0) / width))
    angles = positions[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def grid_positions(height: int, width: int, channels: int, device: torch.device) -> Tensor:
    """Cells of any map as vectors (h * w, channels): one half tells the row, the other the column."""
    rows = sinusoids(torch.arange(height, device=device), channels // 2)
    columns = sinusoids(torch.arange(width, device=device), channels // 2)
    return torch.cat([rows.repeat_interleave(width, 0), columns.repeat(height, 1)], dim=-1)
