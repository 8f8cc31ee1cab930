"""The loss of YOLO (Redmon et al. 2015, https://arxiv.org/abs/1506.02640, section 2.2, equation 3), on fixed shapes.

All terms are squared errors, summed over a picture's cells; the mean is over the pictures of a batch. Gradients flow neither
through the choice of a cell's responsible predictor nor through the IoU that its confidence is to reach.

Where the paper is silent:
- Of several objects with their centre in one cell only the largest is learnt; of equally large ones the one with the least
  label, then the least x0, y0 and x1. So the order of objects does not matter.
- Where no predictor of the cell overlaps the object, the one whose box is nearest to it (squared distances of corners) is
  responsible, as there is no best IoU.
- Crowds are never learnt, and cells whose middle lies in one do not learn that there is nothing.

Letters: as in `yolov1_cells.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from ..datasets.structures import Instances
from .assignment import gather
from .boxes import area, iou
from .yolov1_cells import Cells, decode, encode

COORDINATES, NO_OBJECT = 5.0, 0.5  # lambda_coord and lambda_noobj


def yolo_losses(cells: Cells, targets: Instances, side: int) -> dict[str, Tensor]:
    """The five sums of equation 3, line by line, weighted as there: their sum is the loss.

    Args:
        cells: the prediction's parts, float32.
        targets: the objects, in the frame's pixels.
        side: of the frame, in pixels.

    Returns:
        `loss_xy`, `loss_wh`, `loss_confidence`, `loss_no_object` and `loss_cls`.
    """
    wanted = assign(targets, cells.places.shape[2], side)
    with torch.no_grad():
        responsible, overlap = _responsible(cells.places, wanted, side)
    places = torch.where(responsible[..., None], cells.places - wanted.places[:, :, :, None], 0).square()
    confidence = (cells.confidence - torch.where(responsible, overlap, 0)).square()
    absent = ~responsible & ~wanted.ignored[..., None]
    classes = (cells.classes - F.one_hot(wanted.labels, cells.classes.shape[-1])).square().sum(dim=-1)
    return {
        "loss_xy": COORDINATES * _mean(places[..., :2]),
        "loss_wh": COORDINATES * _mean(places[..., 2:]),
        "loss_confidence": _mean(torch.where(responsible, confidence, 0)),
        "loss_no_object": NO_OBJECT * _mean(torch.where(absent, confidence, 0)),
        "loss_cls": _mean(torch.where(wanted.present, classes, 0)),
    }


def _mean(errors: Tensor) -> Tensor:
    """Over the images, of what each image's errors (B, ...) add up to."""
    return errors.flatten(1).sum(dim=1).mean()


class Wanted(NamedTuple):
    """What each cell is to learn.

    Attributes:
        boxes: (B, S, S, 4), xyxy in pixels, of the object whose centre lies in the cell; 0 where there is none.
        places: (B, S, S, 4), the same as `Cells.places`.
        labels: (B, S, S) int64; 0 where there is no object.
        present: (B, S, S) bool, whether there is one.
        ignored: (B, S, S) bool, whether the cell does not learn that there is nothing.
    """

    boxes: Tensor
    places: Tensor
    labels: Tensor
    present: Tensor
    ignored: Tensor


def assign(targets: Instances, grid: int, side: int) -> Wanted:
    """The object of each cell.

    Args:
        targets: the objects of B images; padding is undefined, perhaps NaN, and belongs to no cell.
        grid: S.
        side: of the frame, in pixels.
    """
    crowd = torch.zeros_like(targets.labels, dtype=torch.bool) if targets.crowd is None else targets.crowd
    valid = targets.labels >= 0
    boxes = torch.where(valid[..., None], targets.boxes, 0)
    order = _precedence(boxes, targets.labels)
    boxes, labels, learnt = gather(boxes, order), gather(targets.labels, order), gather(valid & ~crowd, order)
    index, places = encode(boxes, grid, side)

    cells = torch.arange(grid**2, device=index.device)[:, None]
    own = (index[:, None] == cells) & learnt[:, None]  # (B, S * S, N)
    places_in_order = torch.arange(index.shape[1], device=index.device)
    first = torch.where(own, places_in_order, index.shape[1] - 1).amin(dim=2)
    present = own.any(dim=2)
    chosen = [
        torch.where(present[..., None], gather(values, first), 0) for values in (boxes, places, labels[..., None])
    ]
    boxes, places, labels = (values.unflatten(1, (grid, grid)) for values in chosen)
    ignored = _inside(torch.where((valid & crowd)[..., None], targets.boxes, 0), grid, side)
    return Wanted(boxes, places, labels[..., 0], present.unflatten(1, (grid, grid)), ignored)


def _precedence(boxes: Tensor, labels: Tensor) -> Tensor:
    """(B, N) indices that sort objects by area, the largest first; ties as the file's head says."""
    order = torch.arange(labels.shape[1], device=labels.device).expand_as(labels)
    for key in (boxes[..., 2], boxes[..., 1], boxes[..., 0], labels, -area(boxes)):  # the last decides first
        order = order.gather(1, key.gather(1, order).argsort(dim=1, stable=True))
    return order


def _inside(boxes: Tensor, grid: int, side: int) -> Tensor:
    """(B, S, S) bool: whether a cell's middle lies in one of (B, N, 4) boxes."""
    middles = (torch.arange(grid, device=boxes.device) + 0.5) * (side / grid)
    columns, rows = ((boxes[..., k, None] < middles) & (middles < boxes[..., k + 2, None]) for k in (0, 1))  # (B, N, S)
    return (rows[..., :, None] & columns[..., None, :]).any(dim=1)


def _responsible(places: Tensor, wanted: Wanted, side: int) -> tuple[Tensor, Tensor]:
    """(B, S, S, K) bool, the one predictor of each cell with an object that learns it; and all predictors' IoU with it."""
    boxes, truth = decode(places, side), wanted.boxes[:, :, :, None]
    overlap = iou(boxes, truth)[..., 0]
    nearness = -(boxes - truth).square().sum(dim=-1)
    best = torch.where(overlap > 0, overlap, nearness).argmax(dim=-1)
    return F.one_hot(best, places.shape[3]).bool() & wanted.present[..., None], overlap
