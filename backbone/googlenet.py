"""GoogLeNet (Szegedy et al. 2014, https://arxiv.org/abs/1409.4842): feature maps by name, or class logits.

Two forms of one network. With norms it is torchvision's, under its names, so its state dicts load unchanged: batch
norms in place of biases and response normalisation, 3x3 convolutions where the paper has 5x5
(https://github.com/pytorch/vision/issues/906), and a last pooling of 2x2. Without (`norm=None`) it is the paper's
table 1. torchvision's file takes pixels x / 127.5 - 1 (its `transform_input`), which is what `mean` and `std` say here.

Maps are "conv1" (stride 2), "conv3" (4), "inception3a" and "inception3b" (8), "inception4a" to "inception4e" (16),
"inception5a" and "inception5b" (32).
Deviation: He et al.'s initialisation by inputs, under which the deep plain form keeps its signal.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .norms import Norm
from .protocol import Backbone

# Table 1: 1x1; 3x3 reduce, 3x3; 5x5 reduce, 5x5; pool projection. Outputs are the channels of 1x1, 3x3, 5x5 and pool.
INCEPTIONS = {
    "inception3a": (64, 96, 128, 16, 32, 32),
    "inception3b": (128, 128, 192, 32, 96, 64),
    "inception4a": (192, 96, 208, 16, 48, 64),
    "inception4b": (160, 112, 224, 24, 64, 64),
    "inception4c": (128, 128, 256, 24, 64, 64),
    "inception4d": (112, 144, 288, 32, 64, 64),
    "inception4e": (256, 160, 320, 32, 128, 128),
    "inception5a": (256, 160, 320, 32, 128, 128),
    "inception5b": (384, 192, 384, 48, 128, 128),
}
MAPS = {"conv1": (2, 64), "conv3": (4, 192)} | {
    name: ({"3": 8, "4": 16, "5": 32}[name[-2]], a + c + e + p) for name, (a, _, c, _, e, p) in INCEPTIONS.items()
}
STAGES = {"stem": "conv", "inception3": "inception3", "inception4": "inception4", "inception5": "inception5"}


class GoogLeNet(Backbone):
    """The body: a `Backbone` of the maps named.

    Args:
        norm: channels to a normalisation layer, for torchvision's form; None for the paper's.
        out_stages: names of the maps to return, in their order. Layers above the last are not built.

    Raises:
        ValueError: `out_stages` are not names of maps, or not in their order.
    """

    mean = std = (0.5, 0.5, 0.5)

    def __init__(
        self,
        *,
        norm: Norm | None = nn.BatchNorm2d,
        out_stages: Sequence[str] = ("inception3b", "inception4e", "inception5b"),
    ) -> None:
        super().__init__()
        out_stages = (out_stages,) if isinstance(out_stages, str) else tuple(out_stages)
        if not out_stages or list(out_stages) != [name for name in MAPS if name in out_stages]:
            raise ValueError(f"out_stages must be some of {', '.join(MAPS)}, in this order, got {out_stages}")
        self.out_stages = out_stages
        self.strides, self.channels = zip(*(MAPS[name] for name in out_stages), strict=True)
        layers = _layers(norm)
        self.chain = tuple(layers)[: list(layers).index(out_stages[-1]) + 1]  # names, in the order they run
        for name in self.chain:
            self.add_module(name, layers[name])
        built = {stage: tuple(name for name in self.chain if name.startswith(p)) for stage, p in STAGES.items()}
        self.stage_prefixes = {stage: names for stage, names in built.items() if names}
        _initialise(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Normalised images to the maps of `out_stages`, finest first."""
        maps, x = [], images
        for name in self.chain:
            x = self.get_submodule(name)(x)
            if name in self.out_stages:
                maps.append(x)
        return maps


class GoogLeNetClassifier(GoogLeNet):
    """The body with average pooling and a last layer `fc`: images to logits (B, num_classes). It gives no maps.

    For training, two auxiliary classifiers sit on inception4a and inception4d: `all_logits` gives theirs too, and the
    loss is that of the first plus `aux_weight` times those of the others. Prediction ignores them.
    """

    head_name = "fc"
    aux_weight = 0.3  # the paper's discount

    def __init__(self, num_classes: int = 1000, *, norm: Norm | None = nn.BatchNorm2d) -> None:
        super().__init__(norm=norm, out_stages=("inception4a", "inception4d", "inception5b"))
        first, second, last = self.channels
        self.aux1 = AuxiliaryClassifier(first, num_classes, norm=norm)
        self.aux2 = AuxiliaryClassifier(second, num_classes, norm=norm)
        self.dropout = nn.Dropout(0.4 if norm is None else 0.2)
        self.fc = nn.Linear(last, num_classes)
        self.strides = self.channels = ()
        for part in (self.aux1, self.aux2, self.fc):
            _initialise(part)

    def forward(self, images: Tensor) -> Tensor:  # type: ignore[override]
        return self._classify(super().forward(images)[-1])

    def all_logits(self, images: Tensor) -> list[Tensor]:
        """Logits (B, num_classes) of the network, then of the auxiliary classifiers on inception4a and inception4d."""
        first, second, last = super().forward(images)
        return [self._classify(last), self.aux1(first), self.aux2(second)]

    def _classify(self, last: Tensor) -> Tensor:
        return self.fc(self.dropout(last.mean((2, 3))))


