"""torchvision's fully convolutional networks: a ResNet dilated to stride 8, and a small head on its last map.

State dicts of `fcn_resnet50` and `fcn_resnet101` (https://github.com/pytorch/vision, models/segmentation/fcn.py) load with equal
logits, of the auxiliary head too, which looks at c4 and only helps to learn (PSPNet, https://arxiv.org/abs/1612.01105, section
3.3). As there, logits are interpolated to pixels as if cells lay in the middle of theirs, which ResNet's do not: its weights
have learned around it. `fcn.py` has the paper's networks, on any backbone and with skips.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import build_backbone, norm_layer
from ..backbone.building import finish
from ..backbone.norms import Norm
from ..backbone.protocol import Backbone
from .losses import MapLoss
from .model import Outputs, Segmenter

# What the published weights tell apart, and the shorter side of pictures that they are meant for.
VOC_21 = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
COCO_RESIZE = (520, 1333)


class FCNResNet(Segmenter):
    """One head on the last map, and one on the map before it for the loss.

    Args:
        backbone: gives c4 and c5.
        num_classes: C.
        norm: of the heads.
        auxiliary: have the second head.
        auxiliary_weight, loss: see `Segmenter`.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        norm: Norm = nn.BatchNorm2d,
        auxiliary: bool = True,
        auxiliary_weight: float = 0.5,
        loss: MapLoss | None = None,
    ) -> None:
        super().__init__(
            mean=backbone.mean,
            std=backbone.std,
            num_classes=num_classes,
            loss=loss,
            auxiliary_weight=auxiliary_weight,
        )
        self.backbone = backbone
        c4, c5 = backbone.channels
        self.classifier = FCNHead(c5, num_classes, norm=norm)
        self.aux_classifier = FCNHead(c4, num_classes, norm=norm) if auxiliary else None

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """See `Segmenter.forward`."""
        size = images.shape[-2:]
        c4, c5 = self.backbone(self.normalize(images, sizes))
        auxiliary = () if self.aux_classifier is None else (_to_pixels(self.aux_classifier(c4), size),)
        return Outputs(_to_pixels(self.classifier(c5), size), auxiliary)


def _to_pixels(logits: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(logits, size=size, mode="bilinear", align_corners=False)


class FCNHead(nn.Sequential):
    """A 3x3 convolution to a quarter of the channels, norm, ReLU, dropout, and scores: (B, channels, h, w) to (B, C, h, w)."""

    def __init__(self, channels: int, num_classes: int, *, norm: Norm = nn.BatchNorm2d) -> None:
        width = channels // 4
        conv = nn.Conv2d(channels, width, 3, padding=1, bias=False)
        super().__init__(conv, norm(width), nn.ReLU(inplace=True), nn.Dropout(0.1), nn.Conv2d(width, num_classes, 1))


def fcn_resnet50(
    num_classes: int = 21,
    *,
    norm: str = "batch",
    auxiliary: bool = True,
    auxiliary_weight: float = 0.5,
    loss: str = "cross_entropy",
    trainable_stages: int | None = None,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> FCNResNet:
    """torchvision's `fcn_resnet50`.

    Args:
        num_classes: C; the published weights know VOC's 20 categories and background.
        norm: "batch", "sync", "group" or "frozen", of the backbone and the heads.
        auxiliary: a second head, for the loss alone.
        auxiliary_weight: of that loss; 0.5 in torchvision's recipe.
        loss: a kind of `MapLoss`.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        backbone_weights: of the backbone alone: None, a path, an address or "imagenet".
        weights: of the whole model, ours or torchvision's: None, a path, an address or "coco". With another number of classes
            than the weights', the last layers start at random.

    Raises:
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "fcn_resnet50", "arguments": dict(locals())}
    return _built("resnet50", architecture)


def fcn_resnet101(
    num_classes: int = 21,
    *,
    norm: str = "batch",
    auxiliary: bool = True,
    auxiliary_weight: float = 0.5,
    loss: str = "cross_entropy",
    trainable_stages: int | None = None,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> FCNResNet:
    """torchvision's `fcn_resnet101`. Arguments as for `fcn_resnet50`."""
    architecture = {"name": "fcn_resnet101", "arguments": dict(locals())}
    return _built("resnet101", architecture)


def _built(backbone: str, architecture: dict) -> FCNResNet:
    arguments = architecture["arguments"]
    weights, num_classes, norm = (arguments[key] for key in ("weights", "num_classes", "norm"))
    body = build_backbone(
        backbone,
        norm=norm,
        weights=arguments["backbone_weights"],
        trainable_stages=arguments["trainable_stages"],
        out_stages=(4, 5),
        output_stride=8,
    )
    model = FCNResNet(
        body,
        num_classes,
        norm=norm_layer(norm),
        auxiliary=arguments["auxiliary"],
        auxiliary_weight=arguments["auxiliary_weight"],
        loss=MapLoss(num_classes, kind=arguments["loss"]),
    )
    finish(
        model,
        architecture,
        weights,
        name=architecture["name"],
        convert=None if arguments["auxiliary"] else _without_auxiliary,
        allow_missing=("classifier.4.", "aux_classifier."),
    )
    if weights == "coco":
        model.resize = COCO_RESIZE
        model.categories = list(VOC_21) if num_classes == len(VOC_21) else model.categories
    return model


def _without_auxiliary(state: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """For a model without the second head, which torchvision's published weights have."""
    return {key: value for key, value in state.items() if not key.startswith("aux_classifier.")}
