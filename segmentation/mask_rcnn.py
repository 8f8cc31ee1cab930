"""Mask R-CNN (He et al. 2017, https://arxiv.org/abs/1703.06870): Faster R-CNN with a mask for each object.

torchvision's `maskrcnn_*` state dicts load with the same boxes, scores and masks. Deviations from it are listed in
`mask_head.py`, `detectors/rpn.py` and `detectors/roi_head.py`.

Letters: B images, C categories, K proposals, D detections, M = 28 cells along a mask's side.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ..backbone import OLD_TORCHVISION, Backbone, build_backbone
from ..datasets.structures import Instances
from ..detectors.faster_rcnn import FasterRCNN, Outputs, finished, rpn_over
from ..detectors.roi_head import BoxPredictor, ConvHead, TwoLayerHead
from ..detectors.roi_pool import RoIAlign
from ..detectors.rpn import RPN
from .mask_head import MaskHead, MaskPredictor, MaskRoIHead

# torchvision's published file of 2018 counts the mask head's convolutions from 1.
OLD_KEYS = (*OLD_TORCHVISION, *((rf"mask_fcn{i + 1}\.", f"{i}.0.") for i in range(4)))


class MaskRCNN(FasterRCNN):
    """Faster R-CNN whose second stage draws masks too.

    Args:
        backbone, rpn: see `FasterRCNN`.
        roi_heads: proposals to detections with masks.
    """

    task = "instance_segmentation"

    def __init__(self, backbone: Backbone, rpn: RPN, roi_heads: MaskRoIHead) -> None:
        super().__init__(backbone, rpn, roi_heads)

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """The four losses of Faster R-CNN and `loss_mask`, all to be summed; the targets have masks, at any resolution."""
        return super().losses(outputs, targets)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """As of `FasterRCNN`; and `masks` (B, D, 28, 28), probabilities within each box, the object's own from 0.5 on."""
        return super().decode(outputs, sizes)


def mask_rcnn(
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
    mask_width: int = 256,
    mask_layers: int = 4,
) -> MaskRCNN:
    """Mask R-CNN with a feature pyramid; its state dict is torchvision's `maskrcnn_resnet50_fpn`'s.

    Args:
        samples: regions of an image that the second stage's losses look at; masks are learnt in a quarter of them.
        mask_width: channels of the mask head.
        mask_layers: how many convolutions it has before the one that doubles its size.

    The other arguments are those of `detectors.faster_rcnn`.
    """
    if weights == "coco" and norm == "frozen":
        norm = "frozen_eps0"  # these weights were trained with an epsilon of zero
    architecture = {"name": "mask_rcnn", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    rpn = rpn_over(body, anchor_sizes, proposals=proposals, score_threshold=proposal_score)
    box_head = TwoLayerHead(body.channels[0], width=head_width)
    mask_head = MaskHead(body.channels[0], depth=mask_layers, width=mask_width)
    roi_heads = _roi_heads(body, box_head, mask_head, num_classes, samples=samples, detections=detections)
    return _finished(MaskRCNN(body, rpn, roi_heads), architecture, weights)


def mask_rcnn_v2(
    backbone: str = "resnet50_fpn_v2",
    num_classes: int = 90,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "batch",
    trainable_stages: int | None = None,
    proposals: int = 1000,
    detections: int = 100,
) -> MaskRCNN:
    """torchvision's `maskrcnn_resnet50_fpn_v2`: batch norm throughout, a deeper RPN and convolutional heads.

    The recipe is that of Li et al. 2021, https://arxiv.org/abs/2111.11429. Arguments as for `mask_rcnn`.
    """
    architecture = {"name": "mask_rcnn_v2", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    rpn = rpn_over(body, ((32,), (64,), (128,), (256,), (512,)), proposals=proposals, depth=2)
    box_head, mask_head = ConvHead(body.channels[0]), MaskHead(body.channels[0], norm=True)
    roi_heads = _roi_heads(body, box_head, mask_head, num_classes, samples=512, detections=detections)
    return _finished(MaskRCNN(body, rpn, roi_heads), architecture, weights)


def _roi_heads(
    body: Backbone,
    box_head: TwoLayerHead | ConvHead,
    mask_head: MaskHead,
    num_classes: int,
    *,
    samples: int,
    detections: int,
) -> MaskRoIHead:
    """Regions are pooled from the pyramid up to stride 32, into 7 x 7 bins for boxes and 14 x 14 for masks."""
    strides = [stride for stride in body.strides if stride <= 32]
    box_predictor = BoxPredictor(box_head.width, num_classes)
    mask_predictor = MaskPredictor(mask_head.width, num_classes, width=mask_head.width)
    return MaskRoIHead(
        RoIAlign(strides),
        box_head,
        box_predictor,
        RoIAlign(strides, output_size=14),
        mask_head,
        mask_predictor,
        samples=samples,
        detections=detections,
    )


def _finished(model: MaskRCNN, architecture: dict, weights: str | None) -> MaskRCNN:
    last_layers = ("roi_heads.box_predictor.", "roi_heads.mask_predictor.mask_fcn_logits.")
    return finished(model, architecture, weights, last_layers=last_layers, rename=OLD_KEYS)
