"""The networks of YOLO (Redmon et al. 2015, https://arxiv.org/abs/1506.02640): feature maps by name, or class logits.

`yolo20` is the part of figure 3 that the paper pretrains on ImageNet (section 2.2): 20 convolutions up to stride 32, and as a
classifier an average over the last map and one fully connected layer. The four convolutions that make it the 24-layer network
belong to detection, as do the fully connected layers: `detectors.yolov1` puts them on this or any other body. `yolo9` is the
body of Fast YOLO, up to stride 64. Of that the paper says no more than "9 convolutional layers instead of 24 and fewer
filters in those layers" (section 2); the numbers here are those of its first released configuration.

Each comes with batch norm too (`yolo20_bn`, `yolo9_bn`), which the paper did not use, and without which so many layers hardly
learn from random weights. Maps are "conv1" to "conv5" (of `yolo9` to "conv7"), each the last convolution before a pooling or
the end with its leaky ReLU, and "pool1" and on.
Deviations: He et al.'s initialisation, for the paper gives none; poolings round up, which at 224 and 448 pixels changes
nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .chain import Chain, ChainClassifier, Stage, he_start
from .norms import Norm

SLOPE = 0.1  # of the leaky ReLU's negative side (equation 2)

# (kernel, channels) of each convolution, a row between two poolings; the very first has stride 2.
YOLO20 = (
    ((7, 64),),
    ((3, 192),),
    ((1, 128), (3, 256), (1, 256), (3, 512)),
    (*((1, 256), (3, 512)) * 4, (1, 512), (3, 1024)),
    ((1, 512), (3, 1024)) * 2,
)
NARROW = (((7, 16),), ((3, 32),), ((1, 32), (3, 64), (1, 32), (3, 64)), ((1, 64), (3, 128), (1, 64), (3, 128)))
YOLO9 = (((3, 16),), ((3, 32),), ((3, 64),), ((3, 128),), ((3, 256),), ((3, 512),), ((3, 1024),) * 3)


# The networks without norms take `norm` for the sake of the other builders' signature, and leave it.


def yolo20(*, norm: Norm | None = None, out_stages: Sequence[str] = ("conv5",)) -> Chain:
    """The first 20 convolutions of YOLO, 22.4 million parameters, to one map of 1024 channels at stride 32."""
    return _body(YOLO20, 2, None, out_stages)


def yolo20_bn(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[str] = ("conv5",)) -> Chain:
    """The first 20 convolutions of YOLO with a norm after each."""
    return _body(YOLO20, 2, norm, out_stages)


def yolo9(*, norm: Norm | None = None, out_stages: Sequence[str] = ("conv7",)) -> Chain:
    """The 9 convolutions of Fast YOLO, 25.2 million parameters, to one map of 1024 channels at stride 64."""
    return _body(YOLO9, 1, None, out_stages)


def yolo9_bn(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[str] = ("conv7",)) -> Chain:
    """The 9 convolutions of Fast YOLO with a norm after each."""
    return _body(YOLO9, 1, norm, out_stages)


def yolo_narrow(*, norm: Norm = nn.BatchNorm2d) -> Chain:
    """Ten narrow convolutions, with norms, to 128 channels at stride 16: for 128-pixel pictures on a CPU."""
    return _body(NARROW, 2, norm, ("conv4",))


def yolo20_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """YOLO as it is pretrained: images (224 pixels) to logits."""
    return _classifier(YOLO20, 2, None, num_classes)


def yolo20_bn_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ChainClassifier:
    """YOLO as it is pretrained, with a norm after each convolution: images to logits."""
    return _classifier(YOLO20, 2, norm, num_classes)


def yolo9_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """Fast YOLO's convolutions under the same last layers as YOLO's: images to logits."""
    return _classifier(YOLO9, 1, None, num_classes)


def yolo9_bn_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ChainClassifier:
    """Fast YOLO's convolutions with a norm after each: images to logits."""
    return _classifier(YOLO9, 1, norm, num_classes)


Rows = Sequence[Sequence[tuple[int, int]]]


def _body(rows: Rows, first_stride: int, norm: Norm | None, out_stages: Sequence[str]) -> Chain:
    body = Chain(_stages(rows, first_stride, norm), out_stages)
    he_start(body)
    return body


def _classifier(rows: Rows, first_stride: int, norm: Norm | None, num_classes: int) -> ChainClassifier:
    head = nn.Sequential(nn.Linear(rows[-1][-1][1], num_classes))
    classifier = ChainClassifier(_stages(rows, first_stride, norm), head, cells=1)
    he_start(classifier)
    return classifier


def _stages(rows: Rows, first_stride: int, norm: Norm | None) -> list[Stage]:
    """ "conv1", "pool1", "conv2" and so on: a row of convolutions each, and a max pooling between two rows."""
    stages: list[Stage] = []
    channels, stride = 3, first_stride
    for number, row in enumerate(rows, 1):
        if number > 1:
            stride *= 2
            pool = nn.MaxPool2d(2, stride=2, ceil_mode=True)  # of odd sides, too, the border is kept
            stages.append(Stage(f"pool{number - 1}", [pool], channels, stride))
        layers: list[nn.Module] = []
        for kernel, width in row:
            layers += convolution(channels, width, kernel, stride=1 if stages or layers else first_stride, norm=norm)
            channels = width
        stages.append(Stage(f"conv{number}", layers, channels, stride))
    return stages


def convolution(
    in_channels: int, channels: int, kernel: int, *, stride: int = 1, norm: Norm | None = None
) -> list[nn.Module]:
    """A convolution that pads to keep the size (but for the stride), a norm where there is one, and leaky ReLU."""
    padding = kernel // 2
    conv = nn.Conv2d(in_channels, channels, kernel, stride, padding, bias=norm is None)
    return [conv, *([] if norm is None else [norm(channels)]), nn.LeakyReLU(SLOPE, inplace=True)]
