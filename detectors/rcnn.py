"""R-CNN (Girshick, Donahue, Darrell and Malik 2014, https://arxiv.org/abs/1311.2524): a classification network, region by region.

It is Fast R-CNN whose shared trunk is the identity: regions are cut out of the picture itself (`Warp`), and the network of
classification is what describes them. So all that is Fast R-CNN's (sampling, losses, decoding) is here the same code.

Training has two parts: the network is fine-tuned as any detector, and `training.region_machines` puts the paper's support
vector machines and box regressors in the place of its last layers. Both kinds give detections.

Deviations: machines and regressors see the same layer, the network's last but one (the paper regresses from pool5);
a batch's 32 objects and 96 others are 16 and 48 of each of two pictures; while fine-tuning a box layer learns too, but
does not change the network, which learns from categories alone as in the paper; at most 2048 (region, category)
pairs a picture enter the suppression.

Letters: B images, K regions an image, R regions, S pixels a side, C categories, D detections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..backbone import CLASSIFIERS, Backbone, build_backbone, build_classifier
from ..backbone.building import finish
from ..backbone.protocol import body_stages
from .boxes import full_precision
from .fast_rcnn import FastRCNN
from .proposers import proposer_named
from .roi_head import BoxPredictor, RoIHead
from .warp import Warp

IMAGENET = 1000


class RegionNetwork(Backbone):
    """A network that looks at one region at a time: what it gives of a whole picture is the picture.

    Args:
        body: crops (R, 3, S, S) to vectors (R, width) or maps (R, width, h, w), which are averaged; or to a list of maps,
            of which the last counts. It states `mean`, `std` and `stage_prefixes`.
        width: of the vectors.
    """

    strides, channels = (1,), (3,)

    def __init__(self, body: nn.Module, width: int) -> None:
        super().__init__()
        self.body, self.width = body, width
        self.mean, self.std = body.mean, body.std
        self.stage_prefixes = body_stages(body)

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]

    def describe(self, crops: Tensor) -> Tensor:
        """(R, 3, S, S) to (R, width)."""
        out = self.body(crops.contiguous(memory_format=torch.channels_last))  # on a CPU half the time
        last = out if isinstance(out, Tensor) else out[-1]
        return last.mean(dim=(2, 3)) if last.ndim == 4 else last


class RegionHead(RoIHead):
    """Names and refines regions of the picture, a fixed number at a time: 2000 of them do not fit into memory at once.

    Args:
        pool: cuts regions out of the picture.
        box_head: crops (R, 3, S, S) to vectors; a method of the backbone, whose weights it uses.
        box_predictor: vectors to C + 1 logits and 4 (C + 1) deltas.
        machines: the logits are the margins of support vector machines, one a category; column 0 says nothing.
        chunk: regions at a time. Results do not depend on it, but for batch norms in training.
        samples, iou_threshold, detections: see `RoIHead`.
    """

    def __init__(
        self,
        pool: Warp,
        box_head: Callable[[Tensor], Tensor],
        box_predictor: BoxPredictor,
        *,
        machines: bool = False,
        chunk: int = 128,
        samples: int = 64,
        iou_threshold: float = 0.3,
        detections: int = 100,
    ) -> None:
        super().__init__(
            pool, box_head, box_predictor, samples=samples, iou_threshold=iou_threshold, detections=detections
        )
        self.machines, self.chunk = machines, chunk

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, C + 1) and deltas (B, K, C + 1, 4) of regions (B, K, 4)."""
        vectors = self.vectors(features, rois)
        logits = self.box_predictor.cls_score(vectors)
        # The network learns from categories alone, and boxes from what it then gives.
        deltas = self.box_predictor.bbox_pred(vectors.detach())
        return full_precision(logits), full_precision(deltas).unflatten(-1, (-1, 4))

    def vectors(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """(B, K, width) of regions (B, K, 4)."""
        some = max(1, self.chunk // len(rois))
        described = [self.box_head(self.pool(features, part)) for part in rois.split(some, dim=1)]
        return torch.cat([vectors.unflatten(0, (len(rois), -1)) for vectors in described], dim=1)

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B, K, C + 1) to scores (B, K, C) in [0, 1]: of machines their order is right, and 0.5 is a margin of 0."""
        return logits[..., 1:].sigmoid() if self.machines else super().scores(logits)


class RCNN(FastRCNN):
    """The pieces of R-CNN put together by `rcnn`: a `RegionNetwork` below a `RegionHead`."""


def rcnn(
    backbone: str = "alexnet",
    num_classes: int = 20,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    proposer: str = "selective_search",
    proposals: int = 2000,
    size: int = 227,
    context: int = 16,
    samples: int = 64,
    detections: int = 100,
    machines: bool = False,
) -> RCNN:
    """R-CNN on AlexNet, as in its paper, or on any network.

    Args:
        backbone: a name in `CLASSIFIERS` or "timm:NAME", whose last layer is left out; or a name in `BACKBONES`, whose
            last map is averaged.
        num_classes: C.
        weights: of the whole detector: None, a path or a URL. With another number of classes than the weights', the
            last layer starts at random.
        backbone_weights: of the network alone: None, a path, a URL or "imagenet".
        norm: "frozen", "batch", "sync" or "group"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the network train, counted from the last; None trains all.
        proposer: a name in `PROPOSERS`.
        proposals: K, at most.
        size: S, the network's input.
        context: pixels of S on each side that show what is around a region.
        samples: regions of an image that the losses look at, a quarter of them objects.
        detections: D.
        machines: the last layers are those of `training.region_machines.fit_region_machines`, which sets this; else softmax.
    """
    architecture = {"name": "rcnn", "arguments": dict(locals())}
    network = region_network(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    roi_heads = RegionHead(
        Warp(size, context),
        network.describe,
        BoxPredictor(network.width, num_classes),
        machines=machines,
        samples=samples,
        detections=detections,
    )
    model = RCNN(network, roi_heads, proposer_named(proposer, proposals))
    return finish(model, architecture, weights, allow_missing=("roi_heads.box_predictor.",))


def region_network(name: str, *, norm: str, weights: str | None, trainable_stages: int | None) -> RegionNetwork:
    """The network of that name, of `CLASSIFIERS` without its last layer or of `BACKBONES`; arguments as for `rcnn`."""
    if name not in CLASSIFIERS and not name.startswith("timm:"):
        body = build_backbone(name, norm=norm, weights=weights, trainable_stages=trainable_stages)
        return RegionNetwork(body, body.channels[-1])
    body = build_classifier(name, IMAGENET, norm=norm, weights=weights, trainable_stages=trainable_stages)
    head = body.get_submodule(body.head_name)
    body.set_submodule(body.head_name, nn.Identity())
    for auxiliary in [child for child, _ in body.named_children() if child.startswith("aux")]:
        delattr(body, auxiliary)  # GoogLeNet's further classifiers
    return RegionNetwork(body, head.in_features if isinstance(head, nn.Linear) else head.in_channels)
