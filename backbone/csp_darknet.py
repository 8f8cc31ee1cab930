"""CSPDarknet (Ge et al. 2021, https://arxiv.org/abs/2107.08430, section 2.1; cross-stage partial layers of Wang et al. 2019,
https://arxiv.org/abs/1911.11929): the body of YOLOX, maps c3..c5 at strides 8, 16 and 32.

Parameters bear the names of YOLOX (https://github.com/Megvii-BaseDetection/YOLOX). It takes pixels from 0 to 255 as they
are, and its convolutions start as PyTorch makes them. Deviation: a picture of odd height or width is padded by a row or
column of zeros, where the reference refuses it.

Letters: B images, C channels, H, W cells.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .norms import Norm
from .protocol import Backbone

# Of every norm in the body, the neck and the head.
EPS, MOMENTUM = 1e-3, 0.03


class Size(NamedTuple):
    """How far a network is from the "l" size: factors of its blocks' number and of its channels.

    `depthwise` convolutions stand in for most 3x3 ones in the smallest.
    """

    depth: float
    width: float
    depthwise: bool = False

    def channels(self, full: int) -> int:
        """So many channels as `full` ones of the "l" size become."""
        return int(full * self.width)

    def blocks(self, full: int) -> int:
        """So many blocks as `full` ones of the "l" size become: at least one."""
        return max(round(full * self.depth), 1)


SIZES = {
    "nano": Size(0.33, 0.25, depthwise=True),
    "tiny": Size(0.33, 0.375),
    "s": Size(0.33, 0.5),
    "m": Size(0.67, 0.75),
    "l": Size(1.0, 1.0),
    "x": Size(1.33, 1.25),
}


class CSPDarknet(Backbone):
    """The body: a `Backbone` of three maps.

    Args:
        size: one of `SIZES`.
        norm: channels to a normalisation layer; its epsilon and momentum become YOLOX's.
    """

    mean, std = (0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255)

    def __init__(self, size: Size, *, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        widths = [size.channels(full) for full in (64, 128, 256, 512, 1024)]
        self.stem = Focus(3, widths[0], norm=norm)
        self.dark2 = _stage(widths[0], widths[1], size.blocks(3), size.depthwise, norm)
        self.dark3 = _stage(widths[1], widths[2], size.blocks(9), size.depthwise, norm)
        self.dark4 = _stage(widths[2], widths[3], size.blocks(9), size.depthwise, norm)
        self.dark5 = _last_stage(widths[3], widths[4], size.blocks(3), size.depthwise, norm)
        self.strides, self.channels = (8, 16, 32), tuple(widths[2:])
        self.stage_prefixes = {name: (name,) for name in ("stem", "dark2", "dark3", "dark4", "dark5")}

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) pixels to maps at strides 8, 16 and 32."""
        c3 = self.dark3(self.dark2(self.stem(images)))
        c4 = self.dark4(c3)
        return [c3, c4, self.dark5(c4)]


