"""Localization: the class and the place of one object, or of a fixed number of them, by regression from a whole picture.

One box an image as in ImageNet's task (Russakovsky et al. 2015, https://arxiv.org/abs/1409.0575, section 2.2), regressed
on a classifier's last map as in OverFeat (Sermanet et al. 2014, https://arxiv.org/abs/1312.6229, section 4.2); several
boxes and their assignment as in Szegedy et al. 2013 ("Deep neural networks for object detection"); landmarks as in
DeepPose (Toshev and Szegedy 2014, https://arxiv.org/abs/1312.4659).

Every place is a number of points in units of the picture's valid width and height: a box is its two corners, landmarks
follow. With landmarks alone the box is the one around them.

Letters: B images, H, W pixels of the frame, K answers an image, C categories, L categories looked at, R sets of points an
answer (1, or one a category), n points of a set (2 of a box, then P landmarks), S cells a side of the pooled map.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone, BackboneWithFPN, build_backbone, check_backbone
from ..backbone.building import finish
from ..datasets.structures import Instances
from .boxes import area, full_precision
from .model import Detector
from .roi_head import TwoLayerHead

# (..., 2) differences in `Localization.unit` to (..., 2) penalties.
Penalty = Callable[[Tensor], Tensor]


class Outputs(NamedTuple):
    """What `forward` says of a batch.

    Attributes:
        logits: (B, K, C + 1), the last column for "no object".
        points: (B, K, R, n, 2), (x, y) in valid widths and heights.
        sizes: (B, 2), the valid (height, width).
    """

    logits: Tensor
    points: Tensor
    sizes: Tensor


class Localization(Detector):
    """One backbone pass, the whole picture pooled to a small grid, fully connected layers: K answers.

    The K largest objects are what is learnt, crowds are none. Each answer goes with one object or with none, in the way
    that is cheapest for the losses themselves; so the answers need no order.

    Args:
        backbone: pixels to feature maps, of which the last is used.
        pool: that map and the pictures' sizes to (B, channels, S, S).
        head: the pooled map to vectors.
        predictor: vectors to logits and points.
        penalty: of differences between points, such as `squared` or `smooth_l1`.
    """

    task = "localization"
    classes_listed = 5  # by a model of one answer, so that the top-5 error means something
    unit = 0.1  # of the picture's side: losses of boxes are then about as large as those of classes

    def __init__(
        self, backbone: Backbone, pool: nn.Module, head: nn.Module, predictor: Predictor, *, penalty: Penalty
    ) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=predictor.num_classes)
        self.backbone, self.pool, self.head, self.predictor, self.penalty = backbone, pool, head, predictor, penalty
        orders = torch.tensor(list(permutations(range(predictor.objects))))
        self.register_buffer("orders", orders, persistent=False)  # (K!, K): which object each answer goes with

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Logits and points.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below.
            sizes: (B, 2), the valid (height, width) of each.
        """
        features = self.backbone(self.normalize(images, sizes))[-1]
        valid = torch.stack([sizes[:, 0] / images.shape[-2], sizes[:, 1] / images.shape[-1]], dim=1)
        logits, points = self.predictor(self.head(self.pool(features, valid)))
        return Outputs(full_precision(logits), full_precision(points), sizes)

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """`loss_cls` (cross-entropy), `loss_box` and `loss_landmarks`, as far as regressed: means over B * K answers.

        An image's losses are those of its cheapest assignment. Answers that go with no object learn to say so, and no
        place.

        Raises:
            ValueError: the targets lack the landmarks to be learnt.
        """
        wanted = self._wanted(targets, outputs)
        costs = self._costs(outputs, wanted)
        each = torch.arange(self.predictor.objects, device=self.orders.device)
        totals = torch.stack(list(costs.values())).sum(dim=0)[:, each, self.orders].sum(dim=-1)  # (B, K!)
        order = self.orders[totals.argmin(dim=1)]  # (B, K)
        return {name: cost.gather(2, order[..., None]).mean() for name, cost in costs.items()}

    def _wanted(self, targets: Instances, outputs: Outputs) -> Wanted:
        """The K largest objects of each image."""
        present, landmarks = targets.labels >= 0, self.predictor.landmarks
        if targets.crowd is not None:
            present = present & ~targets.crowd
        found = 0 if targets.landmarks is None else targets.landmarks.shape[-2]
        if landmarks and found != landmarks:
            raise ValueError(f"the model learns {landmarks} landmarks of an object, the data have {found}")
        corners = targets.boxes.unflatten(-1, (2, 2))
        points = torch.cat([corners, targets.landmarks], dim=-2) if landmarks else corners
        points = points[..., -self.predictor.points :, :] / outputs.sizes.flip(-1)[:, None, None]
        areas = F.pad(torch.where(present, area(targets.boxes), -1), (0, self.predictor.objects), value=-1)
        areas, order = areas.topk(self.predictor.objects, dim=1)
        labels = torch.where(areas >= 0, _take(targets.labels, order), self.predictor.num_classes)
        points = _take(points, order)
        known = (areas >= 0)[..., None] & points.isfinite().all(dim=-1)
        return Wanted(labels, torch.where(known[..., None], points, 0).to(outputs.points.dtype), known)

    def _costs(self, outputs: Outputs, wanted: Wanted) -> dict[str, Tensor]:
        """By loss, (B, K, K): what each answer would cost as each object."""
        each = outputs.logits.shape[:2]
        columns = wanted.labels[:, None].expand(*each, each[1])
        costs = {"loss_cls": -outputs.logits.log_softmax(dim=-1).gather(2, columns)}
        points = _points_of(outputs.points, columns)
        error = self.penalty((points - wanted.points[:, None]) / self.unit).mean(dim=-1)
        known = wanted.known[:, None].expand_as(error)
        for name, part in self.predictor.parts.items():
            total = torch.where(known, error, 0)[..., part].sum(dim=-1)
            costs[name] = total / known[..., part].sum(dim=-1).clamp(min=1)
        return costs

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """The answers, clipped to their pictures, best first: (B, K) of them, or the five likeliest classes where K is 1."""
        scores = outputs.logits.softmax(dim=-1)[..., :-1]
        listed = min(self.classes_listed, scores.shape[-1]) if scores.shape[1] == 1 else 1
        scores, labels = scores.topk(listed, dim=-1)
        points = _points_of(outputs.points, labels)
        points = (points.clamp(0, 1) * sizes.flip(-1)[:, None, None, None]).flatten(1, 2)
        scores, order = scores.flatten(1).topk(scores[0].numel(), dim=1)
        labels, points = labels.flatten(1).gather(1, order), _take(points, order)
        corners, landmarks = self.predictor.split(points)
        found = (scores > 0) & points.isfinite().all(dim=-1).all(dim=-1)  # else the network's numbers are none
        return Instances(
            torch.where(found[..., None], torch.cat([corners.amin(dim=-2), corners.amax(dim=-2)], dim=-1), 0),
            torch.where(found, labels, -1),
            torch.where(found, scores, 0),
            landmarks=landmarks,
        )


