"""ResNet (He et al. 2015, https://arxiv.org/abs/1512.03385): feature maps c1..c5, or class logits.

Parameters bear torchvision's names, so its state dicts load unchanged. As there, a bottleneck's stride sits in its 3x3
convolution ("v1.5"), not in the first 1x1. Deviation: basic blocks may be dilated, which torchvision refuses.

A family of networks is two classes: the body, which is a `Backbone`, and the classifier, the same body with pooling
and a last layer under the same names.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .fpn import FPN, BackboneWithFPN, with_fpn
from .norms import Norm
from .protocol import Backbone


class ResNet(Backbone):
    """The body: a `Backbone` of up to five maps.

    Args:
        block: `BasicBlock` or `Bottleneck`.
        depths: blocks in each of the four stages.
        width: channels of the stem; stage i has width * 2^i * block.expansion.
        norm: channels to a normalisation layer.
        out_stages: which maps to return, ascending, of 1 (after the first convolution, stride 2) to 5. Stages above
            the last are not built.
        output_stride: 32, or 16 or 8 to keep the last one or two stages at that stride with dilated convolutions
            instead (c5 of FCN, R-FCN and DeepLab).
        zero_init: start each residual branch at zero (https://arxiv.org/abs/1706.02677, section 5.1).

    Raises:
        ValueError: `out_stages` or `output_stride` out of range.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        *,
        width: int = 64,
        norm: Norm = nn.BatchNorm2d,
        out_stages: Sequence[int] = (2, 3, 4, 5),
        output_stride: int = 32,
        zero_init: bool = False,
    ) -> None:
        super().__init__()
        _check(out_stages, output_stride)
        self.out_stages = tuple(out_stages)
        channels = [width] + [width * 2**i * block.expansion for i in range(4)]
        strides = [2] + [min(4 * 2**i, output_stride) for i in range(4)]
        self.channels = tuple(channels[stage - 1] for stage in out_stages)
        self.strides = tuple(strides[stage - 1] for stage in out_stages)
        self._channels, self._strides = channels, strides  # of c1..c5
        last = out_stages[-1]
        self.stage_prefixes = {"stem": ("conv1", "bn1")} | {f"layer{i}": (f"layer{i}",) for i in range(1, last)}

        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        stages = []
        for i, depth in enumerate(depths):
            built = depth if i + 2 <= last else 0  # a stage of no blocks is the identity
            stride = 1 if i == 0 else strides[i + 1] // strides[i]
            # Dilation makes up for strides left out so far; a stage's first block still sees the spacing before it.
            before, dilation = 2 * 2**i // strides[i], 4 * 2**i // strides[i + 1]
            stages.append(_stage(block, channels[i], width * 2**i, built, stride, (before, dilation), norm))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        _initialise(self, zero_init)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images to the maps of `out_stages`, finest first."""
        c1 = self.relu(self.bn1(self.conv1(images)))
        c2 = self.layer1(self.maxpool(c1))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        maps = (c1, c2, c3, c4, c5)
        return [maps[stage - 1] for stage in self.out_stages]

    def take_last_stage(self) -> nn.Sequential:
        """Takes layer4 off a body that ends in c5, which then gives c4 alone: for heads that apply it to regions."""
        if self.out_stages[-1] != 5:
            raise ValueError(f"only a body that ends in stage 5 has layer4 to give; this one has {self.out_stages}")
        stage, self.layer4 = self.layer4, nn.Sequential()
        self.out_stages, self.strides, self.channels = (4,), (self._strides[3],), (self._channels[3],)
        del self.stage_prefixes["layer4"]
        return stage


class ResNetClassifier(ResNet):
    """The body with average pooling and a last layer `fc`: images to logits (B, num_classes). It gives no maps."""

    head_name = "fc"

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        depths: Sequence[int],
        num_classes: int = 1000,
        *,
        norm: Norm = nn.BatchNorm2d,
        zero_init: bool = False,
    ) -> None:
        super().__init__(block, depths, norm=norm, out_stages=(5,), zero_init=zero_init)
        self.fc = nn.Linear(self.channels[-1], num_classes)
        self.strides = self.channels = ()

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        (c5,) = super().forward(images)
        return self.fc(c5.mean((2, 3)))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and the shortcut around them (ResNet-18 and 34).

    `dilations` are those of the grid coming in and of the one going out; they differ where a stride was left out.
    """

    expansion = 1

    def __init__(self, in_channels: int, width: int, *, stride: int, dilations: tuple[int, int], norm: Norm) -> None:
        super().__init__()
        before, after = dilations
        self.conv1 = nn.Conv2d(in_channels, width, 3, stride, before, before, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, after, after, bias=False)
        self.bn2 = norm(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, width, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1 down, 3x3, 1x1 up, and the shortcut around them (ResNet-50, 101 and 152)."""

    expansion = 4

    def __init__(self, in_channels: int, width: int, *, stride: int, dilations: tuple[int, int], norm: Norm) -> None:
        super().__init__()
        before, _ = dilations
        channels = width * self.expansion
        self.conv1 = nn.Conv2d(in_channels, width, 1, bias=False)
        self.bn1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, before, before, bias=False)
        self.bn2 = norm(width)
        self.conv3 = nn.Conv2d(width, channels, 1, bias=False)
        self.bn3 = norm(channels)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(in_channels, channels, stride, norm)

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return self.relu(out + (x if self.downsample is None else self.downsample(x)))


def _shortcut(in_channels: int, channels: int, stride: int, norm: Norm) -> nn.Sequential | None:
    if stride == 1 and in_channels == channels:
        return None
    return nn.Sequential(nn.Conv2d(in_channels, channels, 1, stride, bias=False), norm(channels))


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    depth: int,
    stride: int,
    dilations: tuple[int, int],
    norm: Norm,
) -> nn.Sequential:
    """`depth` blocks; the first takes the stride, or the step from one dilation to the next."""
    blocks = []
    for i in range(depth):
        first = i == 0
        channels = in_channels if first else width * block.expansion
        spacing = dilations if first else (dilations[1], dilations[1])
        blocks.append(block(channels, width, stride=stride if first else 1, dilations=spacing, norm=norm))
    return nn.Sequential(*blocks)


def _initialise(model: nn.Module, zero_init: bool) -> None:
    """He et al.'s normal initialisation for what ReLU follows; norms start at scale 1 and shift 0 by themselves."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif zero_init and isinstance(module, (BasicBlock, Bottleneck)):
            nn.init.zeros_(module.bn3.weight if isinstance(module, Bottleneck) else module.bn2.weight)


def _check(out_stages: Sequence[int], output_stride: int) -> None:
    if not out_stages or list(out_stages) != sorted(set(out_stages)) or not set(out_stages) <= {1, 2, 3, 4, 5}:
        raise ValueError(
            f"out_stages must be ascending numbers from 1 to 5, e.g. (2, 3, 4, 5), got {tuple(out_stages)}"
        )
    if output_stride not in (8, 16, 32):
        raise ValueError(f"output_stride must be 8, 16 or 32, got {output_stride}")


C2_TO_C5 = (2, 3, 4, 5)


def resnet18(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[int] = C2_TO_C5, output_stride: int = 32) -> ResNet:
    """ResNet-18's body, 11 million parameters."""
    return ResNet(BasicBlock, (2, 2, 2, 2), norm=norm, out_stages=out_stages, output_stride=output_stride)


def resnet34(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[int] = C2_TO_C5, output_stride: int = 32) -> ResNet:
    """ResNet-34's body, 21 million parameters."""
    return ResNet(BasicBlock, (3, 4, 6, 3), norm=norm, out_stages=out_stages, output_stride=output_stride)


def resnet50(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[int] = C2_TO_C5, output_stride: int = 32) -> ResNet:
    """ResNet-50's body, 24 million parameters."""
    return ResNet(Bottleneck, (3, 4, 6, 3), norm=norm, out_stages=out_stages, output_stride=output_stride)


def resnet101(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[int] = C2_TO_C5, output_stride: int = 32) -> ResNet:
    """ResNet-101's body, 43 million parameters."""
    return ResNet(Bottleneck, (3, 4, 23, 3), norm=norm, out_stages=out_stages, output_stride=output_stride)


def resnet152(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[int] = C2_TO_C5, output_stride: int = 32) -> ResNet:
    """ResNet-152's body, 58 million parameters."""
    return ResNet(Bottleneck, (3, 8, 36, 3), norm=norm, out_stages=out_stages, output_stride=output_stride)


def resnet18_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """ResNet-18 with p2..p6, 256 channels."""
    return with_fpn(resnet18(norm=norm))


def resnet34_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """ResNet-34 with p2..p6, 256 channels."""
    return with_fpn(resnet34(norm=norm))


def resnet50_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """ResNet-50 with p2..p6, 256 channels."""
    return with_fpn(resnet50(norm=norm))


def resnet101_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """ResNet-101 with p2..p6, 256 channels."""
    return with_fpn(resnet101(norm=norm))


def resnet152_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """ResNet-152 with p2..p6, 256 channels."""
    return with_fpn(resnet152(norm=norm))


def resnet18_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ResNetClassifier:
    """ResNet-18: images to logits."""
    return ResNetClassifier(BasicBlock, (2, 2, 2, 2), num_classes, norm=norm)


def resnet34_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ResNetClassifier:
    """ResNet-34: images to logits."""
    return ResNetClassifier(BasicBlock, (3, 4, 6, 3), num_classes, norm=norm)


def resnet50_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ResNetClassifier:
    """ResNet-50: images to logits."""
    return ResNetClassifier(Bottleneck, (3, 4, 6, 3), num_classes, norm=norm)


def resnet101_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ResNetClassifier:
    """ResNet-101: images to logits."""
    return ResNetClassifier(Bottleneck, (3, 4, 23, 3), num_classes, norm=norm)


def resnet152_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ResNetClassifier:
    """ResNet-152: images to logits."""
    return ResNetClassifier(Bottleneck, (3, 8, 36, 3), num_classes, norm=norm)


def resnet50_fpn_v2(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """ResNet-50 with p2..p6 and norms in the pyramid too: the body of torchvision's `fasterrcnn_resnet50_fpn_v2`."""
    return with_fpn(resnet50(norm=norm), norm=norm)


def resnet10_narrow(*, norm: Norm = nn.BatchNorm2d) -> ResNet:
    """One basic block a stage and a quarter of the width: for 128-pixel pictures on a CPU."""
    return ResNet(BasicBlock, (1, 1, 1, 1), width=16, norm=norm)


def resnet10_narrow_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """ResNet-10 of a quarter of the width with p2..p5 of 64 channels."""
    body = resnet10_narrow(norm=norm)
    return BackboneWithFPN(body, FPN(body.channels, 64))
