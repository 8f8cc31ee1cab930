"""VGG (Simonyan and Zisserman 2014, https://arxiv.org/abs/1409.1556): feature maps by name, or class logits.

Configurations A, B, D and E of table 1, with 11, 13, 16 and 19 layers, each with and without batch norm, which the paper
did not know. Parameters bear torchvision's names, so its state dicts load unchanged.

Maps are "conv1" to "conv5" (a block's last convolution and its ReLU, strides 1 to 16) and "pool1" to "pool5" (the
max pooling after it, strides 2 to 32). Detectors take conv5 (conv5_3 of VGG-16), FCN pool3, pool4 and pool5.
Deviation: He et al.'s initialisation, which starts all depths alike; the paper grew the deep ones out of VGG-11.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .chain import Chain, ChainClassifier, Stage, he_start
from .norms import Norm

CHANNELS = (64, 128, 256, 512, 512)
# Convolutions in each of the five blocks.
A, B, D, E = (1, 1, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 3, 3, 3), (2, 2, 4, 4, 4)
CONV5 = ("conv5",)


def _body(depths: Sequence[int], norm: Norm | None, out_stages: Sequence[str]) -> Chain:
    body = Chain(_stages(depths, norm), out_stages)
    he_start(body)
    return body


def _classifier(depths: Sequence[int], norm: Norm | None, num_classes: int) -> ChainClassifier:
    head = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, num_classes),
    )
    classifier = ChainClassifier(_stages(depths, norm), head, cells=7)
    he_start(classifier)
    return classifier


def _stages(depths: Sequence[int], norm: Norm | None) -> list[Stage]:
    stages, in_channels = [], 3
    for i, (depth, channels) in enumerate(zip(depths, CHANNELS, strict=True)):
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(in_channels, channels, 3, padding=1))
            layers += [] if norm is None else [norm(channels)]
            layers.append(nn.ReLU(inplace=True))
            in_channels = channels
        stages.append(Stage(f"conv{i + 1}", layers, channels, 2**i))
        stages.append(Stage(f"pool{i + 1}", [nn.MaxPool2d(2, stride=2)], channels, 2 ** (i + 1)))
    return stages


# The networks without norms take `norm` for the sake of the other builders' signature, and leave it.


def vgg11(*, norm: Norm | None = None, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-11's body, 9.2 million parameters."""
    return _body(A, None, out_stages)


def vgg11_bn(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-11's body with a norm after each convolution."""
    return _body(A, norm, out_stages)


def vgg13(*, norm: Norm | None = None, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-13's body, 9.4 million parameters."""
    return _body(B, None, out_stages)


def vgg13_bn(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-13's body with a norm after each convolution."""
    return _body(B, norm, out_stages)


def vgg16(*, norm: Norm | None = None, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-16's body, 14.7 million parameters."""
    return _body(D, None, out_stages)


def vgg16_bn(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-16's body with a norm after each convolution."""
    return _body(D, norm, out_stages)


def vgg19(*, norm: Norm | None = None, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-19's body, 20.0 million parameters."""
    return _body(E, None, out_stages)


def vgg19_bn(*, norm: Norm = nn.BatchNorm2d, out_stages: Sequence[str] = CONV5) -> Chain:
    """VGG-19's body with a norm after each convolution."""
    return _body(E, norm, out_stages)


def vgg11_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """VGG-11: images to logits, 133 million parameters."""
    return _classifier(A, None, num_classes)


def vgg11_bn_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ChainClassifier:
    """VGG-11 with a norm after each convolution: images to logits."""
    return _classifier(A, norm, num_classes)


def vgg13_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """VGG-13: images to logits, 133 million parameters."""
    return _classifier(B, None, num_classes)


def vgg13_bn_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ChainClassifier:
    """VGG-13 with a norm after each convolution: images to logits."""
    return _classifier(B, norm, num_classes)


def vgg16_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """VGG-16: images to logits, 138 million parameters."""
    return _classifier(D, None, num_classes)


def vgg16_bn_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ChainClassifier:
    """VGG-16 with a norm after each convolution: images to logits."""
    return _classifier(D, norm, num_classes)


def vgg19_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """VGG-19: images to logits, 144 million parameters."""
    return _classifier(E, None, num_classes)


def vgg19_bn_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> ChainClassifier:
    """VGG-19 with a norm after each convolution: images to logits."""
    return _classifier(E, norm, num_classes)
