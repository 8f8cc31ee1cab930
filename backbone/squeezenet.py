"""SqueezeNet 1.1 (Iandola et al. 2016, https://arxiv.org/abs/1602.07360): torchvision's layers with our attributes.

Maps are "conv1" (stride 2), "fire3" (4), "fire5" (8) and "fire9" (16), and "pool1", "pool3", "pool5" after the first
three; fire modules are counted as in the paper, from 2.
"""

from __future__ import annotations

from collections.abc import Sequence

from torchvision.models import SqueezeNet

from .chain import Chain, Stage
from .norms import Norm
from .protocol import IMAGENET_MEAN, IMAGENET_STD


class SqueezeNetClassifier(SqueezeNet):
    """torchvision's network: images to logits (B, num_classes). It gives no maps; the last layer is a convolution."""

    mean, std = IMAGENET_MEAN, IMAGENET_STD
    strides: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    head_name = "classifier.1"

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__("1_1", num_classes)
        self.stage_prefixes = Chain(_stages(self), ("fire9",)).stage_prefixes


# It has no norms; `norm` is for the sake of the other builders' signature, and is left.
def squeezenet1_1(*, norm: Norm | None = None, out_stages: Sequence[str] = ("fire3", "fire5", "fire9")) -> Chain:
    """The body, 0.7 million parameters."""
    return Chain(_stages(SqueezeNet("1_1")), out_stages)


def squeezenet1_1_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> SqueezeNetClassifier:
    """SqueezeNet 1.1: images to logits, 1.2 million parameters."""
    return SqueezeNetClassifier(num_classes)


def _stages(network: SqueezeNet) -> list[Stage]:
    layers = list(network.features)
    return [
        Stage("conv1", layers[0:2], 64, 2),
        Stage("pool1", layers[2:3], 64, 4),
        Stage("fire3", layers[3:5], 128, 4),
        Stage("pool3", layers[5:6], 128, 8),
        Stage("fire5", layers[6:8], 256, 8),
        Stage("pool5", layers[8:9], 256, 16),
        Stage("fire9", layers[9:13], 512, 16),
    ]
