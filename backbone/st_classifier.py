"""The spatial transformer's CNN (https://arxiv.org/abs/1506.02025, section 4.1) as a classifier like the others."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .mnist_networks import DigitNetwork, st_cnn
from .norms import Norm


class TransformedClassifier(DigitNetwork):
    """Pictures in grey and of one size, cropped by a transformer, to logits (B, num_classes). It gives no maps.

    Pixels are expected from 0 to 1, black around the digit as the transformer reads zeros outside a picture.

    Args:
        network: what it consists of; its last layer is replaced.
        num_classes: of the new last layer.
        size: (height, width) that the transformer's localisation network takes.
    """

    mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    strides: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()

    def __init__(self, network: DigitNetwork, num_classes: int, *, size: tuple[int, int]) -> None:
        *layers, last = network.classifier
        super().__init__(nn.Sequential(*layers, nn.Linear(last.in_features, num_classes)), network.transformer)
        self.size = size
        names = tuple(f"classifier.{i}" for i in range(len(layers)))
        self.stage_prefixes = {"transformer": ("transformer",), "network": names}
        self.head_name = f"classifier.{len(layers)}"

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) to logits; pictures of another size reach the network as averages of their pixels."""
        return super().forward(F.adaptive_avg_pool2d(images.mean(1, keepdim=True), self.size))


# Its norms are part of the network; `norm` is for the sake of the other builders' signature, and is left.
def st_cnn_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> TransformedClassifier:
    """The ST-CNN with an affine transformer, for pictures of 42x42 pixels; 0.4 million parameters."""
    return TransformedClassifier(st_cnn(42), num_classes, size=(42, 42))
