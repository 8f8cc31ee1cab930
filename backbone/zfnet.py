"""ZFNet (Zeiler and Fergus 2013, https://arxiv.org/abs/1311.2901, figure 3): feature maps by name, or class logits.

AlexNet with a first layer of 7x7 at stride 2 instead of 11x11 at stride 4, so that its filters neither alias nor die.
At 224 pixels its maps have 110, 55, 26, 13, 13, 13, 13 and 6 cells a side, as in the figure: that takes a padding of 1
in the first layer and, in the first two poolings, rounding up.

Maps are "conv1" to "conv5", each with its ReLU, and "pool1", "pool2", "pool5".
Deviations: contrast is normalised by AlexNet's constants, for the paper gives none; He et al.'s initialisation instead
of weights of 0.01, under which signals die; filters are not clipped to a norm of 0.1 while training.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .chain import Chain, ChainClassifier, Stage, he_start
from .norms import Norm


# It has no norms with parameters; `norm` is for the sake of the other builders' signature, and is left.
def zfnet(*, norm: Norm | None = None, out_stages: Sequence[str] = ("conv5",)) -> Chain:
    """ZFNet's body, 3.7 million parameters."""
    body = Chain(_stages(), out_stages)
    he_start(body)
    return body


def zfnet_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """ZFNet: images (224 pixels) to logits, 62.4 million parameters."""
    head = nn.Sequential(
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, num_classes),
    )
    classifier = ChainClassifier(_stages(), head, cells=6)
    he_start(classifier)
    return classifier


def _stages() -> list[Stage]:
    return [
        Stage("conv1", [nn.Conv2d(3, 96, 7, stride=2, padding=1), nn.ReLU(inplace=True)], 96, 2),
        Stage("pool1", [nn.MaxPool2d(3, stride=2, ceil_mode=True), _contrast_norm()], 96, 4),
        Stage("conv2", [nn.Conv2d(96, 256, 5, stride=2), nn.ReLU(inplace=True)], 256, 8),
        Stage("pool2", [nn.MaxPool2d(3, stride=2, ceil_mode=True), _contrast_norm()], 256, 16),
        Stage("conv3", [nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)], 384, 16),
        Stage("conv4", [nn.Conv2d(384, 384, 3, padding=1), nn.ReLU(inplace=True)], 384, 16),
        Stage("conv5", [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)], 256, 16),
        Stage("pool5", [nn.MaxPool2d(3, stride=2)], 256, 32),
    ]


def _contrast_norm() -> nn.LocalResponseNorm:
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)
