"""YOLOX (Ge et al. 2021, https://arxiv.org/abs/2107.08430): one stage, no anchors; each cell of three maps says what lies
around it. With a second head, no suppression at the end (one-to-one assignment beside one-to-many, as in Wang et al. 2024,
https://arxiv.org/abs/2405.14458, section 3.1).

The published weights load with the same outputs (`yolox_weights.py`). Letterboxed pictures are padded with 114, right and
below, as theirs.

Letters: B images, H, W pixels of the frame, A points of all levels, C categories, K candidates, D detections.
"""

from __future__ import annotations

import difflib
from functools import partial
from typing import NamedTuple

from torch import Tensor

from ..backbone import Backbone, build_backbone, norm_layer
from ..backbone.building import finish
from ..backbone.csp_darknet import SIZES
from ..datasets.structures import Instances
from .assignment import gather
from .boxes import clip
from .model import Detector
from .nms import best, nms
from .yolo_head import Predictions, YOLOHead, decode_boxes, points
from .yolox_losses import dense_losses, single_losses
from .yolox_weights import LAST, convert

# Pairs of point and category that enter the suppression, best first; twice as many find nothing more.
CANDIDATES = 1000
# Grey level, 0 to 255, of what surrounds a picture in its frame.
GREY = 114.0


class Outputs(NamedTuple):
    """What `forward` knows of a batch.

    Attributes:
        dense: of the usual head, in which many points may stand for one object.
        single: of the second head, in which one point stands for an object; None where there is none.
        points: (A, 3), x and y of each cell's top left corner and its stride, in pixels.
    """

    dense: Predictions
    single: Predictions | None
    points: Tensor


