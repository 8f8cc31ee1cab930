"""MobileNetV2 (Sandler et al. 2018, https://arxiv.org/abs/1801.04381): feature maps c1..c5, or class logits.

Parameters bear torchvision's names, so its state dicts load unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from .fpn import BackboneWithFPN, with_fpn
from .norms import Norm
from .protocol import Backbone

# Table 2 of the paper: expansion, channels, blocks, stride.
SETTINGS = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
# Index in `features` of the last layer at each stride 2, 4, 8, 16, 32, and that layer's channels.
ENDS = {1: 1, 2: 3, 3: 6, 4: 13, 5: 18}
C2_TO_C5 = (2, 3, 4, 5)
CHANNELS = {1: 16, 2: 24, 3: 32, 4: 96, 5: 1280}
# Stages to freeze are torchvision's: each begins with a strided block, and the last 1x1 convolution is one of its own.
STAGES = {"stem": (0, 2), "stage2": (2, 4), "stage3": (4, 7), "stage4": (7, 14), "stage5": (14, 18), "last": (18, 19)}


class MobileNetV2(Backbone):
    """The body: a `Backbone` of up to five maps; c5 is the output of the last 1x1 convolution, 1280 channels.

    Args:
        norm: channels to a normalisation layer.
        out_stages: which maps to return, ascending, of 1 to 5 (strides 2 to 32). Layers above the last are not built.
        tf_padding: pad strided convolutions as TensorFlow does ("SAME": right and below only, where the size is even),
            for weights that come from there, and expect pixels x / 127.5 - 1 as those do. Such weights under symmetric
            padding see everything half a pixel off in each of five layers.
        output_stride: 32, or 16 or 8 to keep the last one or two stages at that stride with dilated convolutions
            instead (DeepLab).

    Raises:
        ValueError: `out_stages` or `output_stride` out of range.
    """

    def __init__(
        self,
        *,
        norm: Norm = nn.BatchNorm2d,
        out_stages: Sequence[int] = C2_TO_C5,
        tf_padding: bool = False,
        output_stride: int = 32,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")
        if not out_stages or list(out_stages) != sorted(set(out_stages) & ENDS.keys()):
            raise ValueError(
                f"out_stages must be ascending numbers from 1 to 5, e.g. (2, 3, 4, 5), got {tuple(out_stages)}"
            )
        if tf_padding:
            self.mean = self.std = (0.5, 0.5, 0.5)
        self.strides = tuple(min(2**stage, output_stride) for stage in out_stages)
        self.channels = tuple(CHANNELS[stage] for stage in out_stages)
        self.ends = tuple(ENDS[stage] for stage in out_stages)
        built = self.ends[-1] + 1
        self.stage_prefixes = {
            name: tuple(f"features.{i}" for i in range(start, min(stop, built)))
            for name, (start, stop) in STAGES.items()
            if start < built
        }
        conv = TFPadConv2d if tf_padding else nn.Conv2d
        self.features = nn.Sequential(*_layers(norm, conv, output_stride)[:built])
        _initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images to the maps of `out_stages`, finest first."""
        maps, x = [], images
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                maps.append(x)
        return maps


class MobileNetV2Classifier(MobileNetV2):
    """The body with average pooling and `classifier`: images to logits (B, num_classes). It gives no maps."""

    head_name = "classifier.1"

    def __init__(self, num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d, tf_padding: bool = False) -> None:
        super().__init__(norm=norm, out_stages=(5,), tf_padding=tf_padding)
        linear = nn.Linear(self.channels[-1], num_classes)
        nn.init.normal_(linear.weight, std=0.01)
        nn.init.zeros_(linear.bias)
        self.classifier = nn.Sequential(nn.Dropout(0.2), linear)
        self.strides = self.channels = ()

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        (c5,) = super().forward(images)
        return self.classifier(c5.mean((2, 3)))


