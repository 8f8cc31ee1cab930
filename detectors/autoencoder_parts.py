"""Decoders of autoencoders: from a backbone's last map back to pixels.

Letters: B images, h, w cells of the last map, H, W pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone.lenet import ScaledTanh, Subsample, TableConv2d
from ..backbone.norms import Norm


class MirrorDecoder(nn.Module):
    """A chain of layers backwards: each convolution transposed, each pooling undone by repeating cells.

    Response norms and dropout have no counterpart; where the chain has norms with parameters, so has the decoder, between
    a transposed convolution and its activation. Pixels that no cell sees come out as a bias.

    Args:
        layers: of the encoder, from the pixels upwards.
        norm: channels to a normalisation layer.
        tied: take the encoder's kernels, which stay the encoder's parameters: of its own it has biases (and norms).
    """

    def __init__(self, layers: Sequence[nn.Module], *, norm: Norm, tied: bool) -> None:
        super().__init__()
        shaping = [layer for layer in layers if isinstance(layer, (*_CONVOLUTIONS, *_POOLS))]
        has_norms = any(layer.state_dict() for layer in layers if layer not in shaping)
        squash = ScaledTanh if any(isinstance(layer, ScaledTanh) for layer in layers) else nn.ReLU
        self.steps = nn.ModuleList()
        for layer in reversed(shaping):
            if isinstance(layer, _POOLS):
                self.steps.append(Repeat(layer))
            elif layer is shaping[0]:
                self.steps.append(Transposed(layer, tied=tied, bias=True))
            else:
                own = [norm(_in_channels(layer))] if has_norms else []
                self.steps.append(Transposed(layer, *own, squash(), tied=tied, bias=not has_norms))

    def forward(self, features: Tensor, frame: Sequence[int]) -> Tensor:
        """(B, channels, h, w) and (H, W) to (B, 3, H, W); grey has three equal channels."""
        sizes = [tuple(frame)]  # of the maps that the encoder made on its way up
        for step in reversed(self.steps[1:]):
            sizes.append(tuple(map(step.window.cells, sizes[-1])))
        x = features
        for step, size in zip(self.steps, reversed(sizes), strict=True):
            x = step(x, size)
        return x.expand(-1, 3, -1, -1)


_CONVOLUTIONS = (nn.Conv2d, TableConv2d)
_POOLS = (nn.MaxPool2d, nn.AvgPool2d, Subsample)


def can_mirror(layers: Iterable[nn.Module]) -> bool:
    """Whether `MirrorDecoder` knows all layers with weights: its convolutions and poolings, and what scales channels.

    It knows no block that has convolutions inside, such as SqueezeNet's fire modules.
    """
    known = (*_CONVOLUTIONS, *_POOLS)
    return all(isinstance(layer, known) or all(p.ndim < 2 for p in layer.parameters()) for layer in layers)


class Window(NamedTuple):
    """What a cell of a convolution or pooling is made of, alike for height and width in all chains."""

    kernel: int
    stride: int
    padding: int
    rounded_up: bool

    @staticmethod
    def of(layer: nn.Module) -> Window:
        numbers = (layer.kernel_size, layer.stride, layer.padding)
        kernel, stride, padding = (value if isinstance(value, int) else value[0] for value in numbers)
        return Window(kernel, stride, padding, getattr(layer, "ceil_mode", False))

    def cells(self, length: int) -> int:
        """How many cells come of so many; torch's arithmetic."""
        room = length + 2 * self.padding - self.kernel
        if not self.rounded_up:
            return room // self.stride + 1
        cells = -(-room // self.stride) + 1
        return cells - 1 if (cells - 1) * self.stride >= length + self.padding else cells


class Transposed(nn.Module):
    """A convolution transposed, with that convolution's weights or its own, and what follows it.

    Args:
        layer: the encoder's.
        after: a norm or activation.
        tied: take the encoder's weights.
        bias: have one.
    """

    def __init__(self, layer: nn.Conv2d | TableConv2d, *after: nn.Module, tied: bool, bias: bool) -> None:
        super().__init__()
        self.window, self.groups, self.after = Window.of(layer), getattr(layer, "groups", 1), nn.Sequential(*after)
        # The encoder's in a tuple, so that its parameters are not listed here again.
        self._tied, self.weight = ((layer,), None) if tied else (None, nn.Parameter(self._start(_kernels(layer))))
        self.bias = nn.Parameter(torch.zeros(_in_channels(layer))) if bias else None

    def _start(self, kernels: Tensor) -> Tensor:
        """He's initialisation by what one output sums over: of a kernel, only every stride-th cell meets it."""
        inputs = kernels.shape[0] // self.groups * (self.window.kernel / self.window.stride) ** 2
        return torch.randn_like(kernels) * (2 / inputs) ** 0.5

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, channels, h, w) to the encoder's input there, `size` (height, width)."""
        kernel, stride, padding, _ = self.window
        weight = self.weight if self._tied is None else _kernels(self._tied[0])
        extra = [n - ((m - 1) * stride + kernel - 2 * padding) for n, m in zip(size, x.shape[-2:], strict=True)]
        return self.after(F.conv_transpose2d(x, weight, self.bias, stride, padding, extra, self.groups))