class Focus(nn.Module):
    """Each square of four pixels becomes one cell of twelve channels, without loss; then a convolution."""

    def __init__(self, in_channels: int, channels: int, *, norm: Norm) -> None:
        super().__init__()
        self.conv = ConvNormAct(4 * in_channels, channels, 3, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) to (B, C, ceil(H / 2), ceil(W / 2))."""
        height, width = x.shape[-2:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        upper, lower = x[..., ::2, :], x[..., 1::2, :]
        return self.conv(torch.cat([upper[..., ::2], lower[..., ::2], upper[..., 1::2], lower[..., 1::2]], dim=1))


class ConvNormAct(nn.Module):
    """A convolution that keeps the size (or halves it at stride 2), a norm, and SiLU."""

    def __init__(
        self, in_channels: int, channels: int, kernel: int, *, norm: Norm, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = norm(channels)
        self.bn.eps = EPS
        if isinstance(self.bn, _BatchNorm):
            self.bn.momentum = MOMENTUM

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.bn(self.conv(x)), inplace=True)


class DepthwiseConv(nn.Module):
    """A 3x3 convolution in two: each channel by itself, then all of them cell by cell (MobileNet's)."""

    def __init__(self, in_channels: int, channels: int, *, norm: Norm, stride: int = 1) -> None:
        super().__init__()
        self.dconv = ConvNormAct(in_channels, in_channels, 3, norm=norm, stride=stride, groups=in_channels)
        self.pconv = ConvNormAct(in_channels, channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        return self.pconv(self.dconv(x))


def conv3x3(in_channels: int, channels: int, depthwise: bool, *, norm: Norm, stride: int = 1) -> nn.Module:
    """A 3x3 convolution, or the depthwise pair that stands in for it in the smallest network."""
    if depthwise:
        return DepthwiseConv(in_channels, channels, norm=norm, stride=stride)
    return ConvNormAct(in_channels, channels, 3, norm=norm, stride=stride)


class CSPLayer(nn.Module):
    """Half the channels go through the blocks, the other half goes round them.

    Args:
        in_channels, channels: taken and given.
        blocks: bottlenecks one after another.
        depthwise: of their 3x3 convolutions.
        shortcut: whether each bottleneck adds its input to its output; those of the neck do not.
    """

    def __init__(
        self, in_channels: int, channels: int, blocks: int, *, depthwise: bool, norm: Norm, shortcut: bool
    ) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNormAct(in_channels, half, 1, norm=norm)
        self.conv2 = ConvNormAct(in_channels, half, 1, norm=norm)
        self.conv3 = ConvNormAct(2 * half, channels, 1, norm=norm)
        self.m = nn.Sequential(*[Bottleneck(half, depthwise, norm, shortcut) for _ in range(blocks)])

    def forward(self, x: Tensor) -> Tensor:
        through, around = self.conv1(x), self.conv2(x)
        return self.conv3(torch.cat([self.m(through), around], dim=1))


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution of the same number of channels, and a shortcut."""

    def __init__(self, channels: int, depthwise: bool, norm: Norm, shortcut: bool) -> None:
        super().__init__()
        self.conv1 = ConvNormAct(channels, channels, 1, norm=norm)
        self.conv2 = conv3x3(channels, channels, depthwise, norm=norm)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class SPP(nn.Module):
    """Spatial pyramid pooling (He et al. 2014, https://arxiv.org/abs/1406.4729): each cell also sees the maxima around it."""

    def __init__(self, channels: int, *, norm: Norm) -> None:
        super().__init__()
        half = channels // 2
        self.conv1 = ConvNormAct(channels, half, 1, norm=norm)
        self.m = nn.ModuleList(nn.MaxPool2d(kernel, stride=1, padding=kernel // 2) for kernel in (5, 9, 13))
        self.conv2 = ConvNormAct(4 * half, channels, 1, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pool(x) for pool in self.m)], dim=1))


def _stage(in_channels: int, channels: int, blocks: int, depthwise: bool, norm: Norm) -> nn.Sequential:
    """A convolution of stride 2 and a CSP layer."""
    csp = CSPLayer(channels, channels, blocks, depthwise=depthwise, norm=norm, shortcut=True)
    return nn.Sequential(conv3x3(in_channels, channels, depthwise, norm=norm, stride=2), csp)


def _last_stage(in_channels: int, channels: int, blocks: int, depthwise: bool, norm: Norm) -> nn.Sequential:
    """A convolution of stride 2, the pooling, and a CSP layer without shortcuts."""
    csp = CSPLayer(channels, channels, blocks, depthwise=depthwise, norm=norm, shortcut=False)
    halving = conv3x3(in_channels, channels, depthwise, norm=norm, stride=2)
    return nn.Sequential(halving, SPP(channels, norm=norm), csp)


def csp_darknet_nano(*, norm: Norm = nn.BatchNorm2d) -> CSPDarknet:
    """The body of YOLOX-nano, depthwise: c3..c5 of 64, 128 and 256 channels."""
    return CSPDarknet(SIZES["nano"], norm=norm)


def csp_darknet_tiny(*, norm: Norm = nn.BatchNorm2d) -> CSPDarknet:
    """The body of YOLOX-tiny: c3..c5 of 96, 192 and 384 channels."""
    return CSPDarknet(SIZES["tiny"], norm=norm)


def csp_darknet_s(*, norm: Norm = nn.BatchNorm2d) -> CSPDarknet:
    """The body of YOLOX-s: c3..c5 of 128, 256 and 512 channels."""
    return CSPDarknet(SIZES["s"], norm=norm)


def csp_darknet_m(*, norm: Norm = nn.BatchNorm2d) -> CSPDarknet:
    """The body of YOLOX-m: c3..c5 of 192, 384 and 768 channels."""
    return CSPDarknet(SIZES["m"], norm=norm)


def csp_darknet_l(*, norm: Norm = nn.BatchNorm2d) -> CSPDarknet:
    """The body of YOLOX-l: c3..c5 of 256, 512 and 1024 channels."""
    return CSPDarknet(SIZES["l"], norm=norm)


def csp_darknet_x(*, norm: Norm = nn.BatchNorm2d) -> CSPDarknet:
    """The body of YOLOX-x: c3..c5 of 320, 640 and 1280 channels."""
    return CSPDarknet(SIZES["x"], norm=norm)
