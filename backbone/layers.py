"""Layers that torch does not have as modules: DropConnect, Maxout, and a transposed convolution that starts as bilinear
interpolation. Torch's kernels do the arithmetic.

What torch has is not wrapped: inverted dropout is `nn.Dropout`, dilated and 1x1 convolutions are `nn.Conv2d`, the modes
of batch norm are in `norms.py`.

Letters: B images, C channels or features, H, W cells, K pieces of a maxout unit, S stride.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class DropConnectLinear(nn.Linear):
    """A fully connected layer that drops weights instead of units in training (Wan et al. 2013,
    http://proceedings.mlr.press/v28/wan13.html).

    Inverted, as `nn.Dropout`: the weights kept are divided by 1 - p, so evaluation is the plain linear layer. Deviations:
    one mask serves a whole batch where the paper draws one for each picture (B times the memory); the bias is kept;
    evaluation takes the mean of the output where the paper samples a Gaussian.

    Args:
        in_features, out_features: C of what comes in and goes out.
        p: the share of weights that is dropped, in [0, 1).
        bias: add one.

    Raises:
        ValueError: `p` is out of range.
    """

    def __init__(self, in_features: int, out_features: int, *, p: float = 0.5, bias: bool = True) -> None:
        if not 0 <= p < 1:
            raise ValueError(f"the share of weights to drop must be in [0, 1), got p={p}")
        super().__init__(in_features, out_features, bias=bias)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.dropout(self.weight, self.p, self.training), self.bias)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, p={self.p}"


class Maxout(nn.Module):
    """The largest of K channels that lie side by side (Goodfellow et al. 2013, https://arxiv.org/abs/1302.4389, eq. 1).

    Channel c of the output is the largest of channels cK to cK + K - 1. It follows a linear layer or a convolution with K
    times the channels: `nn.Sequential(nn.Conv2d(64, 128 * 2, 3), Maxout(2))`, or `maxout_linear`, `maxout_conv`.

    Args:
        pieces: K, at least 2 to be of use.

    Raises:
        ValueError: no pieces; on a call, channels that are no multiple of K.
    """

    def __init__(self, pieces: int) -> None:
        super().__init__()
        if pieces < 1:
            raise ValueError(f"a maxout unit needs at least one piece, got {pieces}")
        self.pieces = pieces

    def forward(self, x: Tensor) -> Tensor:
        """(B, C * K, ...) to (B, C, ...)."""
        if x.shape[1] % self.pieces:
            raise ValueError(f"{x.shape[1]} channels cannot be shared among maxout units of {self.pieces} pieces")
        return x.unflatten(1, (-1, self.pieces)).amax(2)

    def extra_repr(self) -> str:
        return f"pieces={self.pieces}"


def maxout_linear(in_features: int, out_features: int, *, pieces: int = 2) -> nn.Sequential:
    """A fully connected maxout layer: `pieces` linear maps, the largest of each."""
    return nn.Sequential(nn.Linear(in_features, out_features * pieces), Maxout(pieces))


def maxout_conv(
    in_channels: int, out_channels: int, kernel_size: int, *, pieces: int = 2, stride: int = 1, padding: int = 0
) -> nn.Sequential:
    """A convolutional maxout layer: `pieces` convolutions, the largest of each cell."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels * pieces, kernel_size, stride, padding), Maxout(pieces))


class BilinearUpsample(nn.ConvTranspose2d):
    """A transposed convolution that starts as bilinear interpolation (FCN, Long et al. 2015,
    https://arxiv.org/abs/1411.4038, section 3.3): (B, C, H, W) to (B, C, H * S, W * S), or with `align_corners` to
    (B, C, (H - 1) * S + 1, (W - 1) * S + 1).

    Each channel (of a score map: each class) has its own kernel. Before any training the output is that of `F.interpolate`,
    except, without `align_corners`, within S / 2 of the border, where this one fades towards zero.

    Args:
        channels: C.
        stride: S, any whole number from 1.
        learned: train the kernels; else they are a buffer, which no optimiser and no thawing touches.
        align_corners: cell i comes to lie on pixel i * S, as after odd kernels of stride S, and not in the middle of the S
            pixels from i * S on, as after pooling of S pixels.

    Raises:
        ValueError: `stride` below 1.
    """

    def __init__(self, channels: int, stride: int, *, learned: bool = True, align_corners: bool = False) -> None:
        if stride < 1:
            raise ValueError(f"the stride of an upsampling must be at least 1, got {stride}")
        size = 2 * stride - 1 if align_corners else 2 * stride - stride % 2
        padding = stride - 1 if align_corners else (size - stride) // 2
        super().__init__(channels, channels, size, stride, padding, groups=channels, bias=False)
        if not learned:
            weight = self.weight.detach()
            del self.weight
            self.register_buffer("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Bilinear interpolation again; nothing random."""
        with torch.no_grad():
            self.weight.copy_(bilinear_kernel(self.stride[0], self.kernel_size[0]))


def bilinear_kernel(stride: int, size: int | None = None) -> Tensor:
    """(k, k): the weights with which a transposed convolution interpolates; k = 2S for an even stride S, else 2S - 1.

    Those that meet in one output cell add up to 1. Of an even stride, too, `size` may be 2S - 1: then a cell of the output
    lies where each of the input does.
    """
    size = 2 * stride - stride % 2 if size is None else size
    distance = (torch.arange(size) - (size - 1) / 2).abs()
    ramp = 1 - distance / stride
    return ramp[:, None] * ramp
