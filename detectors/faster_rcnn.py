"""Faster R-CNN (Ren et al. 2015, https://arxiv.org/abs/1506.01497), with a feature pyramid (Lin et al. 2017,
https://arxiv.org/abs/1612.03144) or on a single feature map as in the paper.

torchvision's `fasterrcnn_*` state dicts load with the same boxes and scores. Deviations from it are listed in `rpn.py` and
`roi_head.py`.

Letters: B images, H, W pixels of the frame, K proposals, C categories, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from ..backbone import OLD_TORCHVISION, Backbone, LastMap, build_backbone
from ..backbone.building import finish
from ..backbone.resnet import ResNet
from ..datasets.structures import Instances
from .anchors import Anchors
from .coco_names import COCO_91
from .model import Detector
from .roi_head import BoxPredictor, ConvHead, RoIHead, StageHead, TwoLayerHead
from .roi_pool import RoIAlign, RoIPool
from .rpn import RPN, Proposals, RPNHead
from .wide_head import gaussian_predictor, wide_head

M = TypeVar("M", bound="FasterRCNN")
# Boxes of a single map that enter the suppression; fewer would leave less than the usual 300 proposals.
CANDIDATES = 2000


class Outputs(NamedTuple):
    """What `forward` knows of a batch: its feature maps, finest first, and the RPN's word on it.

    Where proposals were given, they stand in place of the RPN's own.
    """

    features: list[Tensor]
    proposals: Proposals


class FasterRCNN(Detector):
    """Two stages on one backbone pass: proposals, then their category and refined box.

    Args:
        backbone: pixels to feature maps.
        rpn: feature maps to proposals.
        roi_heads: proposals to detections; regions are pooled from as many maps as its pool has strides.

    Attributes:
        learns: whose losses count, "rpn", "head" or both: alternating training (section 3.2) asks for one at a time.
    """

    def __init__(self, backbone: Backbone, rpn: RPN, roi_heads: RoIHead) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=roi_heads.num_classes)
        self.backbone, self.rpn, self.roi_heads = backbone, rpn, roi_heads
        self.learns: tuple[str, ...] = ("rpn", "head")

    def forward(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Outputs:
        """Features and proposals.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below; H and W multiples of 32.
            sizes: (B, 2), the valid (height, width) of each.
            proposals: (B, K), made elsewhere, for the head to look at in place of the RPN's; boxes in the frame's pixels,
                label -1 as padding.
        """
        features = self.backbone(self.normalize(images, sizes))
        own = self.rpn(self._seen(features), sizes, images.shape[-2:])
        return Outputs(features, own if proposals is None else _replaced(own, proposals))

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN: `loss_objectness`, `loss_rpn_box`, `loss_cls`, `loss_box`, all to be summed.

        Of a part that does not learn there are none.
        """
        features, proposals = outputs
        losses: dict[str, Tensor] = {}
        if "rpn" in self.learns:
            losses |= self.rpn.losses(proposals, targets)
        if "head" in self.learns:
            losses |= self.roi_heads.losses(self._pooled(features), proposals.boxes, proposals.valid, targets)
        return losses

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """Final detections: Instances of (B, D), boxes in the frame's pixels, best first, label -1 as padding."""
        features, proposals = outputs
        return self.roi_heads.decode(self._pooled(features), proposals.boxes, proposals.valid, sizes)

    def propose(self, images: Tensor, sizes: Tensor) -> Instances:
        """The RPN's proposals of (B, K): boxes in the frame's pixels, best first, label 0 (-1 as padding), scores in [0, 1]."""
        proposals = self(images, sizes).proposals
        return Instances(proposals.boxes, proposals.valid.long() - 1, proposals.scores)

    def _seen(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """The maps that the RPN looks at: all, unless it has anchors for the last ones alone."""
        return features[-self.rpn.anchors.num_levels :]

    def _pooled(self, features: Sequence[Tensor]) -> Sequence[Tensor]:
        """The maps that regions are pooled from: the pyramid without its extra coarse level."""
        return features[: len(self.roi_heads.pool.strides)]


def _replaced(own: Proposals, given: Instances) -> Proposals:
    """The RPN's logits and offsets, which it may still learn from, with someone else's boxes; those without scores count 1."""
    valid = given.labels >= 0
    boxes = torch.where(valid[..., None], given.boxes, 0)  # padding is undefined
    scores = torch.where(valid, 1.0 if given.scores is None else given.scores, 0.0)
    return own._replace(boxes=boxes, scores=scores, valid=valid, idxs=None)


def faster_rcnn(
    backbone: str = "resnet50_fpn",
    num_classes: int = 90,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    anchor_sizes: Sequence[Sequence[float]] = ((32,), (64,), (128,), (256,), (512,)),
    proposals: int = 1000,
    proposal_score: float = 0.0,
    samples: int = 512,
    detections: int = 100,
    head_width: int = 1024,
    truncated: Sequence[int] | None = None,
) -> FasterRCNN:
    """Faster R-CNN with a feature pyramid (FPN, section 4); its state dict is torchvision's `fasterrcnn_resnet50_fpn`'s.

    Args:
        backbone: a name in `BACKBONES` that ends in `_fpn`.
        num_classes: C. torchvision numbers COCO's 80 categories 0..89 and leaves ten unused.
        weights: of the whole detector, ours or torchvision's: None, a path, a URL or "coco". With another number of
            classes than the weights', the last layer starts at random.
        backbone_weights: of the backbone alone: None, a path, a URL or "imagenet".
        norm: "frozen", "batch", "sync" or "group"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        anchor_sizes: sides of the anchors in pixels, a row a level.
        proposals: K, and as many candidates a level before suppression; in training twice as many.
        proposal_score: the least objectness of a proposal, in [0, 1].
        samples: regions of an image that the second stage's losses look at.
        detections: D.
        head_width: of the two fully connected layers.
        truncated: ranks of fc6 and fc7 as `truncate_head` left them; None for whole layers.
    """
    if weights == "coco" and norm == "frozen":
        norm = "frozen_eps0"  # these weights were trained with an epsilon of zero
    architecture = {"name": "faster_rcnn", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    head = TwoLayerHead(body.channels[0], width=head_width, ranks=truncated)
    rpn = rpn_over(body, anchor_sizes, proposals=proposals, score_threshold=proposal_score)
    return _with_pyramid(body, rpn, head, num_classes, detections, architecture, weights, samples=samples)


def faster_rcnn_v2(
    backbone: str = "resnet50_fpn_v2",
    num_classes: int = 90,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "batch",
    trainable_stages: int | None = None,
    proposals: int = 1000,
    detections: int = 100,
) -> FasterRCNN:
    """torchvision's `fasterrcnn_resnet50_fpn_v2`: batch norm throughout, a deeper RPN and a convolutional head.

    The recipe is that of Li et al. 2021, https://arxiv.org/abs/2111.11429. Arguments as for `faster_rcnn`.
    """
    architecture = {"name": "faster_rcnn_v2", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    rpn = rpn_over(body, ((32,), (64,), (128,), (256,), (512,)), proposals=proposals, depth=2)
    return _with_pyramid(body, rpn, ConvHead(body.channels[0]), num_classes, detections, architecture, weights)


def faster_rcnn_mobilenet_v3(
    num_classes: int = 90,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    proposals: int = 1000,
    detections: int = 100,
) -> FasterRCNN:
    """torchvision's `fasterrcnn_mobilenet_v3_large_fpn`; with 150 proposals its `_320_fpn`. Arguments as for `faster_rcnn`."""
    architecture = {"name": "faster_rcnn_mobilenet_v3", "arguments": dict(locals())}
    body = build_backbone(
        "mobilenet_v3_large_fpn", norm=norm, weights=backbone_weights, trainable_stages=trainable_stages
    )
    rpn = rpn_over(body, ((32, 64, 128, 256, 512),) * 3, proposals=proposals, score_threshold=0.05)
    return _with_pyramid(body, rpn, TwoLayerHead(body.channels[0]), num_classes, detections, architecture, weights)


def faster_rcnn_c4(
    backbone: str = "resnet50",
    num_classes: int = 90,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    anchor_sizes: Sequence[float] = (128, 256, 512),
    proposals: int = 300,
    detections: int = 100,
) -> FasterRCNN:
    """Faster R-CNN on a ResNet's stride-16 map, its last stage as the head (He et al. 2015, https://arxiv.org/abs/1512.03385,
    appendix A). Anchors of `anchor_sizes` by three ratios; other arguments as for `faster_rcnn`.
    """
    architecture = {"name": "faster_rcnn_c4", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    if not isinstance(body, ResNet):
        raise ValueError(f"faster_rcnn_c4 needs a ResNet, e.g. backbone='resnet50', got {backbone!r}")
    width = body.channels[-1]
    head = StageHead(body.take_last_stage(), width)
    single = LastMap(body)
    rpn = rpn_over(single, (tuple(anchor_sizes),), proposals=proposals, candidates=CANDIDATES)
    pool = RoIAlign(single.strides, output_size=14)
    roi_heads = RoIHead(pool, head, BoxPredictor(width, num_classes), detections=detections)
    return finished(FasterRCNN(single, rpn, roi_heads), architecture, weights)


def faster_rcnn_c5(
    backbone: str = "vgg16",
    num_classes: int = 90,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    anchor_sizes: Sequence[float] = (128, 256, 512),
    proposals: int = 300,
    samples: int = 128,
    detections: int = 100,
    head_width: int = 4096,
    truncated: Sequence[int] | None = None,
) -> FasterRCNN:
    """Faster R-CNN as in its paper: RoI max pooling and two wide layers on the last map of VGG-16, or of any backbone.

    Anchors of `anchor_sizes` by three ratios, nine a cell. fc6 and fc7 start from `backbone_weights` too, where the network's
    classifier has such layers, see `wide_head`. `samples` are the paper's for a picture; its head is Fast R-CNN's, box loss
    included. Other arguments as for `faster_rcnn`.
    """
    architecture = {"name": "faster_rcnn_c5", "arguments": dict(locals())}
    single = LastMap(build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages))
    rpn = rpn_over(single, (tuple(anchor_sizes),), proposals=proposals, candidates=CANDIDATES)
    head = wide_head(backbone, single.channels[0], head_width, weights=backbone_weights, ranks=truncated)
    pool = RoIPool(single.strides, output_size=head.bins)
    predictor = gaussian_predictor(head_width, num_classes)
    roi_heads = RoIHead(pool, head, predictor, samples=samples, detections=detections, box_beta=1.0)
    return finished(FasterRCNN(single, rpn, roi_heads), architecture, weights)


def rpn_over(
    body: Backbone,
    anchor_sizes: Sequence[Sequence[float]],
    *,
    proposals: int,
    candidates: int | None = None,
    score_threshold: float = 0.0,
    depth: int = 1,
) -> RPN:
    """An RPN that shares one head over all maps, with anchors of three ratios.

    In training there are twice the proposals, or as many as candidates: torchvision's 2000 to 1000, the paper's 2000 to 300.
    """
    if len(set(body.channels)) > 1:
        raise ValueError(
            f"the RPN needs maps of one number of channels, the backbone gives {body.channels}; take one that ends in _fpn"
        )
    if len(anchor_sizes) != len(body.strides):
        raise ValueError(f"{len(anchor_sizes)} rows of anchor sizes for a backbone of {len(body.strides)} feature maps")
    anchors = Anchors(anchor_sizes, (0.5, 1.0, 2.0))
    if len(set(anchors.per_cell)) > 1:
        raise ValueError(f"every level needs the same number of anchor sizes, got {[len(row) for row in anchor_sizes]}")
    head = RPNHead(body.channels[0], anchors.per_cell[0], depth=depth)
    return RPN(
        head,
        anchors,
        pre_nms=candidates or proposals,
        post_nms=proposals,
        training_nms=max(candidates or 0, 2 * proposals),
        score_threshold=score_threshold,
    )


def _with_pyramid(
    body: Backbone,
    rpn: RPN,
    head: TwoLayerHead | ConvHead,
    num_classes: int,
    detections: int,
    architecture: dict,
    weights: str | None,
    *,
    samples: int = 512,
) -> FasterRCNN:
    """Regions are pooled from the pyramid up to stride 32; what lies above only proposes."""
    pool = RoIAlign([stride for stride in body.strides if stride <= 32])
    predictor = BoxPredictor(head.width, num_classes)
    roi_heads = RoIHead(pool, head, predictor, samples=samples, detections=detections)
    return finished(FasterRCNN(body, rpn, roi_heads), architecture, weights)


def finished(
    model: M,
    architecture: dict,
    weights: str | None,
    *,
    last_layers: Sequence[str] = ("roi_heads.box_predictor.",),
    rename: Sequence[tuple[str, str]] = OLD_TORCHVISION,
) -> M:
    """What every builder of this family ends with: weights, ours or torchvision's, and with COCO's its categories.

    Args:
        model, architecture, weights: see `finish`.
        last_layers: prefixes of what starts at random with another number of classes than the weights'.
        rename: of torchvision's older keys.
    """
    name = f"{architecture['name']}:{architecture['arguments'].get('backbone', '')}"
    finish(model, architecture, weights, name=name, rename=rename, allow_missing=last_layers)
    if weights == "coco" and len(model.categories) == len(COCO_91):
        model.categories = list(COCO_91)
    return model