def _kernels(layer: nn.Conv2d | TableConv2d) -> Tensor:
    """(out, in / groups, kernel, kernel)."""
    if isinstance(layer, nn.Conv2d):
        return layer.weight
    return layer.weight.new_zeros(layer.shape).index_put((layer.outputs, layer.inputs), layer.weight)


def _in_channels(layer: nn.Conv2d | TableConv2d) -> int:
    return layer.in_channels if isinstance(layer, nn.Conv2d) else layer.shape[1]


class Repeat(nn.Module):
    """A pooling undone: cells repeated over what they were made of."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.window = Window.of(layer)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, C, h, w) to (B, C, *size)."""
        return F.interpolate(x, size)


class StrideDecoder(nn.Module):
    """Transposed convolutions that double the resolution until it is the pictures', as wide as the body at each stride.

    Args:
        strides, channels: of the body's maps; the last is decoded. Strides that no map has get half the width above
            them, at least 16.
        norm: channels to a normalisation layer.

    Raises:
        ValueError: the last stride is no power of two.
    """

    def __init__(self, strides: Sequence[int], channels: Sequence[int], *, norm: Norm) -> None:
        super().__init__()
        self.stride = stride = strides[-1]
        width = channels[-1]
        if stride < 2 or stride & (stride - 1):
            raise ValueError(f"an autoencoder needs a body whose last stride is 2, 4, 8, …, got {stride}")
        known, steps = dict(zip(strides, channels, strict=True)), []
        while stride > 2:
            stride, before = stride // 2, width
            width = known.get(stride, max(16, before // 2))
            up = nn.ConvTranspose2d(before, width, 4, stride=2, padding=1, bias=False)
            steps += [up, norm(width), nn.ReLU(inplace=True)]
        self.steps = nn.Sequential(*steps, nn.ConvTranspose2d(width, 3, 4, stride=2, padding=1))
        for layer in self.steps[::3]:  # He's initialisation: four cells of a kernel meet at one output
            nn.init.normal_(layer.weight, std=(2 / (4 * layer.in_channels)) ** 0.5)
        nn.init.zeros_(self.steps[-1].bias)

    def forward(self, features: Tensor, frame: Sequence[int]) -> Tensor:
        """(B, channels, h, w) and (H, W) to (B, 3, H, W)."""
        # A body that does not pad (SqueezeNet) has too few cells: its last ones stand for those to their right and below.
        missing = [max(0, -(-n // self.stride) - cells) for n, cells in zip(frame, features.shape[-2:], strict=True)]
        features = F.pad(features, (0, missing[1], 0, missing[0]), mode="replicate")
        return self.steps(features)[..., : frame[0], : frame[1]]