class Inception(nn.Module):
    """Four branches side by side, their channels one after another (figure 2b)."""

    def __init__(self, in_channels: int, widths: tuple[int, int, int, int, int, int], *, norm: Norm | None) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        kernel = 5 if norm is None else 3
        self.branch1 = _conv(in_channels, one, 1, norm=norm)
        self.branch2 = nn.Sequential(_conv(in_channels, three_in, 1, norm=norm), _conv(three_in, three, 3, norm=norm))
        self.branch3 = nn.Sequential(_conv(in_channels, five_in, 1, norm=norm), _conv(five_in, five, kernel, norm=norm))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), _conv(in_channels, pooled, 1, norm=norm))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxiliaryClassifier(nn.Module):
    """Pooling to 4x4 cells, a 1x1 convolution and two linear layers (section 5): a map to logits (B, num_classes).

    Deviation, torchvision's: averages to 4x4 whatever the map; the paper pools its 14x14 cells by 5x5 at stride 3.
    """

    def __init__(self, in_channels: int, num_classes: int, *, norm: Norm | None) -> None:
        super().__init__()
        self.conv = _conv(in_channels, 128, 1, norm=norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.dropout = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, 4)), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


def _layers(norm: Norm | None) -> dict[str, nn.Module]:
    """The body's layers by name, in the order they run."""
    plain = norm is None
    layers: dict[str, nn.Module] = {}
    layers["conv1"] = _conv(3, 64, 7, stride=2, norm=norm)
    layers["maxpool1"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    layers |= {"lrn1": _response_norm()} if plain else {}
    layers["conv2"] = _conv(64, 64, 1, norm=norm)
    layers["conv3"] = _conv(64, 192, 3, norm=norm)
    layers |= {"lrn2": _response_norm()} if plain else {}
    layers["maxpool2"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    channels = 192
    for name, widths in INCEPTIONS.items():
        layers[name] = Inception(channels, widths, norm=norm)
        channels = MAPS[name][1]
        if name == "inception3b":
            layers["maxpool3"] = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        elif name == "inception4e":
            layers["maxpool4"] = nn.MaxPool2d(3 if plain else 2, stride=2, ceil_mode=True)
    return layers


def _conv(in_channels: int, channels: int, kernel: int, *, norm: Norm | None, stride: int = 1) -> nn.Sequential:
    """Convolution, norm and ReLU; names are torchvision's."""
    conv = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=norm is None)
    layers: OrderedDict[str, nn.Module] = OrderedDict(conv=conv)
    if norm is not None:
        layers["bn"] = norm(channels)
        layers["bn"].eps = 1e-3  # torchvision's here, whatever other networks take
    layers["relu"] = nn.ReLU(inplace=True)
    return nn.Sequential(layers)


def _response_norm() -> nn.LocalResponseNorm:
    """AlexNet's constants; figure 3 says where they stand, not which."""
    return nn.LocalResponseNorm(5, alpha=5e-4, beta=0.75, k=2.0)


def _initialise(part: nn.Module) -> None:
    """He et al.'s normal initialisation by inputs; logits start near zero by a hundredth."""
    for module in part.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None:
            nn.init.zeros_(module.bias)


def googlenet(*, norm: Norm = nn.BatchNorm2d) -> GoogLeNet:
    """The body in torchvision's form, 5.6 million parameters."""
    return GoogLeNet(norm=norm)


def googlenet_2014(*, norm: Norm | None = None) -> GoogLeNet:
    """The body in the paper's form, 6.0 million parameters. It has no norms: `norm` is left."""
    return GoogLeNet(norm=None)


def googlenet_classifier(num_classes: int = 1000, *, norm: Norm = nn.BatchNorm2d) -> GoogLeNetClassifier:
    """GoogLeNet in torchvision's form: images to logits."""
    return GoogLeNetClassifier(num_classes, norm=norm)


def googlenet_2014_classifier(num_classes: int = 1000, *, norm: Norm | None = None) -> GoogLeNetClassifier:
    """GoogLeNet in the paper's form: images (224 pixels) to logits. It has no norms: `norm` is left."""
    return GoogLeNetClassifier(num_classes, norm=None)
