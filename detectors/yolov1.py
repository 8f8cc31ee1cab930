"""YOLO, the first (Redmon et al. 2015, https://arxiv.org/abs/1506.02640): one regression from a whole picture to an S x S grid
of boxes and categories. Layers above the body: `yolov1_head.py`; training: `yolov1_loss.py`; the output: `yolov1_cells.py`.

Deviations: negative confidences and probabilities count as zero, and scores above one as one; at most 1000 pairs of box and
category an image enter the suppression.

Letters: as in `yolov1_cells.py`; H, W pixels of the frame, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn

from ..backbone import Backbone, BackboneWithFPN, Norm, build_backbone, check_backbone, norm_layer
from ..backbone.building import finish
from ..backbone.wrap import map_shapes
from ..datasets.structures import Instances
from .assignment import gather
from .boxes import clip, full_precision
from .model import Detector
from .nms import best, nms
from .yolov1_cells import decode, split
from .yolov1_head import Head, detection_layers
from .yolov1_loss import yolo_losses


class Outputs(NamedTuple):
    """What `forward` says of a batch.

    Attributes:
        prediction: (B, S, S, 5K + C) float32, see `yolov1_cells.py`.
    """

    prediction: Tensor


class YOLOv1(Detector):
    """One pass over a picture of one fixed size: K boxes and C probabilities for each cell of an S x S grid.

    Args:
        backbone: pixels to feature maps, of which the last is used.
        head: that map to the prediction.
        side: height and width of the frame, in pixels.
        detections: D, the most detections an image.
    """

    score_threshold, iou_threshold = 0.001, 0.5
    candidates = 1000  # pairs of box and category an image that enter the suppression, best first

    def __init__(self, backbone: Backbone, head: Head, *, side: int, detections: int = 100) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=head.num_classes)
        self.backbone, self.head, self.side, self.detections = backbone, head, side, detections
        self.resize = (side, side, True)

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """The prediction.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below; H and W are the model's side.
            sizes: (B, 2), the valid (height, width) of each.

        Raises:
            ValueError: a frame of another size, which the fully connected layers cannot take.
        """
        if tuple(images.shape[-2:]) != (self.side, self.side):
            raise ValueError(_wrong_size(images, self.side))
        features = self.backbone(self.normalize(images, sizes))[-1]
        return Outputs(full_precision(self.head(features)))

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """The five sums of the paper's equation 3: `loss_xy`, `loss_wh`, `loss_confidence`, `loss_no_object`, `loss_cls`."""
        return yolo_losses(split(outputs.prediction, self.head.predictors), targets, self.side)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """Instances of (B, D), best first, label -1 as padding. A score is a class's probability times the confidence (eq. 1)."""
        places, confidence, classes = split(outputs.prediction, self.head.predictors)
        boxes = clip(decode(places, self.side).flatten(1, 3), sizes)
        scores = confidence.clamp(min=0)[..., None] * classes.clamp(min=0)[..., None, :]  # (B, S, S, K, C)
        flat = scores.flatten(1)
        scores, idxs = flat.topk(min(self.candidates, flat.shape[1]), dim=1)
        boxes, labels = gather(boxes, idxs // self.head.num_classes), idxs % self.head.num_classes
        solid = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        kept = nms(boxes, (scores > self.score_threshold) & solid, self.iou_threshold, labels)
        found = best(boxes, scores, labels, kept, self.detections)
        return replace(found, scores=found.scores.clamp(max=1))


def _wrong_size(images: Tensor, side: int) -> str:
    height, width = images.shape[-2:]
    return (
        f"this YOLO takes pictures of {side}x{side} pixels, got a frame of {height}x{width}: bring pictures to that size "
        f"(--data.min_size {side} --data.max_size {side} --data.exact true), or build the model for another "
        "(--model.detector.init_args.size)"
    )


def yolov1(
    backbone: str = "yolo20",
    num_classes: int = 20,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "batch",
    trainable_stages: int | None = None,
    size: int = 448,
    grid: int = 7,
    boxes_per_cell: int = 2,
    extra: Sequence[int] = (1024, 1024, 1024, 1024),
    hidden: Sequence[int] = (4096,),
    dropout: float = 0.5,
    detections: int = 100,
) -> YOLOv1:
    """YOLO on any backbone without a pyramid; by default the paper's network of 24 convolutions.

    Fast YOLO is `yolov1("yolo9", extra=(), hidden=(256, 4096))`.

    Args:
        backbone: a name in `BACKBONES` of a body without a pyramid; of its maps the last is used.
        num_classes: C.
        weights: of the whole model: None, a path or a URL. With another number of classes than the weights', the last
            layer starts at random.
        backbone_weights: of the backbone alone: None, a path, a URL or a named source; of the paper's network, a classifier
            `yolo20` trained before.
        norm: "frozen", "batch", "sync" or "group", of the body and then of the extra convolutions too; a body without norms,
            as the paper's is, gets none there.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        size: height and width of the pictures, in pixels: the model takes no others.
        grid: S.
        boxes_per_cell: K, the paper's B.
        extra: channels of the 3 x 3 convolutions between the body and the fully connected layers; none, one or more.
        hidden: widths of the fully connected layers below the last; with none, the last one is a convolution, see `Head`.
        dropout: before the last layer, in training.
        detections: D.

    Raises:
        ValueError: an argument out of range, a backbone with a pyramid, or one that pictures of this size are too small for.
    """
    architecture = {"name": "yolov1", "arguments": dict(locals())}
    for name, value in {"size": size, "grid": grid, "boxes_per_cell": boxes_per_cell}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    check_backbone(body, user="YOLOv1")
    if isinstance(body, BackboneWithFPN):
        raise ValueError(
            f"yolov1 looks at one map, and most of a pyramid would learn nothing: instead of {backbone!r} take "
            f"{backbone.split('_fpn')[0]!r}"
        )
    cells = map_shapes(body, size)[-1][-1]
    convolutions, shape = detection_layers(body.channels[-1], cells, grid, extra, _norm_like(body, norm))
    if not hidden and shape[-1] != grid:
        raise ValueError(
            f"without hidden layers the grid cannot be finer than the last map, which {backbone} makes of {size} pixels with "
            f"{shape[-1]} cells a side: set grid to {shape[-1]}, size to {-(-size * grid // shape[-1])}, or hidden to [4096]"
        )
    head = Head(convolutions, shape, num_classes, grid=grid, predictors=boxes_per_cell, hidden=hidden, dropout=dropout)
    model = YOLOv1(body, head, side=size, detections=detections)
    return finish(model, architecture, weights, allow_missing=("head.prediction.",))


def _norm_like(body: nn.Module, norm: str) -> Norm | None:
    """The body's norm, for the layers above; None where it has none."""
    factory = norm_layer(norm)
    kind = type(factory(32))
    return factory if any(type(module) is kind for module in body.modules()) else None