class InvertedResidual(nn.Module):
    """1x1 up, depthwise 3x3, linear 1x1 down, and the shortcut where shapes allow (figure 4)."""

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        stride: int,
        expansion: int,
        norm: Norm,
        conv: type[nn.Conv2d],
        dilation: int = 1,
    ) -> None:
        super().__init__()
        width = in_channels * expansion
        expand = [] if expansion == 1 else [_conv_norm_relu(in_channels, width, 1, norm=norm)]
        depthwise = _conv_norm_relu(
            width, width, 3, stride=stride, groups=width, norm=norm, conv=conv, dilation=dilation
        )
        self.conv = nn.Sequential(*expand, depthwise, nn.Conv2d(width, channels, 1, bias=False), norm(channels))
        self.shortcut = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.shortcut else self.conv(x)


class TFPadConv2d(nn.Conv2d):
    """A 3x3 convolution, padded as by TensorFlow at stride 2: below and right of even sizes, all round odd ones."""

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == (1, 1):
            return super().forward(x)
        height, width = x.shape[-2:]
        x = F.pad(x, (width % 2, 1, height % 2, 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def _layers(norm: Norm, conv: type[nn.Conv2d], output_stride: int) -> list[nn.Module]:
    layers: list[nn.Module] = [_conv_norm_relu(3, 32, 3, stride=2, norm=norm, conv=conv)]
    in_channels, so_far, dilation = 32, 2, 1  # so_far: the stride that weights were trained at
    for expansion, channels, depth, first_stride in SETTINGS:
        so_far *= first_stride
        stride = first_stride if so_far <= output_stride else 1
        for i in range(depth):
            # Dilation makes up for strides left out so far; a stage's first block still sees the spacing before it.
            layers.append(
                InvertedResidual(
                    in_channels,
                    channels,
                    stride=stride if i == 0 else 1,
                    expansion=expansion,
                    norm=norm,
                    conv=conv,
                    dilation=dilation,
                )
            )
            in_channels, dilation = channels, max(so_far // output_stride, 1)
    return [*layers, _conv_norm_relu(in_channels, CHANNELS[5], 1, norm=norm)]


def _conv_norm_relu(
    in_channels: int,
    channels: int,
    kernel: int,
    *,
    norm: Norm,
    stride: int = 1,
    groups: int = 1,
    conv: type[nn.Conv2d] = nn.Conv2d,
    dilation: int = 1,
) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    layer = conv(in_channels, channels, kernel, stride, padding, dilation, groups=groups, bias=False)
    return nn.Sequential(layer, norm(channels), nn.ReLU6(inplace=True))


def _initialise(model: nn.Module) -> None:
    """He et al.'s normal initialisation; norms start at scale 1 and shift 0 by themselves."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")


def mobilenet_v2(
    *, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[int] = C2_TO_C5, output_stride: int = 32
) -> MobileNetV2:
    """The body with c2..c5, 2.2 million parameters."""
    return MobileNetV2(norm=norm, out_stages=out_stages, output_stride=output_stride)


def mobilenet_v2_tf(
    *, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[int] = C2_TO_C5, output_stride: int = 32
) -> MobileNetV2:
    """The body for weights from TensorFlow: its padding, and pixels from -1 to 1."""
    return MobileNetV2(norm=norm, out_stages=out_stages, tf_padding=True, output_stride=output_stride)


def mobilenet_v2_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """MobileNetV2 with p2..p6, 256 channels."""
    return with_fpn(mobilenet_v2(norm=norm))


def mobilenet_v2_tf_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """MobileNetV2 for weights from TensorFlow with p2..p6, 256 channels."""
    return with_fpn(mobilenet_v2_tf(norm=norm))


def mobilenet_v2_lite_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """MobileNetV2 with p2..p6 of 64 channels: fine-tunes on a CPU, where 256 channels cost more than the body."""
    return with_fpn(mobilenet_v2(norm=norm), 64)


def mobilenet_v2_tf_lite_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """MobileNetV2 for weights from TensorFlow with p2..p6 of 64 channels."""
    return with_fpn(mobilenet_v2_tf(norm=norm), 64)


def mobilenet_v2_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> MobileNetV2Classifier:
    """MobileNetV2: images to logits, 3.5 million parameters."""
    return MobileNetV2Classifier(num_classes, norm=norm)


def mobilenet_v2_tf_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> MobileNetV2Classifier:
    """MobileNetV2 for weights from TensorFlow: images to logits."""
    return MobileNetV2Classifier(num_classes, norm=norm, tf_padding=True)
