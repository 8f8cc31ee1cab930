"""The networks of the spatial transformer's MNIST experiments (https://arxiv.org/abs/1506.02025, section 4.1, appendix A).

FCN (fully connected, two hidden layers) and CNN (9x9 and 7x7 convolutions, each pooled), alone and behind a transformer.
All have about 400k parameters: where a transformer takes some, the hidden layers are narrower.

Deviations from the paper: batch norm, after pooling, where it costs least; a hidden layer behind the CNN's convolutions;
its first pooling is by 3 in 60x60 pictures, which fully connected networks see averaged to 20x20, as they would else have 105
hidden units; transformers give 28x28 pixels whatever comes in.

Letters: B pictures, S their side in pixels.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from .spatial_transformer import Affine, SpatialTransformer, Transform, conv_localisation, fc_localisation

BUDGET = 400_000  # parameters of each network
CROP = 28  # pixels a side of what a transformer gives
LARGE = 60  # pixels a side from which on fully connected layers see averages of 3x3 pixels


class DigitNetwork(nn.Module):
    """A classifier of square pictures, with or without a transformer in front.

    Args:
        classifier: pictures (B, 1, S, S), or (B, 1, 28, 28) behind a transformer, to logits (B, 10).
        transformer: crops the pictures first; None leaves them as they are.
    """

    def __init__(self, classifier: nn.Module, transformer: SpatialTransformer | None = None) -> None:
        super().__init__()
        self.transformer, self.classifier = transformer, classifier

    def forward(self, pictures: Tensor) -> Tensor:
        """(B, 1, S, S) floats in [0, 1] to logits (B, 10)."""
        return self.classifier(pictures if self.transformer is None else self.transformer(pictures))


def fcn(size: int = 28) -> DigitNetwork:
    """Two hidden layers; `size` is S."""
    if size < LARGE:
        return DigitNetwork(_fully_connected(size, BUDGET))
    return DigitNetwork(nn.Sequential(nn.AvgPool2d(3, ceil_mode=True), *_fully_connected(-(-size // 3), BUDGET)))


def cnn(size: int = 28) -> DigitNetwork:
    """Two convolutions and a hidden layer; `size` is S."""
    return DigitNetwork(_convolutional(size, BUDGET))


def st_fcn(size: int = 28, *, transform: Transform | None = None) -> DigitNetwork:
    """The FCN behind a transformer whose localisation network is fully connected; affine by default."""
    transform = transform or Affine()
    if size < LARGE:
        localisation = fc_localisation(size**2, transform, (64, 64, 64))
    else:
        inputs = (-(-size // 3)) ** 2
        localisation = nn.Sequential(
            nn.AvgPool2d(3, ceil_mode=True), *fc_localisation(inputs, transform, (128, 128, 64))
        )
    transformer = SpatialTransformer(localisation, transform, (CROP, CROP))
    return DigitNetwork(_fully_connected(CROP, BUDGET - _count(transformer)), transformer)


def st_cnn(size: int = 28, *, transform: Transform | None = None) -> DigitNetwork:
    """The CNN behind a transformer whose localisation network is convolutional; affine by default."""
    transform = transform or Affine()
    localisation = conv_localisation(1, (size // 2, size // 2), transform)
    transformer = SpatialTransformer(nn.Sequential(nn.AvgPool2d(2), *localisation), transform, (CROP, CROP))
    return DigitNetwork(_convolutional(CROP, BUDGET - _count(transformer)), transformer)


def _fully_connected(size: int, budget: int) -> nn.Sequential:
    inputs = size * size + 15  # of each hidden unit: weights from the picture, to the classes, biases, batch norm
    hidden = int((math.sqrt(inputs**2 + 4 * budget) - inputs) / 2)  # hidden^2 + inputs * hidden = budget
    return nn.Sequential(
        nn.Flatten(),
        *(nn.Linear(size * size, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden), nn.ReLU()),
        nn.Linear(hidden, 10),
    )


def _convolutional(size: int, budget: int, width: int = 32) -> nn.Sequential:
    pool = max(2, size // 20)
    cells = math.ceil(((size - 8) // pool - 6) / 2) ** 2
    convolutions = [
        *(nn.Conv2d(1, width, 9), nn.MaxPool2d(pool), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 2 * width, 7), nn.MaxPool2d(2, ceil_mode=True), nn.BatchNorm2d(2 * width), nn.ReLU()),
        nn.Flatten(),
    ]
    spent, inputs = sum(map(_count, convolutions)), 2 * width * cells
    hidden = (budget - spent) // (inputs + 13)  # each unit's weights both ways, bias and batch norm
    return nn.Sequential(
        *convolutions, *(nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU()), nn.Linear(hidden, 10)
    )


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
