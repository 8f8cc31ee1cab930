"""MNC, multi-task network cascades (Dai, He and Sun 2016, https://arxiv.org/abs/1512.04412): boxes, then a mask for each, then
the category of what the mask leaves, on one backbone pass.

Each stage sees what the one before it made: stage 1, a region proposal network, gives boxes; stage 2 draws the mask of each box
(section 3.2); stage 3 names the box from its features and from the same with all but the mask erased (3.3). Regions are cropped
with gradients to their boxes (3.2's RoI warping), so the losses of masks and categories teach the boxes, too: causal cascade
and end-to-end training of section 3.4. The cascade of five stages (3.5) repeats 2 and 3 on the boxes that stage 3 regressed.

Deviations: gradients to boxes count a hundredth of what they do in the paper, which starts from a trained network; where all
starts at random they unsettle stage 1. After 180 steps of a small network on one picture of three objects (one run each), all
three were found with a share of 0 or 0.01, two with 0.1 or 1. The others are listed in `mnc_cascade.py`.

Letters: B images, H, W pixels of the frame, K boxes an image, C categories, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backbone import Backbone, BackboneWithFPN, LastMap, build_backbone
from ..backbone.building import finish
from ..datasets.structures import Instances
from ..detectors.assignment import gather
from ..detectors.boxes import clip, decode, full_precision
from ..detectors.faster_rcnn import CANDIDATES, rpn_over
from ..detectors.model import Detector
from ..detectors.roi_head import TwoLayerHead
from ..detectors.roi_pool import RoIAlign
from ..detectors.rpn import RPN, Proposals
from ..detectors.wide_head import wide_head
from .mnc_cascade import Cascade, CategoryStage, MaskStage, weakly


class Outputs(NamedTuple):
    """What `forward` knows of a batch.

    Attributes:
        features: feature maps, finest first.
        proposals: stage 1's word on them.
        boxes: (B, K, 4), the proposals' boxes with gradients to stage 1.
        sizes: (B, 2), each image's (height, width).
    """

    features: list[Tensor]
    proposals: Proposals
    boxes: Tensor
    sizes: Tensor


class MNC(Detector):
    """Three networks in a row on one backbone pass.

    Args:
        backbone: pixels to feature maps.
        rpn: stage 1, feature maps to boxes.
        cascade: the stages above it; regions are pooled from as many maps as its pool has strides.
    """

    task = "instance_segmentation"

    def __init__(self, backbone: Backbone, rpn: RPN, cascade: Cascade) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=cascade.num_classes)
        self.backbone, self.rpn, self.cascade = backbone, rpn, cascade

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Features and boxes.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below; H and W multiples of 32.
            sizes: (B, 2), the valid (height, width) of each.
        """
        features = self.backbone(self.normalize(images, sizes))
        proposals = self.rpn(features, sizes, images.shape[-2:])
        pooled = features[: len(self.cascade.pool.strides)]
        boxes = weakly(boxes_with_gradients(proposals, sizes), self.cascade.box_gradient)
        return Outputs(pooled, proposals, boxes, sizes)

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """Stage 1's `loss_objectness` and `loss_rpn_box`, and those of `Cascade.losses`; the targets have masks."""
        features, proposals, boxes, sizes = outputs
        losses = self.rpn.losses(proposals, targets)
        return losses | self.cascade.losses(features, boxes, proposals.valid, sizes, targets)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """Final detections: Instances of (B, D) with masks (B, D, 28, 28), best first, label -1 as padding.

        Masks are probabilities within each box, the object's own from 0.5 on.
        """
        features, proposals, boxes, _ = outputs
        return self.cascade.decode(features, boxes, proposals.valid, sizes)


def boxes_with_gradients(proposals: Proposals, sizes: Tensor) -> Tensor:
    """(B, K, 4): the proposals' boxes, made again from their anchors, so that gradients reach the offsets."""
    deltas, anchors = gather(full_precision(proposals.deltas), proposals.idxs), proposals.anchors[proposals.idxs]
    return torch.where(proposals.valid[..., None], clip(decode(deltas, anchors), sizes), 0)


def mnc(
    backbone: str = "vgg16",
    num_classes: int = 20,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    anchor_sizes: Sequence[Sequence[float]] | None = None,
    proposals: int = 300,
    stages: int = 5,
    samples: int = 64,
    detections: int = 100,
    head_width: int | None = None,
    box_gradient: float = 0.01,
) -> MNC:
    """MNC on the last map of VGG-16, as in its paper, or of any backbone, or on a pyramid up to stride 32.

    Args:
        backbone: a name in `BACKBONES`; a pyramid if it ends in `_fpn`.
        num_classes: C.
        weights: of the whole model: None, a path or a URL. With another number of classes than the weights', the last
            layers start at random.
        backbone_weights: of the backbone, and of both pathways' fc6 and fc7 where its classifier has such layers, see
            `wide_head`: None, a path, a URL or "imagenet".
        norm: "frozen", "batch", "sync" or "group"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        anchor_sizes: sides of the anchors in pixels, a row for each map that proposes; None for 32 to 512 on a pyramid's
            levels, 128, 256 and 512 on a single map.
        proposals: K; more of them in training, see `rpn_over`.
        stages: 3 or 5. The weights are the same, and either may be used with those learnt with the other.
        samples: boxes of an image that the losses of stages 2 and 3 look at, a quarter of them objects.
        detections: D.
        head_width: of the fully connected layers of either pathway; None for 4096, or on a pyramid 1024.
        box_gradient: what gradients to boxes count, from 0 (boxes learn from their own losses alone) to the paper's 1.

    Raises:
        ValueError: another number of stages.
    """
    architecture = {"name": "mnc", "arguments": dict(locals())}
    if stages not in (3, 5):
        raise ValueError(f"a cascade has 3 or 5 stages, got {stages}")
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    if isinstance(body, BackboneWithFPN):
        maps, strides = body, [stride for stride in body.strides if stride <= 32]
        rpn = rpn_over(maps, anchor_sizes or ((32,), (64,), (128,), (256,), (512,)), proposals=proposals)
        paths = [TwoLayerHead(maps.channels[0], width=head_width or 1024) for _ in range(2)]
    else:
        maps = LastMap(body)
        strides, channels, width = maps.strides, maps.channels[0], head_width or 4096
        rpn = rpn_over(maps, anchor_sizes or ((128, 256, 512),), proposals=proposals, candidates=CANDIDATES)
        paths = [wide_head(backbone, channels, width, weights=backbone_weights) for _ in range(2)]
    bins = 2 * paths[0].bins
    cascade = Cascade(
        RoIAlign(strides, output_size=bins),
        MaskStage(maps.channels[0], bins),
        CategoryStage(*paths, num_classes),
        rounds=(stages - 1) // 2,
        samples=samples,
        detections=detections,
        box_gradient=box_gradient,
    )
    last = tuple(f"cascade.category_stage.{name}." for name in ("cls_score", "cls_score_box", "bbox_pred"))
    return finish(MNC(maps, rpn, cascade), architecture, weights, allow_missing=last)
