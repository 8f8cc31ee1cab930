"""Which points of a dense head learn which objects: SimOTA, many points an object, and a matching of one point an object.

SimOTA: YOLOX (Ge et al. 2021, https://arxiv.org/abs/2107.08430, section 2.1) after OTA (https://arxiv.org/abs/2103.14259);
the numbers that the papers leave open are those of YOLOX's first release. One to one: the prediction-aware assignment
(POTO) of Wang et al. 2020, https://arxiv.org/abs/2012.03544.

Deviations:
- SimOTA's cost is finite only where a point lies in the object's box or near its centre. In the first release a point in
  or near any object of the picture can be taken, at a high price, which a tiny object elsewhere may well pay.
- A point that several objects chose goes to one of them; in the first release to the cheapest of all objects.
- POTO's matching of highest total quality is replaced by the greedy one, which needs no solver on the host: see `_settle`.

Letters: B images, N objects (padded), A points, C categories, K choices of an object. Nothing of (B, N, A, C) is made, and of
(B, N, A) only the one-to-one matching: SimOTA looks at a few objects at a time.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.structures import Instances
from .boxes import area, full_precision, iou
from .yolo_head import Predictions, decode_boxes

OBJECTS_AT_ONCE = 64  # that SimOTA prices together: at 640 x 640 pixels, 2 MB a value and image
CHOICES = 10  # points that SimOTA gives an object at most
RADIUS = 2.5  # of an object's centre region, in strides of the point that asks
IOU_WEIGHT = 3.0  # of the box in the cost, against the category
FAR = 1e5  # the price of a point that is not both in the box and in the centre region: beyond any other cost
ALPHA = 0.8  # of the box in the quality of a one-to-one match, against the category
ROUNDS = 16  # of bidding


class Assignment(NamedTuple):
    """What each point is to learn.

    Attributes:
        positive: (B, A) bool, the points that learn an object.
        idxs: (B, A) int64, which object; 0 where not `positive`.
        ious: (B, A) float32 in [0, 1], of the predicted box with that object; 0 where not `positive`.
    """

    positive: Tensor
    idxs: Tensor
    ious: Tensor


@torch.no_grad()
def simota(predictions: Predictions, points: Tensor, targets: Instances) -> Assignment:
    """Up to ten points an object: as many as its ten best IoUs add up to, at least one, those of least cost.

    The cost is the binary cross-entropy of the category, plus 3 times -log IoU, plus a high price for points that do not
    lie both in the box and within 2.5 strides of its centre. Only points in either of the two can be had, so a box so
    small that it holds no cell's centre learns at points around it, and one whose centre region lies outside the frame
    not at all. Crowds and boxes without area learn nowhere.

    Args:
        predictions: of B images.
        points: (A, 3), as `yolo_head.points` gives them.
        targets: the objects of B images, N at least 1.
    """
    objects, boxes = _objects(targets)
    predicted, (own, others) = decode_boxes(predictions.deltas, points), _class_costs(predictions)
    best = _nobody(predicted)
    for start in range(0, boxes.shape[1], OBJECTS_AT_ONCE):
        some = slice(start, start + OBJECTS_AT_ONCE)
        ious = iou(boxes[:, some], predicted)
        in_box, central = inside(points, boxes[:, some]), _central(points, boxes[:, some])
        available = (in_box | central) & objects[:, some, None]
        cost = _of_label(own, targets.labels[:, some]) - others - IOU_WEIGHT * torch.log(ious + 1e-8)
        cost = torch.where(available, cost + FAR * ~(in_box & central), torch.inf)
        chosen = _least(cost, _shares(torch.where(available, ious, 0)))
        best = _cheaper(best, _cheapest(chosen, cost, ious), start)
    return _assignment(best)


class _Claims(NamedTuple):
    """Of each point the cheapest object that chose it: its cost (B, A), inf where there is none, which it is, and the IoU."""

    cost: Tensor
    idxs: Tensor
    ious: Tensor


def _nobody(predicted: Tensor) -> _Claims:
    zero = predicted.new_zeros(predicted.shape[:2])
    return _Claims(torch.full_like(zero, torch.inf), zero.long(), zero)


def _shares(ious: Tensor) -> Tensor:
    """(B, N): how many points each object may have, from the IoUs (B, N, A) of those it can have."""
    best = ious.topk(min(CHOICES, ious.shape[-1])).values
    return best.sum(dim=-1).int().clamp(min=1)


def _least(cost: Tensor, shares: Tensor) -> Tensor:
    """(B, N, A) bool: each object's points of least finite cost, as many as its share."""
    least, chosen = cost.topk(min(CHOICES, cost.shape[-1]), largest=False)
    within = torch.arange(least.shape[-1], device=cost.device) < shares[..., None]
    return torch.zeros_like(cost, dtype=torch.bool).scatter(-1, chosen, within & (least < torch.inf))


def _cheapest(chosen: Tensor, cost: Tensor, ious: Tensor) -> _Claims:
    """Among the objects that chose a point; all arguments are (B, N, A)."""
    least, idxs = torch.where(chosen, cost, torch.inf).min(dim=1)
    return _Claims(least, idxs, ious.gather(1, idxs[:, None]).squeeze(1))


def _cheaper(best: _Claims, others: _Claims, start: int) -> _Claims:
    """Of the claims so far and those of the objects from `start` on; at the same cost the former."""
    cheaper = others.cost < best.cost
    others = others._replace(idxs=others.idxs + start)
    return _Claims(*(torch.where(cheaper, b, a) for a, b in zip(best, others, strict=True)))


