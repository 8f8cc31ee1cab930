"""Feature pyramid (Lin et al. 2017, https://arxiv.org/abs/1612.03144): c2..c5 to p2..p5 of equal width, and above.

Parameters bear the names of torchvision's `FeaturePyramidNetwork` and `BackboneWithFPN`, so a detector's
`backbone.body.*` and `backbone.fpn.*` load unchanged.

Letters: L levels, C_i channels of c_i, C channels of every p_i.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .norms import Norm
from .protocol import Backbone, body_stages, check_backbone


class FPN(nn.Module):
    """Adds to each map what the coarser maps have seen.

    Args:
        in_channels: C_i of the maps taken, finest first.
        out_channels: C of the maps given.
        extra: levels above the last, `MaxPoolP6` or `P6P7`; None for none.
        norm: channels to a normalisation layer after each convolution; None (the paper) for none, with biases instead.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int = 256,
        *,
        extra: MaxPoolP6 | P6P7 | None = None,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = tuple(in_channels), out_channels
        self.inner_blocks = nn.ModuleList(_conv(channels, out_channels, 1, norm) for channels in in_channels)
        self.layer_blocks = nn.ModuleList(_conv(out_channels, out_channels, 3, norm) for _ in in_channels)
        self.extra_blocks = extra

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """L maps (B, C_i, H_i, W_i) to L maps (B, C, H_i, W_i) and the extra levels; heights need not halve exactly."""
        laterals = [block(feature) for block, feature in zip(self.inner_blocks, features, strict=True)]
        for i in range(len(laterals) - 1, 0, -1):
            size = laterals[i - 1].shape[-2:]
            laterals[i - 1] = laterals[i - 1] + F.interpolate(laterals[i], size=size, mode="nearest")
        pyramid = [block(lateral) for block, lateral in zip(self.layer_blocks, laterals, strict=True)]
        return pyramid if self.extra_blocks is None else pyramid + self.extra_blocks(pyramid[-1], features[-1])


def _conv(in_channels: int, out_channels: int, kernel: int, norm: Norm | None) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=norm is None)
    _initialise(conv)
    return nn.Sequential(conv) if norm is None else nn.Sequential(conv, norm(out_channels))


def _initialise(conv: nn.Conv2d) -> None:
    """Uniform with the variance of LeCun's: no ReLU follows these convolutions."""
    nn.init.kaiming_uniform_(conv.weight, a=1)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)


class MaxPoolP6(nn.Module):
    """P6 for Faster R-CNN: every second cell of P5."""

    levels = 1

    def forward(self, p5: Tensor, c5: Tensor) -> list[Tensor]:
        return [F.max_pool2d(p5, kernel_size=1, stride=2)]


class P6P7(nn.Module):
    """P6 and P7 of RetinaNet (https://arxiv.org/abs/1708.02002) and FCOS: two convolutions of stride 2.

    Args:
        channels: C of the pyramid.
        c5_channels: P6 is made from C5 of that many channels (the paper, torchvision's v2); None makes it from P5,
            which FCOS found as good, and torchvision's first RetinaNet does.
    """

    levels = 2

    def __init__(self, channels: int = 256, *, c5_channels: int | None = None) -> None:
        super().__init__()
        self.from_c5 = c5_channels is not None
        self.p6 = nn.Conv2d(c5_channels or channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            _initialise(conv)

    def forward(self, p5: Tensor, c5: Tensor) -> list[Tensor]:
        p6 = self.p6(c5 if self.from_c5 else p5)
        return [p6, self.p7(F.relu(p6))]


class BackboneWithFPN(Backbone):
    """A body and its pyramid: again a `Backbone`.

    Raises:
        ValueError: the pyramid was made for other channels than the body's.
    """

    def __init__(self, body: Backbone, fpn: FPN) -> None:
        super().__init__()
        check_backbone(body, user="BackboneWithFPN")
        if tuple(body.channels) != fpn.in_channels:
            raise ValueError(f"the pyramid takes channels {fpn.in_channels}, the body gives {tuple(body.channels)}")
        self.body, self.fpn = body, fpn
        above = 0 if fpn.extra_blocks is None else fpn.extra_blocks.levels
        self.strides = tuple(body.strides) + tuple(body.strides[-1] * 2**i for i in range(1, above + 1))
        self.channels = (fpn.out_channels,) * len(self.strides)
        self.mean, self.std = body.mean, body.std
        self.stage_prefixes = body_stages(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images to the pyramid's maps, finest first."""
        return self.fpn(self.body(images))


def with_fpn(body: Backbone, channels: int = 256, *, norm: Norm | None = None) -> BackboneWithFPN:
    """The body with Faster R-CNN's pyramid: a level for each map, and max-pooled P6."""
    return BackboneWithFPN(body, FPN(body.channels, channels, extra=MaxPoolP6(), norm=norm))
