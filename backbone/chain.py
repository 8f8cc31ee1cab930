"""Networks that are one chain of layers (LeNet, AlexNet, ZFNet, VGG): feature maps by name, or class logits.

Parameters bear torchvision's names: numbered layers `features`, and on top `avgpool` (to the number of cells that the
first fully connected layer takes) and `classifier`. Each network's own file lists its stages and builds both classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .protocol import Backbone


class Stage(NamedTuple):
    """Layers that run one after another, and the map that they end in.

    Attributes:
        name: the paper's, e.g. "conv3" or "pool3".
        layers: in the order they run; an activation belongs to the convolution before it.
        channels: of the map.
        stride: pixels per cell of the map.
    """

    name: str
    layers: Sequence[nn.Module]
    channels: int
    stride: int


class Chain(Backbone):
    """The body: a `Backbone` of the maps that some stages end in. Those with parameters can be frozen one by one.

    Args:
        stages: the network, from the pixels upwards.
        out_stages: names of the stages whose maps to return, in their order. Stages above the last are not built.

    Raises:
        ValueError: `out_stages` are not names of stages, or not in their order.
    """

    def __init__(self, stages: Sequence[Stage], out_stages: Sequence[str]) -> None:
        super().__init__()
        out_stages = (out_stages,) if isinstance(out_stages, str) else tuple(out_stages)
        names = [stage.name for stage in stages]
        if not out_stages or list(out_stages) != [name for name in names if name in out_stages]:
            raise ValueError(f"out_stages must be some of {', '.join(names)}, in this order, got {out_stages}")
        stages = stages[: names.index(out_stages[-1]) + 1]
        layers = [layer for stage in stages for layer in stage.layers]
        self.strides = tuple(stage.stride for stage in stages if stage.name in out_stages)
        self.channels = tuple(stage.channels for stage in stages if stage.name in out_stages)
        self.ends, self.stage_prefixes = _places(stages, out_stages)
        self.min_size = _smallest_side(layers)
        self.features = nn.Sequential(*layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images to the maps of `out_stages`, finest first.

        Raises:
            ValueError: images so small that nothing is left of them at the last map.
        """
        height, width = images.shape[-2:]
        if height < self.min_size or width < self.min_size:
            raise ValueError(
                f"images must have at least {self.min_size}x{self.min_size} pixels, got {height}x{width}; "
                "pad or enlarge them"
            )
        maps, x = [], images
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in self.ends:
                maps.append(x)
        return maps


class ChainClassifier(Chain):
    """The body and fully connected layers: images of any size to logits (B, num_classes). It gives no maps.

    Images of another size than the trained one reach `classifier` through the averages of `avgpool`. The fully
    connected layers below the last are stages to freeze, too: "fc6" and on, whatever the number of convolutions.

    Args:
        stages: the network up to the last map, from the pixels upwards.
        classifier: from (B, C * cells * cells) to logits; ends in a linear layer, `head_name`.
        cells: the last map's height and width at the trained size.
    """

    def __init__(self, stages: Sequence[Stage], classifier: nn.Sequential, *, cells: int) -> None:
        super().__init__(stages, (stages[-1].name,))
        self.avgpool = nn.AdaptiveAvgPool2d(cells)
        self.classifier = classifier
        *lower, last = (f"classifier.{i}" for i, layer in enumerate(classifier) if isinstance(layer, nn.Linear))
        self.stage_prefixes |= {f"fc{6 + i}": (name,) for i, name in enumerate(lower)}
        self.head_name = last
        self.strides = self.channels = ()

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        (last,) = super().forward(images)
        return self.classifier(torch.flatten(self.avgpool(last), 1))


def he_start(model: nn.Module) -> None:
    """He et al.'s normal initialisation for convolutions, a hundredth for linear layers; all biases zero."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def _places(stages: Sequence[Stage], out_stages: Sequence[str]) -> tuple[tuple[int, ...], dict[str, tuple[str, ...]]]:
    """Indices of the layers that end the stages wanted; prefixes of the parameters of each stage that has any."""
    ends, prefixes, start = [], {}, 0
    for stage in stages:
        learning = tuple(f"features.{i}" for i, layer in enumerate(stage.layers, start) if layer.state_dict())
        prefixes |= {stage.name: learning} if learning else {}
        start += len(stage.layers)
        if stage.name in out_stages:
            ends.append(start - 1)
    return tuple(ends), prefixes


def _smallest_side(layers: Sequence[nn.Module]) -> int:
    """Pixels that leave one cell at the end."""
    cells = 1
    for layer in reversed(layers):
        if hasattr(layer, "kernel_size"):
            kernel, stride, padding = (
                value if isinstance(value, int) else value[0]
                for value in (layer.kernel_size, layer.stride, layer.padding)
            )
            rounded_up = stride - 1 if getattr(layer, "ceil_mode", False) else 0
            cells = max((cells - 1) * stride + kernel - 2 * padding - rounded_up, 1)
    return cells
