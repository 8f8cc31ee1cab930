"""AlexNet, in two forms: feature maps by name, or class logits.

`alexnet` is the one of one tower ("One weird trick", Krizhevsky 2014, https://arxiv.org/abs/1404.5997) under
torchvision's names, so its state dicts load unchanged. `alexnet_2012` is the paper's of two towers (Krizhevsky,
Sutskever and Hinton 2012, "ImageNet Classification with Deep Convolutional Neural Networks"): convolutions 2, 4 and 5
in two groups, local response normalisation after the first two, 227x227 pixels (the paper says 224, which its own
numbers contradict: 55 cells at stride 4 need 227). Of that one no weights are published under these names.

Maps are "conv1" to "conv5", each with its ReLU, and "pool1", "pool2", "pool5".
Deviations: He et al.'s initialisation in `alexnet`; in `alexnet_2012` a response is normalised over the channels of
both towers, and the towers are one convolution of two groups.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .chain import Chain, ChainClassifier, Stage, he_start
from .norms import Norm

CONV5 = ("conv5",)


# Neither has norms; they take `norm` for the sake of the other builders' signature, and leave it.
def alexnet(*, norm: Norm | None = None, out_stages: Sequence[str] = CONV5) -> Chain:
    """AlexNet's body, 2.5 million parameters."""
    body = Chain(_stages(), out_stages)
    he_start(body)
    return body


def alexnet_2012(*, norm: Norm | None = None, out_stages: Sequence[str] = CONV5) -> Chain:
    """The two towers' body, 2.3 million parameters."""
    body = Chain(_stages_2012(), out_stages)
    _start_2012(body)
    return body


def alexnet_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """AlexNet: images (224 or 227 pixels) to logits, 61.1 million parameters."""
    classifier = ChainClassifier(_stages(), _head(num_classes), cells=6)
    he_start(classifier)
    return classifier


def alexnet_2012_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> ChainClassifier:
    """The two towers: images (227 pixels) to logits, 61.0 million parameters."""
    classifier = ChainClassifier(_stages_2012(), _head(num_classes), cells=6)
    _start_2012(classifier)
    return classifier


def _stages() -> list[Stage]:
    return [
        Stage("conv1", [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(inplace=True)], 64, 4),
        Stage("pool1", [nn.MaxPool2d(3, stride=2)], 64, 8),
        Stage("conv2", [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(inplace=True)], 192, 8),
        Stage("pool2", [nn.MaxPool2d(3, stride=2)], 192, 16),
        Stage("conv3", [nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(inplace=True)], 384, 16),
        Stage("conv4", [nn.Conv2d(384, 256, 3, padding=1), nn.ReLU(inplace=True)], 256, 16),
        Stage("conv5", [nn.Conv2d(256, 256, 3, padding=1), nn.ReLU(inplace=True)], 256, 16),
        Stage("pool5", [nn.MaxPool2d(3, stride=2)], 256, 32),
    ]


def _stages_2012() -> list[Stage]:
    return [
        Stage("conv1", [nn.Conv2d(3, 96, 11, stride=4), nn.ReLU(inplace=True)], 96, 4),
        Stage("pool1", [_response_norm(), nn.MaxPool2d(3, stride=2)], 96, 8),
        Stage("conv2", [nn.Conv2d(96, 256, 5, padding=2, groups=2), nn.ReLU(inplace=True)], 256, 8),
        Stage("pool2", [_response_norm(), nn.MaxPool2d(3, stride=2)], 256, 16),
        Stage("conv3", [nn.Conv2d(256, 384, 3, padding=1), nn.ReLU(inplace=True)], 384, 16),
        Stage("conv4", [nn.Conv2d(384, 384, 3, padding=1, groups=2), nn.ReLU(inplace=True)], 384, 16),
        Stage("conv5", [nn.Conv2d(384, 256, 3, padding=1, groups=2), nn.ReLU(inplace=True)], 256, 16),
        Stage("pool5", [nn.MaxPool2d(3, stride=2)], 256, 32),
    ]


def _response_norm() -> nn.LocalResponseNorm:
    """Section 3.3: k = 2, n = 5, alpha = 1e-4, beta = 0.75. Torch divides its alpha by n, the paper does not."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _head(num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Dropout(0.5),
        nn.Linear(256 * 6 * 6, 4096),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(inplace=True),
        nn.Linear(4096, num_classes),
    )


def _start_2012(model: nn.Module) -> None:
    """Section 5: weights N(0, 0.01); biases 1 in convolutions 2, 4, 5 and the hidden linear layers, else 0.

    Those are the layers of two groups, and the linear ones that a ReLU follows: 4096 wide.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=0.01)
            towers = isinstance(module, nn.Conv2d) and module.groups == 2
            hidden = isinstance(module, nn.Linear) and module.out_features == 4096
            nn.init.constant_(module.bias, 1.0 if towers or hidden else 0.0)