class YOLOX(Detector):
    """A backbone with a neck, a decoupled head, and perhaps a second head whose detections need no suppression.

    Args:
        backbone: pixels to feature maps.
        head: of as many maps as the backbone gives.
        single_head: of the same form, on the same maps; the backbone learns nothing from it.
        detections: D, the most detections an image.
        score_threshold: detections of at most this score are dropped.
        iou_threshold: of the suppression, category by category.
    """

    min_side = 1e-2  # pixels

    def __init__(
        self,
        backbone: Backbone,
        head: YOLOHead,
        single_head: YOLOHead | None = None,
        *,
        detections: int = 100,
        score_threshold: float = 0.001,
        iou_threshold: float = 0.65,
    ) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=head.num_classes, padding=GREY)
        self.backbone, self.head, self.single_head = backbone, head, single_head
        self.detections, self.score_threshold, self.iou_threshold = detections, score_threshold, iou_threshold

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:  # type: ignore[override]
        """What every point says.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below; H and W multiples of 32.
            sizes: (B, 2), the valid (height, width) of each.
        """
        features = self.backbone(self.normalize(images, sizes))
        single = None if self.single_head is None else self.single_head([feature.detach() for feature in features])
        return Outputs(self.head(features), single, points(features, self.backbone.strides))

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """`loss_box`, `loss_objectness` and `loss_cls`, and `loss_l1` while `refining`; of the second head its own three."""
        losses = dense_losses(outputs.dense, outputs.points, targets, l1=self.refining)
        if outputs.single is not None:
            losses |= single_losses(outputs.single, outputs.points, targets)
        return losses

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """Final detections: Instances of (B, D), boxes in the frame's pixels, best first, label -1 as padding."""
        predictions = outputs.dense if outputs.single is None else outputs.single
        return self._found(predictions, outputs.points, sizes)

    def detect(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Instances:
        """From pixels to detections: `decode` after `forward`, but of two heads only the one that is asked runs."""
        features = self.backbone(self.normalize(images, sizes))
        head = self.head if self.single_head is None else self.single_head
        return self._found(head(features), points(features, self.backbone.strides), sizes)

    def _found(self, predictions: Predictions, points: Tensor, sizes: Tensor) -> Instances:
        """The best pairs of point and category; of a head that is alone, without those that overlap a better one."""
        suppressing = self.single_head is None
        scores, idxs, labels = best_pairs(predictions, CANDIDATES if suppressing else self.detections)
        boxes = clip(decode_boxes(gather(predictions.deltas, idxs), points[idxs]), sizes)
        kept = (scores > self.score_threshold) & (boxes[..., 2:] - boxes[..., :2] >= self.min_side).all(dim=-1)
        if suppressing:
            kept = nms(boxes, kept, self.iou_threshold, labels)
        return best(boxes, scores, labels, kept, self.detections)


def best_pairs(predictions: Predictions, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The pairs of point and category of the highest scores, best first; a score is objectness times the category's probability.

    All categories of a point count, not the best alone as in the reference: on 386 pictures of COCO that gains YOLOX-nano
    0.2 to 0.7 AP. No pair among the best K is of a point whose best category is not among the best K points'; so most
    points are left after a look at one number each.

    Returns:
        Scores in [0, 1], points and labels, (B, K) each, where K is `count` or as many pairs as there are.
    """
    logits, objectness = predictions.logits, predictions.objectness.sigmoid()
    categories = logits.shape[-1]
    highest = logits.amax(dim=-1).sigmoid() * objectness
    idxs = highest.topk(min(count, highest.shape[1]), dim=1).indices
    scores = (gather(logits, idxs).sigmoid() * gather(objectness, idxs)[..., None]).flatten(1)
    scores, pairs = scores.topk(min(count, scores.shape[1]), dim=1)
    return scores, idxs.gather(1, pairs // categories), pairs % categories


def yolox(
    size: str = "s",
    num_classes: int = 80,
    *,
    weights: str | None = None,
    backbone: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "batch",
    trainable_stages: int | None = None,
    one_to_one: bool = False,
    detections: int = 100,
    score_threshold: float = 0.001,
    iou_threshold: float = 0.65,
) -> YOLOX:
    """YOLOX of the paper's sizes: 0.9, 5, 9, 25, 54 and 99 million parameters.

    Args:
        size: "nano", "tiny", "s", "m", "l" or "x". Pictures are brought to 416 pixels for the first two, else to 640.
        num_classes: C.
        weights: of the whole detector, ours or YOLOX's own (`.pth`, or `.onnx` of the same size): None, a path or a URL.
            With another number of classes than the weights', the last layers of the categories start at random.
        backbone: a name in `BACKBONES` in place of the size's own; the head's width stays the size's.
        backbone_weights: of the backbone alone: None, a path, a URL or a named source.
        norm: "batch", "sync", "group" or "frozen"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        one_to_one: a second head, trained beside the first, that finds each object once: no suppression at the end.
            From weights without one it starts as a copy of the first.
        detections: D.
        score_threshold: detections of at most this score are dropped.
        iou_threshold: of the suppression, category by category.

    Raises:
        ValueError: no such size or backbone.
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "yolox", "arguments": dict(locals())}
    if size not in SIZES:
        close = difflib.get_close_matches(size, SIZES, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"size must be one of {', '.join(SIZES)}, got {size!r}{meant}")
    name = backbone or f"csp_darknet_{size}_pafpn"
    body = build_backbone(name, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    width, depthwise = SIZES[size].channels(256), SIZES[size].depthwise
    make_head = partial(YOLOHead, body.channels, num_classes, width=width, depthwise=depthwise, norm=norm_layer(norm))
    model = YOLOX(
        body,
        make_head(),
        make_head() if one_to_one else None,
        detections=detections,
        score_threshold=score_threshold,
        iou_threshold=iou_threshold,
    )
    model.resize = (416, 416) if size in ("nano", "tiny") else (640, 640)
    return finish(
        model, architecture, weights, name=f"yolox_{size}", convert=partial(convert, model), allow_missing=LAST
    )
