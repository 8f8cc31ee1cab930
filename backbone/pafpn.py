"""PAFPN, the neck of YOLOX: a feature pyramid from coarse to fine and back again (path aggregation, Liu et al. 2018,
https://arxiv.org/abs/1803.01534), with CSP layers where maps meet (Ge et al. 2021, https://arxiv.org/abs/2107.08430).

Parameters bear the names of YOLOX (https://github.com/Megvii-BaseDetection/YOLOX). Deviation: maps are enlarged to the
finer map's size, so heights need not halve exactly.

Letters: B images, C_i channels of c_i and p_i, H_i, W_i cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .csp_darknet import SIZES, ConvNormAct, CSPDarknet, CSPLayer, Size, conv3x3
from .norms import Norm
from .protocol import Backbone, body_stages, check_backbone


class PAFPN(nn.Module):
    """Adds to each of three maps what the coarser ones, and then the finer ones, have seen; channels stay as they are.

    Args:
        in_channels: C_3, C_4, C_5 of the maps, finest first.
        size: says how many blocks the CSP layers have, and whether they are depthwise.
        norm: channels to a normalisation layer.
    """

    def __init__(self, in_channels: Sequence[int], *, size: Size, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        fine, middle, coarse = self.in_channels = tuple(in_channels)

        def csp(channels_in: int, channels: int) -> CSPLayer:
            return CSPLayer(channels_in, channels, size.blocks(3), depthwise=size.depthwise, norm=norm, shortcut=False)

        self.lateral_conv0 = ConvNormAct(coarse, middle, 1, norm=norm)
        self.C3_p4 = csp(2 * middle, middle)
        self.reduce_conv1 = ConvNormAct(middle, fine, 1, norm=norm)
        self.C3_p3 = csp(2 * fine, fine)
        self.bu_conv2 = conv3x3(fine, fine, size.depthwise, norm=norm, stride=2)
        self.C3_n3 = csp(2 * fine, middle)
        self.bu_conv1 = conv3x3(middle, middle, size.depthwise, norm=norm, stride=2)
        self.C3_n4 = csp(2 * middle, coarse)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """c3, c4, c5 (B, C_i, H_i, W_i) to p3, p4, p5 of the same shapes."""
        c3, c4, c5 = features
        top = self.lateral_conv0(c5)
        middle = self.reduce_conv1(self.C3_p4(_join(top, c4)))
        p3 = self.C3_p3(_join(middle, c3))
        p4 = self.C3_n3(torch.cat([self.bu_conv2(p3), middle], dim=1))
        return [p3, p4, self.C3_n4(torch.cat([self.bu_conv1(p4), top], dim=1))]


def _join(coarse: Tensor, fine: Tensor) -> Tensor:
    """The channels of both in the finer one's cells."""
    return torch.cat([F.interpolate(coarse, size=fine.shape[-2:], mode="nearest"), fine], dim=1)


class BackboneWithPAFPN(Backbone):
    """A body of three maps and its PAFPN: again a `Backbone`, of the same strides and channels.

    Raises:
        ValueError: the body does not give three maps, or the neck was made for other channels than the body's.
    """

    def __init__(self, body: Backbone, fpn: PAFPN) -> None:
        super().__init__()
        check_backbone(body, user="BackboneWithPAFPN", maps=3)
        if tuple(body.channels) != fpn.in_channels:
            raise ValueError(f"the neck takes channels {fpn.in_channels}, the body gives {tuple(body.channels)}")
        self.body, self.fpn = body, fpn
        self.strides, self.channels = tuple(body.strides), tuple(body.channels)
        self.mean, self.std = body.mean, body.std
        self.stage_prefixes = body_stages(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images to p3, p4, p5."""
        return self.fpn(self.body(images))


def _with_pafpn(size: Size, norm: Norm) -> BackboneWithPAFPN:
    body = CSPDarknet(size, norm=norm)
    return BackboneWithPAFPN(body, PAFPN(body.channels, size=size, norm=norm))


def csp_darknet_nano_pafpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithPAFPN:
    """YOLOX-nano without its head: p3..p5 of 64, 128 and 256 channels."""
    return _with_pafpn(SIZES["nano"], norm)


def csp_darknet_tiny_pafpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithPAFPN:
    """YOLOX-tiny without its head: p3..p5 of 96, 192 and 384 channels."""
    return _with_pafpn(SIZES["tiny"], norm)


def csp_darknet_s_pafpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithPAFPN:
    """YOLOX-s without its head: p3..p5 of 128, 256 and 512 channels."""
    return _with_pafpn(SIZES["s"], norm)


def csp_darknet_m_pafpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithPAFPN:
    """YOLOX-m without its head: p3..p5 of 192, 384 and 768 channels."""
    return _with_pafpn(SIZES["m"], norm)


def csp_darknet_l_pafpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithPAFPN:
    """YOLOX-l without its head: p3..p5 of 256, 512 and 1024 channels."""
    return _with_pafpn(SIZES["l"], norm)


def csp_darknet_x_pafpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithPAFPN:
    """YOLOX-x without its head: p3..p5 of 320, 640 and 1280 channels."""
    return _with_pafpn(SIZES["x"], norm)