def _assignment(claims: _Claims) -> Assignment:
    positive = claims.cost < torch.inf
    return Assignment(positive, claims.idxs, torch.where(positive, claims.ious, 0))


def _class_costs(predictions: Predictions) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of sqrt(P(category) P(object)), over all categories, in two parts.

    One part is (B, A, C), for an object of each category; from it the other, (B, 1, A), is to be taken.

    With p the point's C probabilities and l the label that is -log p_l - sum over c != l of log(1 - p_c). As binary
    cross-entropy does, it takes no logarithm for less than -100.
    """
    logits, objectness = full_precision(predictions.logits), full_precision(predictions.objectness)
    log_p = 0.5 * (F.logsigmoid(logits) + F.logsigmoid(objectness)[..., None])
    log_not_p = torch.log(-torch.expm1(log_p)).clamp(min=-100)
    log_p = log_p.clamp(min=-100)
    return log_not_p - log_p, log_not_p.sum(dim=-1)[:, None]


@torch.no_grad()
def one_to_one(predictions: Predictions, points: Tensor, targets: Instances) -> Assignment:
    """One point an object, no point twice: those of highest quality P^0.2 IoU^0.8 within the box.

    P is what detections are scored by, P(category) P(object). An object none of whose free points in its box predicts
    a box that overlaps it takes the free point nearest to its centre. Crowds and boxes without area learn nowhere.

    Args:
        predictions: of B images.
        points: (A, 3), as `yolo_head.points` gives them.
        targets: the objects of B images, N at least 1.
    """
    objects, boxes = _objects(targets)
    ious = iou(boxes, decode_boxes(predictions.deltas, points))
    logits, objectness = full_precision(predictions.logits), full_precision(predictions.objectness)
    scores = logits.sigmoid() * objectness.sigmoid()[..., None]
    quality = _of_label(scores, targets.labels) ** (1 - ALPHA) * ious**ALPHA
    x, y = _from_centres(points, boxes)
    quality = torch.where(inside(points, boxes) & (quality > 0), quality, -torch.hypot(x, y))
    quality = torch.where(objects[..., None], quality, -torch.inf)
    return _assignment(_cheapest(_settle(quality), -quality, ious))


def _settle(quality: Tensor) -> Tensor:
    """(B, N, A) bool: for what point each object bids at last; of several that bid for one the best has it.

    In each round every object bids for the best of its points at which nobody else bids more. Who has the best pair of all
    keeps it from the first round on, who has the best of the rest from the second, and so on: after N rounds this is the
    greedy matching. Far fewer do, for objects in different places never meet: 16 rounds settle up to 16 objects always,
    and heaps of 30 around one place. Whoever is outbid even in the last round has no point in this step.

    Args:
        quality: (B, N, A), of each pair; -inf for objects that want nothing.
    """
    images, objects, available = quality.shape
    best, choices = quality.topk(min(objects, available))  # (B, N, K): the others can take N - 1 of them at most
    # 0 is the image's best pair; of equal ones the first object's. No two ranks of an image are equal.
    ranks = best.flatten(1).argsort(descending=True, stable=True).argsort().view_as(choices)
    turn = torch.zeros_like(choices[..., :1])  # (B, N, 1), for which of its choices an object bids
    for _ in range(min(objects, ROUNDS)):
        points, bids = choices.gather(-1, turn).squeeze(-1), ranks.gather(-1, turn).squeeze(-1)
        highest = ranks.new_full((images, available), ranks[0].numel()).scatter_reduce(1, points, bids, "amin")
        attainable = ranks <= highest.gather(1, choices.flatten(1)).view_as(ranks)
        turn = attainable.int().argmax(dim=-1, keepdim=True)  # the first of them
    return torch.zeros_like(quality, dtype=torch.bool).scatter(-1, choices.gather(-1, turn), True)


def inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(B, N, A) bool: whether the centre of a point's cell lies within a box; points (A, 3), boxes (B, N, 4) in pixels."""
    x, y = (points[:, :2] + 0.5 * points[:, 2:]).unbind(-1)
    x0, y0, x1, y1 = boxes[..., None].unbind(-2)
    return (x > x0) & (x < x1) & (y > y0) & (y < y1)


def _central(points: Tensor, boxes: Tensor) -> Tensor:
    """(B, N, A) bool: whether the centre of a point's cell lies within 2.5 of its strides of a box's centre, each way."""
    x, y = _from_centres(points, boxes)
    return torch.maximum(x.abs(), y.abs()) < RADIUS * points[:, 2]


def _from_centres(points: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """x and y, each (B, N, A) in pixels, of the centres of the points' cells as seen from the boxes' centres."""
    centres = 0.5 * (boxes[..., :2] + boxes[..., 2:])
    x, y = (points[:, :2] + 0.5 * points[:, 2:]).unbind(-1)
    return x - centres[..., :1], y - centres[..., 1:]


def _objects(targets: Instances) -> tuple[Tensor, Tensor]:
    """Which are to be learnt (B, N), and their boxes (B, N, 4): zero for the others, whose own may be anything."""
    objects = (targets.labels >= 0) & (area(targets.boxes) > 0)
    if targets.crowd is not None:
        objects = objects & ~targets.crowd
    return objects, torch.where(objects[..., None], targets.boxes, 0)


def _of_label(values: Tensor, labels: Tensor) -> Tensor:
    """(B, N, A): of each point's C values (B, A, C), the one of each object's label (B, N)."""
    idxs = labels.clamp(min=0)[..., None].expand(-1, -1, values.shape[1])
    return values.mT.gather(1, idxs)
