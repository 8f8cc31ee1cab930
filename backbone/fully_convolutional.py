"""A classifier made fully convolutional: equal logits at its trained size, a map of them for larger images.

What was linear over a map of k x k cells becomes a convolution of k x k (VGG's first 4096: 7x7), the linear layers above
it convolutions of 1x1, and a global average an average over the trained size's cells at stride 1 (Sermanet et al. 2013,
https://arxiv.org/abs/1312.6229, section 3.5; Long et al. 2015, https://arxiv.org/abs/1411.4038, section 3.1).

What the map holds: score (i, j) is that of the window of `size` pixels whose corner is (i * stride, j * stride). Of a
network without padding (LeNet-5) it equals the classifier's on that window cut out. Padded networks see, where a window
cut out has zeros around it, the pixels that are there: the score is the window's in its surroundings.

Letters: B images, H, W pixels, C classes, h, w cells of the score map.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from .chain import ChainClassifier
from .googlenet import GoogLeNetClassifier
from .mobilenet_v2 import MobileNetV2Classifier
from .resnet import ResNetClassifier
from .squeezenet import SqueezeNetClassifier
from .wrap import map_shapes, measure


class FullyConvolutional(nn.Module):
    """A body and a head of convolutions: images to score maps. Made by `to_convolutional`.

    Attributes:
        body: the classifier's layers up to its last map, under their names.
        head: the layers above as convolutions: "conv6", "conv7" where there were such, and last "score"; with "relu6",
            "dropout6", "avgpool5" and the like in between.
        size: height and width in pixels of the window behind one score, the trained size.
        stride: pixels from one score's window to the next one's.
        mean, std, stage_prefixes, head_name: as a classifier has them.
    """

    strides: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()

    def __init__(self, body: nn.Sequential, head: nn.Sequential, *, size: int) -> None:
        super().__init__()
        self.body, self.head, self.size = body, head, size
        (self.stride,), _ = measure(body)
        self.head_name = "head.score"

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised, H and W at least `size`, to logits (B, C, h, w).

        h = (H - size) // stride + 1, and w alike; networks that pad or round up give one more where that has a remainder.

        Raises:
            ValueError: images smaller than the window.
        """
        height, width = images.shape[-2:]
        if height < self.size or width < self.size:
            raise ValueError(
                f"images must have at least {self.size}x{self.size} pixels, the window of one score, got {height}x{width}; "
                "pad or enlarge them"
            )
        return self.head(self.body(images))

    def windows(self, height: int, width: int) -> Tensor:
        """(h, w, 4): the window of each score of a map of `height` x `width` cells, xyxy in pixels of the image."""
        y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
        corner = torch.stack([x, y], -1) * self.stride
        return torch.cat([corner, corner + self.size], -1).float()


def to_convolutional(classifier: nn.Module, size: int = 224) -> FullyConvolutional:
    """The classifier with convolutions in place of its linear layers.

    Weights are shared, not copied: the body is the classifier's own modules, the head's weights are its linear layers'
    memory in another shape. Use one or the other from here on, or give `copy.deepcopy(classifier)`.

    Args:
        classifier: one of `CLASSIFIERS` (not timm's).
        size: the trained height and width in pixels, at which outputs are equal; LeNet-5's is 32.

    Raises:
        ValueError: another kind of module, or a size at which the classifier's pooling to a fixed number of cells is no
            convolution.
    """
    body_names, top = _taken_apart(classifier)
    body = nn.Sequential(OrderedDict((name, classifier.get_submodule(name)) for name in body_names))
    ((_, channels, cells, _),) = map_shapes(body, size)
    named = _convolutions(top, channels, cells, size)
    model = FullyConvolutional(body, nn.Sequential(OrderedDict((name, layer) for name, layer, _ in named)), size=size)
    model.mean, model.std = classifier.mean, classifier.std
    places = {id(module): name for name, module in classifier.named_modules()}
    moved = {places[id(old)]: f"head.{name}" for name, _, old in named if id(old) in places}
    model.stage_prefixes = {
        stage: tuple(moved.get(prefix, f"body.{prefix}") for prefix in prefixes)
        for stage, prefixes in classifier.stage_prefixes.items()
    }
    return model.train(classifier.training)


def _taken_apart(classifier: nn.Module) -> tuple[list[str], list[nn.Module]]:
    """Names of the children that make the last map, one after another, and the layers from there to the logits."""
    children = [name for name, _ in classifier.named_children()]
    average = nn.AdaptiveAvgPool2d(1)
    if isinstance(classifier, ChainClassifier):
        return ["features"], [classifier.avgpool, *classifier.classifier]
    if isinstance(classifier, MobileNetV2Classifier):
        return ["features"], [average, *classifier.classifier]
    if isinstance(classifier, SqueezeNetClassifier):
        return ["features"], list(classifier.classifier)
    if isinstance(classifier, ResNetClassifier):
        return [name for name in children if name != "fc"], [average, classifier.fc]
    if isinstance(classifier, GoogLeNetClassifier):
        return list(classifier.chain), [average, classifier.dropout, classifier.fc]
    raise ValueError(
        f"{type(classifier).__name__} cannot be made fully convolutional: only build_classifier's own LeNet, AlexNet, "
        "ZFNet, VGG, GoogLeNet, ResNet, MobileNetV2 and SqueezeNet can"
    )


def _convolutions(top: list[nn.Module], channels: int, cells: int, size: int) -> list[tuple[str, nn.Module, nn.Module]]:
    """The layers over a map (channels, cells, cells): each one's name, the layer, and the one it stands for."""
    named, convolutions = [], 0
    weighted = sum(isinstance(layer, (nn.Linear, nn.Conv2d)) for layer in top)
    for old in top:
        new: nn.Module = old
        if isinstance(old, nn.AdaptiveAvgPool2d):
            wanted = old.output_size if isinstance(old.output_size, int) else old.output_size[0]
            if wanted == cells:
                continue
            new, cells = _average(wanted, cells, size), 1
        elif isinstance(old, nn.Linear):
            new, channels, cells = _convolution(old, channels, cells), old.out_features, 1
        convolutions += isinstance(new, nn.Conv2d)
        kind = "conv" if isinstance(new, nn.Conv2d) else type(new).__name__.lower().removesuffix("2d")
        last = kind == "conv" and convolutions == weighted
        named.append(("score" if last else f"{kind}{5 + convolutions}", new, old))
    return named


def _average(wanted: int, cells: int, size: int) -> nn.AvgPool2d:
    if wanted != 1:
        raise ValueError(
            f"at {size} pixels the last map has {cells}x{cells} cells, which the classifier averages to {wanted}x{wanted}: "
            "no convolution does that. Give the size it was trained at, e.g. 224"
        )
    return nn.AvgPool2d(cells, stride=1)


def _convolution(linear: nn.Linear, channels: int, cells: int) -> nn.Conv2d:
    """The same weights as a convolution of cells x cells: flattening goes by channel, row, column."""
    with torch.device("meta"):
        conv = nn.Conv2d(channels, linear.out_features, cells, bias=linear.bias is not None)
    weight = linear.weight.detach().view(linear.out_features, channels, cells, cells)
    conv.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    conv.bias = linear.bias
    return conv
