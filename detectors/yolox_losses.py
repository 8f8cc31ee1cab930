"""The losses of YOLOX (Ge et al. 2021, https://arxiv.org/abs/2107.08430, section 2.1), and of a one-to-one head beside it.

Every term is summed over points and divided by the number of positive points of the whole batch, as the paper's code does
and unlike this house's two-stage heads: an image with more or larger objects weighs more. Training in several processes,
each divides by its own.

Letters: B images, N objects (padded), A points, C categories.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.structures import Instances
from .assignment import gather
from .boxes import encode, full_precision, iou
from .dense_assignment import Assignment, inside, one_to_one, simota
from .yolo_head import Predictions, decode_boxes

BOX_WEIGHT = 5.0


def dense_losses(predictions: Predictions, points: Tensor, targets: Instances, *, l1: bool) -> dict[str, Tensor]:
    """Losses of the head in which an object has many points, found by SimOTA.

    Points in the padding of a frame are background, as in the paper's code. Points in a crowd that no object claims have
    no objectness to learn.

    Args:
        predictions: of B images.
        points: (A, 3), as `yolo_head.points` gives them.
        targets: the objects of B images, N at least 1.
        l1: add the L1 loss of the raw deltas, which the paper does once strong augmentation is off.

    Returns:
        Scalars `loss_box` (5 (1 - IoU^2)), `loss_objectness` (binary cross-entropy), `loss_cls` (binary cross-entropy with
        the box's IoU in place of one as the category's target), and perhaps `loss_l1`.
    """
    assignment = simota(predictions, points, targets)
    losses = _losses(predictions, points, targets, assignment)
    if l1:
        losses["loss_l1"] = _l1_loss(predictions.deltas, points, targets, assignment)
    return losses


def single_losses(predictions: Predictions, points: Tensor, targets: Instances) -> dict[str, Tensor]:
    """Losses of the head in which an object has one point: `loss_single_box`, `loss_single_objectness`, `loss_single_cls`.

    Terms and arguments are those of `dense_losses`, the points those of `one_to_one`.
    """
    losses = _losses(predictions, points, targets, one_to_one(predictions, points, targets))
    return {name.replace("loss_", "loss_single_"): loss for name, loss in losses.items()}


def _losses(predictions: Predictions, points: Tensor, targets: Instances, assignment: Assignment) -> dict[str, Tensor]:
    positive, counted = assignment.positive, _counted(points, targets, assignment.positive)
    objectness, logits = full_precision(predictions.objectness), full_precision(predictions.logits)
    objectness = F.binary_cross_entropy_with_logits(objectness, positive.to(objectness.dtype), reduction="none")
    cls = F.binary_cross_entropy_with_logits(logits, _class_targets(logits, targets, assignment), reduction="none")
    return {
        "loss_box": _mean(_box_loss(predictions.deltas, points, targets, assignment), positive, positive),
        "loss_objectness": _mean(objectness, counted, positive),
        "loss_cls": _mean(cls.sum(dim=-1), positive, positive),
    }


def _mean(losses: Tensor, counted: Tensor, positive: Tensor) -> Tensor:
    """The sum of the losses (B, A) of `counted` points, over the number of positive ones, at least 1."""
    return torch.where(counted, losses, 0).sum() / positive.sum().clamp(min=1)


def _counted(points: Tensor, targets: Instances, positive: Tensor) -> Tensor:
    """(B, A) bool: points whose objectness counts, all but those that lie in a crowd and learn no object."""
    if targets.crowd is None:
        return torch.ones_like(positive)
    crowds = torch.where((targets.crowd & (targets.labels >= 0))[..., None], targets.boxes, 0)
    return positive | ~inside(points, crowds).any(dim=1)


def _class_targets(logits: Tensor, targets: Instances, assignment: Assignment) -> Tensor:
    """(B, A, C): at the category of a point's object the IoU with it, else 0."""
    labels = gather(targets.labels, assignment.idxs)[..., None]
    own = labels == torch.arange(logits.shape[-1], device=logits.device)
    return torch.where(own, assignment.ious[..., None], 0).to(logits.dtype)


def _box_loss(deltas: Tensor, points: Tensor, targets: Instances, assignment: Assignment) -> Tensor:
    """(B, A), 5 (1 - IoU^2) of the predicted box and the object's."""
    boxes, wanted = decode_boxes(deltas, points), _wanted(points, targets, assignment)
    overlap = iou(boxes[..., None, :], wanted[..., None, :])[..., 0, 0]
    return BOX_WEIGHT * (1 - overlap**2)


def _l1_loss(deltas: Tensor, points: Tensor, targets: Instances, assignment: Assignment) -> Tensor:
    """The sum of the four deltas' distances from those that would decode to the object's box."""
    wanted = encode(_wanted(points, targets, assignment), _cells(points))
    losses = (full_precision(deltas) - wanted).abs().sum(dim=-1)
    return _mean(losses, assignment.positive, assignment.positive)


def _wanted(points: Tensor, targets: Instances, assignment: Assignment) -> Tensor:
    """(B, A, 4): the box each point is to learn; where there is none a cell's, so that no gradient is undefined."""
    return torch.where(assignment.positive[..., None], gather(targets.boxes, assignment.idxs), _cells(points))


def _cells(points: Tensor) -> Tensor:
    """(A, 4): squares of a stride's side around the points; a head's deltas are R-CNN's offsets from these boxes."""
    return decode_boxes(points.new_zeros(len(points), 4), points)
