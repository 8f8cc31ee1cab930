"""What YOLO puts on a body (Redmon et al. 2015, https://arxiv.org/abs/1506.02640, sections 2.1 and 2.2): the paper's four
convolutions and its fully connected layers, on the last map of any network.

The second convolution halves the map where it has at least 2S cells a side, as it does to the paper's 14 x 14. Finer maps are
first halved by max pooling until they have less than 4S cells (of VGG-16: its own last pooling), and averaged to S x S cells
at the end if they are not that yet. A coarser map is left as it is, for the fully connected layers see all of it.

Deviation: every predictor starts with its box in the middle of its cell, each with another size, instead of at zero.

Letters: S cells a side of the grid, K predictors of a cell, C categories; B images, h, w cells of a body's map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..backbone import Norm
from ..backbone.yolo_networks import SLOPE, convolution
from .yolov1_cells import NUMBERS


class Head(nn.Module):
    """What detection adds to a body: convolutions, then fully connected layers (sections 2.1 and 2.2).

    Without hidden layers the last one is no fully connected layer either, but a 1 x 1 convolution: what every cell learns, all
    of them know. Fully connected layers learn the same object anew in each place, which takes many pictures.

    Args:
        convolutions: (B, channels, h, w) to a map of S' x S' cells.
        shape: (channels, S', S') of that map; without hidden layers S' is S.
        num_classes: C.
        grid: S.
        predictors: K.
        hidden: widths of the fully connected layers below the last.
        dropout: share of the numbers given to the last layer that are zero in training.
    """

    def __init__(
        self,
        convolutions: nn.Sequential,
        shape: tuple[int, int, int],
        num_classes: int,
        *,
        grid: int = 7,
        predictors: int = 2,
        hidden: Sequence[int] = (4096,),
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.num_classes, self.grid, self.predictors = num_classes, grid, predictors
        self.convolutions = convolutions
        numbers = NUMBERS * predictors + num_classes
        layers: list[nn.Module] = [nn.Flatten()] if hidden else []
        inputs = math.prod(shape)
        for width in hidden:
            layers += [nn.Linear(inputs, width), nn.LeakyReLU(SLOPE, inplace=True)]
            inputs = width
        self.hidden = nn.Sequential(*layers, nn.Dropout(dropout))
        self.prediction = nn.Linear(inputs, grid**2 * numbers) if hidden else nn.Conv2d(shape[0], numbers, 1)
        self._start()

    def forward(self, features: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, S, S, 5K + C)."""
        prediction = self.prediction(self.hidden(self.convolutions(features)))
        if prediction.ndim == 4:
            return prediction.permute(0, 2, 3, 1)
        return prediction.unflatten(1, (self.grid, self.grid, -1))

    def _start(self) -> None:
        """He et al.'s initialisation below the last layer, which starts near boxes in the middle of their cells."""
        for module in (*self.convolutions, *self.hidden):
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                nn.init.kaiming_normal_(module.weight, a=SLOPE)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.prediction.weight, std=0.01)
        bias = self.prediction.bias.detach().zero_().view(-1, NUMBERS * self.predictors + self.num_classes)
        boxes = bias[:, : NUMBERS * self.predictors].unflatten(1, (self.predictors, NUMBERS))
        boxes[..., :2] = 0.5
        boxes[..., 2:4] = (torch.arange(self.predictors)[:, None] + 1) / (self.predictors + 1)


def detection_layers(
    channels: int, cells: int, grid: int, extra: Sequence[int], norm: Norm | None
) -> tuple[nn.Sequential, tuple[int, int, int]]:
    """The convolutions on a map of `cells` a side, and the shape of what they give; see the file's head."""
    layers: list[nn.Module] = []
    while cells >= 4 * grid:
        layers.append(nn.MaxPool2d(2, stride=2))
        cells //= 2
    halving = min(1, len(extra) - 1)  # the second, as in figure 3, if there is one
    for place, width in enumerate(extra):
        stride = 2 if place == halving and cells >= 2 * grid else 1
        layers += convolution(channels, width, 3, stride=stride, norm=norm)
        channels, cells = width, -(-cells // stride)
    if cells > grid:
        layers.append(nn.AdaptiveAvgPool2d(grid))
        cells = grid
    return nn.Sequential(*layers), (channels, cells, cells)
