"""LeNet-5 (LeCun, Bottou, Bengio and Haffner 1998, "Gradient-Based Learning Applied to Document Recognition", II.B).

Feature maps by name, or class logits, from 32x32 grey pixels; of colour pictures it takes the mean of the channels.
60,000 parameters below the output, exactly the paper's: trainable subsampling, and C3 wired as its table I says.

Maps are the paper's "c1", "s2", "c3", "s4" and "c5", each after its squashing function. Nothing is padded.
Deviations: the output is a linear layer (850 parameters more) for a softmax instead of distances to fixed codes; weights
start with deviation n_in^-1/2, which "Efficient BackProp" by the same authors derives for this very squashing function,
instead of uniformly within 2.4 / n_in; subsampling starts as the mean of its four cells.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .chain import Chain, ChainClassifier, Stage
from .norms import Norm

# Table I: the maps of S2 that each of the sixteen maps of C3 sees.
TABLE = (
    (0, 1, 2), (1, 2, 3), (2, 3, 4), (3, 4, 5), (4, 5, 0), (5, 0, 1),
    (0, 1, 2, 3), (1, 2, 3, 4), (2, 3, 4, 5), (3, 4, 5, 0), (4, 5, 0, 1), (5, 0, 1, 2),
    (0, 1, 3, 4), (1, 2, 4, 5), (0, 2, 3, 5),
    (0, 1, 2, 3, 4, 5),
)  # fmt: skip
# Ink (1) comes out as 1.175 and paper (0) as -0.1, as in section III.A: white digits on black, the way MNIST stores them.
MEAN, STD = (0.1 / 1.275,) * 3, (1 / 1.275,) * 3


# It has no norms; `norm` is for the sake of the other builders' signature, and is left.
def lenet(*, norm: Norm | None = None, out_stages: Sequence[str] = ("c5",)) -> Chain:
    """LeNet-5's body, 50 thousand parameters."""
    body = Chain(_stages(), out_stages)
    _finish(body)
    return body


def lenet_classifier(num_classes: int = 10, *, norm: Norm | None = None) -> ChainClassifier:
    """LeNet-5: images of 32x32 pixels (MNIST's 28x28 with 2 of padding all round) to logits."""
    head = nn.Sequential(nn.Linear(120, 84), ScaledTanh(), nn.Linear(84, num_classes))
    classifier = ChainClassifier(_stages(), head, cells=1)
    _finish(classifier)
    return classifier


def _stages() -> list[Stage]:
    return [
        Stage("c1", [Grey(), nn.Conv2d(1, 6, 5), ScaledTanh()], 6, 1),
        Stage("s2", [Subsample(6), ScaledTanh()], 6, 2),
        Stage("c3", [TableConv2d(TABLE, 5), ScaledTanh()], 16, 2),
        Stage("s4", [Subsample(16), ScaledTanh()], 16, 4),
        Stage("c5", [nn.Conv2d(16, 120, 5), ScaledTanh()], 120, 4),
    ]


class Grey(nn.Module):
    """The mean of the channels: (B, C, H, W) to (B, 1, H, W)."""

    def forward(self, images: Tensor) -> Tensor:
        return images.mean(1, keepdim=True)


class Subsample(nn.Module):
    """The sum of each 2x2 cells, times a coefficient and plus a bias of its map."""

    kernel_size, stride, padding = 2, 2, 0

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((channels,), 0.25))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        sums = 4 * F.avg_pool2d(x, 2)
        return torch.addcmul(self.bias.view(-1, 1, 1), sums, self.weight.view(-1, 1, 1))


class TableConv2d(nn.Module):
    """A convolution in which each output map sees only the input maps that its row of a table names.

    `weight` is (connections, kernel, kernel), the rows of the table one after another: connections that are not there
    have no parameters.

    Args:
        table: for each output map the indices of its input maps; all indices up to the largest are input maps.
        kernel: height and width.
    """

    stride, padding = 1, 0
    outputs: Tensor
    inputs: Tensor

    def __init__(self, table: Sequence[Sequence[int]], kernel: int) -> None:
        super().__init__()
        connections = [(i, j) for i, row in enumerate(table) for j in row]
        self.kernel_size = kernel
        self.shape = (len(table), 1 + max(j for _, j in connections), kernel, kernel)
        self.register_buffer("outputs", torch.tensor([i for i, _ in connections]), persistent=False)
        self.register_buffer("inputs", torch.tensor([j for _, j in connections]), persistent=False)
        fan_in = torch.tensor([kernel**2 * len(table[i]) for i, _ in connections])
        self.weight = nn.Parameter(torch.randn(len(connections), kernel, kernel) * fan_in.view(-1, 1, 1) ** -0.5)
        self.bias = nn.Parameter(torch.zeros(len(table)))

    def forward(self, x: Tensor) -> Tensor:
        dense = self.weight.new_zeros(self.shape).index_put((self.outputs, self.inputs), self.weight)
        return F.conv2d(x, dense, self.bias)


class ScaledTanh(nn.Module):
    """1.7159 tanh(2/3 x), which maps 1 to 1 and -1 to -1 (appendix A)."""

    def forward(self, x: Tensor) -> Tensor:
        return 1.7159 * torch.tanh(x * (2 / 3))


def _finish(model: Chain) -> None:
    model.mean, model.std = MEAN, STD
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
            nn.init.zeros_(module.bias)
