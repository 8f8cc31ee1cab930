"""Fast R-CNN (Girshick 2015, https://arxiv.org/abs/1504.08083): regions that someone else proposes, on one backbone pass.

Regions are pooled from the whole picture's features, named, and refined. A step looks at few pictures and many regions of
each (section 2.3), a quarter of them objects (IoU >= 0.5), the others near one (IoU in [0.1, 0.5)): a picture without
objects teaches nothing. Suppression is R-CNN's (IoU 0.3).

Deviations: box targets are scaled by fixed numbers (10, 10, 5, 5), as the paper's successors do, instead of by the data set's
variance; each image counts the same in the losses; biases learn at the rate of the weights.

Letters: B images, H, W pixels of the frame, K proposals, C categories, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbone import Backbone, BackboneWithFPN, LastMap, build_backbone
from ..backbone.building import finish
from ..datasets.proposals import Proposer, as_instances
from ..datasets.structures import Instances
from .model import Detector
from .proposers import proposer_named
from .roi_head import RoIHead, TwoLayerHead
from .roi_pool import RoIAlign, RoIPool
from .wide_head import gaussian_predictor, wide_head


class Outputs(NamedTuple):
    """What `forward` knows of a batch.

    Attributes:
        features: feature maps of B images, finest first.
        boxes: (B, K, 4), the proposals, xyxy in the frame's pixels.
        valid: (B, K) bool; false where an image has fewer than K.
    """

    features: list[Tensor]
    boxes: Tensor
    valid: Tensor


class FastRCNN(Detector):
    """Names and refines given regions.

    Args:
        backbone: pixels to feature maps.
        roi_heads: regions to detections; they are pooled from as many maps as its pool has strides.
        proposer: where to look in pictures that come without proposals.
    """

    def __init__(self, backbone: Backbone, roi_heads: RoIHead, proposer: Proposer) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=roi_heads.num_classes)
        self.backbone, self.roi_heads, self.proposer = backbone, roi_heads, proposer

    def forward(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Outputs:
        """Features, and the proposals.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below; H and W multiples of 32.
            sizes: (B, 2), the valid (height, width) of each.
            proposals: (B, K), boxes in the frame's pixels, label -1 as padding. None asks the proposer, picture by
                picture on the CPU: a data set's are better computed once, by `datasets.propose`.
        """
        if proposals is None:
            proposals = self.propose(images, sizes)
        features = self.backbone(self.normalize(images, sizes))
        valid = proposals.labels >= 0
        boxes = torch.where(valid[..., None], proposals.boxes, 0)  # padding is undefined, perhaps NaN
        return Outputs(features[: len(self.roi_heads.pool.strides)], boxes, valid)

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """Fast R-CNN's eq. 1: `loss_cls` and `loss_box`, to be summed."""
        return self.roi_heads.losses(outputs.features, outputs.boxes, outputs.valid, targets)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """Final detections: Instances of (B, D), boxes in the frame's pixels, best first, label -1 as padding."""
        return self.roi_heads.decode(outputs.features, outputs.boxes, outputs.valid, sizes)

    def propose(self, images: Tensor, sizes: Tensor) -> Instances:
        """The proposer's boxes (B, K) in these images, as `forward` takes them."""
        pictures = images.detach().clamp(0, 255).to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
        pairs = zip(pictures, sizes.tolist(), strict=True)
        found = [as_instances(self.proposer(picture[:height, :width])) for picture, (height, width) in pairs]
        return Instances.collate(found, size=self.proposer.limit).to(images.device)


def fast_rcnn(
    backbone: str = "vgg16",
    num_classes: int = 20,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    proposer: str = "selective_search",
    proposals: int = 2000,
    align: bool = False,
    samples: int = 64,
    detections: int = 100,
    head_width: int | None = None,
    truncated: Sequence[int] | None = None,
) -> FastRCNN:
    """Fast R-CNN on the last map of VGG-16, as in its paper, or of any backbone, or on a pyramid up to stride 32.

    Args:
        backbone: a name in `BACKBONES`; a pyramid if it ends in `_fpn`.
        num_classes: C.
        weights: of the whole detector: None, a path or a URL. With another number of classes than the weights', the
            last layer starts at random.
        backbone_weights: of the backbone, and of fc6 and fc7 where its classifier has such layers, see `wide_head`:
            None, a path, a URL or "imagenet".
        norm: "frozen", "batch", "sync" or "group"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        proposer: a name in `PROPOSERS`.
        proposals: K, at most.
        align: pool regions by RoIAlign instead of the paper's quantised maximum.
        samples: regions of an image that the losses look at, a quarter of them objects.
        detections: D.
        head_width: of the two fully connected layers; None for the papers': 4096, or on a pyramid 1024.
        truncated: ranks of fc6 and fc7 as `truncate_head` left them; None for whole layers.
    """
    architecture = {"name": "fast_rcnn", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    if isinstance(body, BackboneWithFPN):
        maps, strides = body, [stride for stride in body.strides if stride <= 32]
        head = TwoLayerHead(maps.channels[0], width=head_width or 1024, ranks=truncated)
    else:
        maps = LastMap(body)
        strides, channels = maps.strides, maps.channels[0]
        head = wide_head(backbone, channels, head_width or 4096, weights=backbone_weights, ranks=truncated)
    roi_heads = RoIHead(
        (RoIAlign if align else RoIPool)(strides, output_size=head.bins),
        head,
        gaussian_predictor(head.width, num_classes),
        samples=samples,
        iou_threshold=0.3,
        detections=detections,
        background_floor=0.1,
        box_beta=1.0,
    )
    model = FastRCNN(maps, roi_heads, proposer_named(proposer, proposals))
    return finish(model, architecture, weights, allow_missing=("roi_heads.box_predictor.",))
