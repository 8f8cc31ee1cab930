"""What an FCN has between a backbone's coarsest map and the scores: a classifier's fc6 and fc7 as convolutions (Long et al. 2015,
https://arxiv.org/abs/1411.4038, section 4.1), or where it has no such layers, one 3x3 convolution.

Letters: B images, h, w cells of the map.
"""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import norm_layer
from ..detectors.wide_head import fully_connected, wide_head

WIDE = 4096  # the classifiers' own
SMALL, SMALL_DROPOUT = 512, 0.1


def head_of(backbone: str, channels: int, width: int | None, norm: str, weights: str | None) -> WideHead | SmallHead:
    """The classifier's own layers where it has such, from the backbone's weights where these hold them."""
    if fully_connected(backbone) is None:
        # A norm that is frozen at its start would be none.
        return SmallHead(channels, width or SMALL, "batch" if norm.startswith("frozen") else norm)
    linear = wide_head(backbone, channels, width or WIDE, weights=weights)
    return WideHead(linear.fc6, linear.fc7, linear.bins, linear.dropout.p)


class WideHead(nn.Module):
    """fc6 and fc7 of a classifier as convolutions, with their dropout.

    Args:
        fc6: of flattened maps (channels, cells, cells).
        fc7: of fc6's outputs.
        cells: height and width that fc6 sees.
        dropout: behind each.

    Attributes:
        width: channels that come out.
        shift: cells that what is seen lies off the cell that it is said of: half a one, if `cells` is even.
    """

    def __init__(self, fc6: nn.Linear, fc7: nn.Linear, cells: int, dropout: float) -> None:
        super().__init__()
        self.fc6, self.fc7 = _convolution(fc6, cells), _convolution(fc7, 1)
        self.dropout, self.cells, self.width = nn.Dropout(dropout), cells, fc7.out_features
        self.shift = Fraction((cells - 1) - 2 * (cells // 2), 2)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, width, h, w)."""
        before, after = self.cells // 2, (self.cells - 1) // 2
        x = F.relu(self.fc6(F.pad(x, (before, after, before, after))))
        return self.dropout(F.relu(self.fc7(self.dropout(x))))


def _convolution(linear: nn.Linear, cells: int) -> nn.Conv2d:
    """The same weights as a convolution of cells x cells: flattening goes by channel, row, column."""
    channels = linear.in_features // cells**2
    with torch.device("meta"):
        conv = nn.Conv2d(channels, linear.out_features, cells)
    conv.weight = nn.Parameter(linear.weight.detach().view(-1, channels, cells, cells))
    conv.bias = nn.Parameter(linear.bias.detach())
    return conv


class SmallHead(nn.Sequential):
    """A 3x3 convolution, a norm, ReLU and dropout: (B, channels, h, w) to (B, width, h, w)."""

    shift = Fraction(0)

    def __init__(self, channels: int, width: int, norm: str) -> None:
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        super().__init__(conv, norm_layer(norm)(width), nn.ReLU(inplace=True), nn.Dropout(SMALL_DROPOUT))
        self.width = width