class Wanted(NamedTuple):
    """K objects of each image.

    Attributes:
        labels: (B, K) int64, 0..C-1, or C where there is no object.
        points: (B, K, n, 2), in valid widths and heights; 0 where unknown.
        known: (B, K, n) bool.
    """

    labels: Tensor
    points: Tensor
    known: Tensor


def _points_of(points: Tensor, labels: Tensor) -> Tensor:
    """(B, K, L, n, 2), each answer's points as each of (B, K, L) categories, from (B, K, R, n, 2)."""
    column = labels.clamp(max=points.shape[2] - 1)  # of what is the same for all categories there is one set
    return points.gather(2, column[..., None, None].expand(*column.shape, *points.shape[-2:]))


def _take(values: Tensor, order: Tensor) -> Tensor:
    """Rows of each image: values (B, N, ...) at order (B, K); beyond N, whatever stands last."""
    each = torch.arange(len(order), device=order.device)[:, None]
    return values[each, order.clamp(max=values.shape[1] - 1)]


class GridPool(nn.Module):
    """The mean of each of S x S equal parts of a picture's valid area, as far as cells go: nothing of the padding counts.

    One part is global average pooling, which forgets places but for what the features say of them.
    """

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.bins = bins

    def forward(self, features: Tensor, valid: Tensor) -> Tensor:
        """(B, channels, h, w) to (B, channels, S, S); valid (B, 2) is the share of the frame's height and width."""
        rows, columns = (self._shares(valid[:, axis] * cells, cells) for axis, cells in enumerate(features.shape[-2:]))
        return torch.einsum("bih,bchw,bjw->bcij", rows.to(features.dtype), features, columns.to(features.dtype))

    def _shares(self, lengths: Tensor, cells: int) -> Tensor:
        """(B, S, cells): what each cell contributes to each of S equal parts of the first (B,) lengths cells; sums are 1."""
        edges = torch.arange(self.bins + 1, device=lengths.device) * (lengths[:, None] / self.bins)
        start = torch.arange(cells, device=lengths.device)
        common = torch.minimum(edges[:, 1:, None], start + 1) - torch.maximum(edges[:, :-1, None], start)
        return common.clamp(min=0) / (lengths[:, None, None] / self.bins)


class Predictor(nn.Module):
    """Vectors to K answers: logits of C categories and "no object", and points.

    Args:
        width: of the vectors.
        num_classes: C.
        objects: K, 1 to `most`.
        boxes: whether boxes are regressed; else they are those around the landmarks.
        landmarks: P.
        class_specific: points of their own for every category (R = C), or the same for all (R = 1).

    Raises:
        ValueError: K out of range, or neither boxes nor landmarks.
    """

    most = 5  # every order of the answers is tried

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        objects: int = 1,
        boxes: bool = True,
        landmarks: int = 0,
        class_specific: bool = True,
    ) -> None:
        super().__init__()
        if not 1 <= objects <= self.most:
            raise ValueError(
                f"objects must be 1 to {self.most}, for every order of the answers is tried; got {objects}"
            )
        corners = 2 if boxes else 0
        self.num_classes, self.objects, self.landmarks, self.points = (
            num_classes,
            objects,
            landmarks,
            corners + landmarks,
        )
        if not self.points:
            raise ValueError("nothing to regress: set boxes to true, or landmarks to how many the data have")
        parts = {"loss_box": slice(0, corners), "loss_landmarks": slice(corners, self.points)}
        self.parts = {name: part for name, part in parts.items() if part.start < part.stop}
        self.sets = num_classes if class_specific else 1
        self.logits = nn.Linear(width, objects * (num_classes + 1))
        self.regression = nn.Linear(width, objects * self.sets * self.points * 2)
        start = torch.tensor(([0.25, 0.75] if boxes else []) + [0.5] * landmarks)  # the picture's middle
        with torch.no_grad():
            self.regression.bias.add_(start[:, None].expand(objects * self.sets, -1, 2).flatten())

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, width) to logits (B, K, C + 1) and points (B, K, R, n, 2)."""
        points = self.regression(vectors).unflatten(1, (self.objects, self.sets, self.points, 2))
        return self.logits(vectors).unflatten(1, (self.objects, -1)), points

    def split(self, points: Tensor) -> tuple[Tensor, Tensor | None]:
        """Points (..., n, 2) as those whose extent is the box, and the landmarks."""
        landmarks = points[..., self.points - self.landmarks :, :] if self.landmarks else None
        return points[..., :2, :] if "loss_box" in self.parts else points, landmarks


def squared(difference: Tensor) -> Tensor:
    """L2: half the square."""
    return 0.5 * difference**2


def smooth_l1(difference: Tensor) -> Tensor:
    """Half the square up to 1, then linear (Fast R-CNN, https://arxiv.org/abs/1504.08083, eq. 3)."""
    return F.smooth_l1_loss(difference, torch.zeros_like(difference), reduction="none")


PENALTIES: dict[str, Penalty] = {"l2": squared, "smooth_l1": smooth_l1}


def localization(
    backbone: str = "resnet18",
    num_classes: int = 1000,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    objects: int = 1,
    boxes: bool = True,
    landmarks: int = 0,
    class_specific: bool = True,
    penalty: str = "smooth_l1",
    bins: int = 4,
    head_width: int = 512,
) -> Localization:
    """Classification and box regression on any backbone without a pyramid.

    Args:
        backbone: a name in `BACKBONES` of a body without a pyramid; of its maps the last is used.
        num_classes: C.
        weights: of the whole model: None, a path or a URL. With another number of classes, objects or landmarks than the
            weights', the last layers start at random.
        backbone_weights: of the backbone alone: None, a path, a URL or "imagenet".
        norm: "frozen", "batch", "sync" or "group"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all, and with 0 the
            backbone is fixed, its norms too.
        objects: K, answers an image, 1 to 5.
        boxes: regress boxes; if not, they are those around the landmarks.
        landmarks: how many points of each object to regress, as many as the data have.
        class_specific: a place for every category, or one for all.
        penalty: "smooth_l1" or "l2".
        bins: S, parts a side that the last map is pooled to; 1 is global average pooling.
        head_width: of the two fully connected layers.

    Raises:
        ValueError: an argument out of range, or a backbone with a pyramid.
    """
    architecture = {"name": "localization", "arguments": dict(locals())}
    if penalty not in PENALTIES:
        raise ValueError(f"penalty must be one of {', '.join(PENALTIES)}, got {penalty!r}")
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    check_backbone(body, user="Localization")
    if isinstance(body, BackboneWithFPN):
        raise ValueError(
            f"localization looks at one map, and most of a pyramid would learn nothing: instead of {backbone!r} take "
            f"{backbone.split('_fpn')[0]!r}"
        )
    predictor = Predictor(
        head_width, num_classes, objects=objects, boxes=boxes, landmarks=landmarks, class_specific=class_specific
    )
    head = TwoLayerHead(body.channels[-1], bins, head_width)
    model = Localization(body, GridPool(bins), head, predictor, penalty=PENALTIES[penalty])
    return finish(model, architecture, weights, allow_missing=("predictor.",))
