"""The second part of R-CNN's training (https://arxiv.org/abs/1311.2524, sections 2.3 and 3.5, appendices B and C).

On fixed features, after fine-tuning: a support vector machine a category, whose positives are the objects themselves and
whose negatives are the regions (other categories' objects among them) that overlap none of its objects by 0.3; and four
regressors a category, from proposals that overlap their nearest object by 0.6 to that object. Both are written into the
model's last layers.

Numbers are those of the authors' released settings, which suppose features of a mean norm of 20: C 0.001, a bias multiplied
with 10, positives that count twice, a penalty of 1000. Features are brought to that norm, so these fit any network.
Deviations: squared hinge loss; one layer for machines and regressors; regressors' bias is free.

Letters: I pictures, P regions (proposals, then objects, picture by picture), K objects, C categories, D features.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..datasets.proposals import Boxes, Regions
from ..datasets.table import DataError, Table
from ..detectors.boxes import area, encode, intersection, iou
from ..detectors.fast_rcnn import FastRCNN
from ..detectors.rcnn import RegionHead
from .linear import LinearModel
from .mining import Mined, mine_svms
from .region_features import region_features
from .ridge import fit_ridge

NEGATIVE_IOU, PAIR_IOU = 0.3, 0.6
NORM, BIAS, POSITIVE_WEIGHT, PENALTY = 20.0, 10.0, 2.0, 1000.0


@dataclass
class Report:
    """What the machines and regressors were fitted to.

    Attributes:
        categories: C names.
        mined: the machines' positives, negatives, hard negatives by round, and support vectors.
        pairs: (C,) int64, proposals that each category's regressors learnt from.
    """

    categories: list[str]
    mined: Mined
    pairs: np.ndarray

    def __str__(self) -> str:
        """A table with a line for each category."""
        head = f"{'category':<20} positives  negatives    support      pairs  new hard negatives by round"
        counts = zip(self.mined.positives, self.mined.negatives, self.mined.support, self.pairs, strict=True)
        lines = [head]
        for k, (name, numbers) in enumerate(zip(self.categories, counts, strict=True)):
            rounds = ", ".join(str(new[k]) for new in self.mined.rounds)
            lines.append(f"{name[:20]:<20} " + "".join(f"{n:>9}  " for n in numbers) + rounds)
        return "\n".join(lines)


def fit_region_machines(
    model: FastRCNN,
    table: Table,
    *,
    cache: str | os.PathLike,
    c: float = 1e-3,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: bool = True,
) -> Report:
    """Puts support vector machines and box regressors in the place of an R-CNN's last layers; all else stays as it is.

    The machines are scikit-learn's LinearSVC(C=c, intercept_scaling=10, dual=False) of all negatives, with a sample weight
    of 2 for positives; the regressors are its Ridge(alpha=1000); both on features scaled to a mean norm of 20. Categories
    without objects get a machine that says no. Scores are then squashed margins: their order in a category is right, their
    size is no probability.

    Args:
        model: an `rcnn`, fine-tuned; its categories are the table's.
        table: the pictures to learn from, with their proposals as `regions`.
        cache: folder of the features; an interrupted run goes on from there.
        c: how much errors weigh against small weights.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.
        progress: show bars.

    Raises:
        DataError: the model has no such last layers, there are no proposals or objects, the categories differ, or the
            cache's disk has no room.
    """
    _check(model, table)
    examples = _Examples(table)
    with_objects = replace(table, regions=examples.regions)
    features = region_features(
        model, with_objects, cache, batch_size=batch_size, num_workers=num_workers, progress=progress
    )
    scale, classes = NORM / _mean_norm(features), len(table.categories)
    weight = model.roi_heads.box_predictor.cls_score.weight
    device = weight.device if weight.is_cuda else torch.device("cpu")  # Apple's GPUs have no float64
    mined = mine_svms(
        features,
        examples.regions.offsets,
        examples.signs,
        classes,
        # A bias multiplied with 10 is the same as features a tenth as large at a hundred times the c.
        c=c * BIAS**2,
        scale=scale / BIAS,
        positive_weight=POSITIVE_WEIGHT,
        device=device,
        progress=progress,
    )
    pairs = examples.pairs()
    regressors = [fit_ridge(features, *own, PENALTY, scale=scale, device=device) for own in pairs]
    _write(model, mined.model, regressors)
    return Report(list(table.categories), mined, np.array([len(rows) for rows, _ in pairs]))


def _check(model: FastRCNN, table: Table) -> None:
    if not isinstance(getattr(model, "roi_heads", None), RegionHead):
        raise DataError(
            f"machines are fitted to the regions of an R-CNN (detectors.rcnn); {type(model).__name__} learns all its "
            "layers by gradient: train it without"
        )
    if table.regions is None:
        raise DataError("there are no proposals to learn from: make them with datasets.propose")
    if not (~table.crowd).any():
        raise DataError("there are no objects to learn from in these pictures")
    if list(model.categories) != list(table.categories):
        raise DataError(
            f"the model's categories ({', '.join(model.categories)}) are not those of the pictures "
            f"({', '.join(table.categories)}): train on these pictures first, or set model.categories"
        )


class _Examples:
    """What each region is to each category's machine and regressor.

    Attributes:
        regions: each picture's proposals, then its objects' own boxes but for crowds, in original pixels.
    """

    def __init__(self, table: Table) -> None:
        self.table, self.objects = table, table.offsets
        self.proposals = np.diff(table.regions.offsets)
        self.regions = Regions.of([self._joined(i) for i in range(len(table))])

    def _joined(self, picture: int) -> Boxes:
        proposed, own = self.table.regions[picture], self._own(picture)
        boxes = np.concatenate([proposed.boxes, self.table.boxes[own]])
        return Boxes(boxes, np.concatenate([proposed.scores, np.ones(len(own), np.float32)]))

    def _own(self, picture: int) -> np.ndarray:
        """The rows of a picture's objects that are no crowds."""
        rows = np.arange(self.objects[picture], self.objects[picture + 1])
        return rows[~self.table.crowd[rows]]

    def signs(self, picture: int) -> np.ndarray:
        """(regions, C) int8: 1 for objects of the category, -1 for what overlaps none of them by 0.3, 0 else.

        What lies by half or more in a crowd is 0 for all: it may show anything.
        """
        own, boxes = self._own(picture), torch.from_numpy(self.regions[picture].boxes)
        labels = self.table.labels[own]
        best = np.zeros((len(boxes), len(self.table.categories)), np.float32)
        overlaps = iou(boxes, torch.from_numpy(self.table.boxes[own])).numpy()
        np.maximum.at(best.T, labels, overlaps.T)
        signs = np.where(best < NEGATIVE_IOU, -1, 0).astype(np.int8)
        signs[self._in_crowd(picture, boxes)] = 0
        signs[self.proposals[picture] + np.arange(len(own)), labels] = 1
        return signs

    def _in_crowd(self, picture: int, boxes: torch.Tensor) -> np.ndarray:
        rows = np.arange(self.objects[picture], self.objects[picture + 1])
        crowds = torch.from_numpy(self.table.boxes[rows[self.table.crowd[rows]]])
        if not len(crowds):
            return np.zeros(len(boxes), np.bool_)
        return (intersection(boxes, crowds).amax(dim=1) / area(boxes).clamp(min=1e-6) >= 0.5).numpy()

    def pairs(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """For each category its proposals' rows (N,) and their offsets (N, 4) to their nearest object: eq. 6 to 9."""
        rows, labels, offsets = [], [], []
        for picture, start in enumerate(self.regions.offsets[:-1]):
            own = self._own(picture)
            if not len(own) or not self.proposals[picture]:
                continue
            boxes = torch.from_numpy(self.table.regions[picture].boxes).double()
            objects = torch.from_numpy(self.table.boxes[own]).double()
            best, nearest = iou(boxes, objects).max(dim=1)
            near = torch.nonzero(best >= PAIR_IOU)[:, 0]
            rows.append(start + near.numpy())
            labels.append(self.table.labels[own][nearest[near].numpy()])
            offsets.append(encode(objects[nearest[near]], boxes[near]).numpy())
        every, label = np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([np.empty(0, np.int64), *labels])
        wanted = np.concatenate([np.empty((0, 4)), *offsets])
        return [(every[label == k], wanted[label == k]) for k in range(len(self.table.categories))]


def _mean_norm(features: np.ndarray, some: int = 20000) -> float:
    """Of vectors at even distances."""
    rows = np.linspace(0, len(features) - 1, min(some, len(features))).astype(np.int64)
    mean = sum(
        float(np.linalg.norm(features[part].astype(np.float32), axis=1).sum()) for part in np.array_split(rows, 20)
    )
    return mean / len(rows) or 1.0


@torch.no_grad()
def _write(model: FastRCNN, machines: LinearModel, regressors: list[LinearModel]) -> None:
    """The last layers' numbers; columns of the background, which decoding leaves alone, are zero."""
    head = model.roi_heads
    logits, boxes = head.box_predictor.cls_score, head.box_predictor.bbox_pred
    for parameter in head.box_predictor.parameters():
        parameter.zero_()
    logits.weight[1:], logits.bias[1:] = machines.weight.to(logits.weight), machines.bias.to(logits.bias)
    for k, regressor in enumerate(regressors, start=1):
        units = regressor.bias.new_tensor(head.delta_weights)  # decoding divides by them
        boxes.weight[4 * k : 4 * k + 4] = (regressor.weight * units[:, None]).to(boxes.weight)
        boxes.bias[4 * k : 4 * k + 4] = (regressor.bias * units).to(boxes.bias)
    head.machines = True
    if model.architecture is not None:
        model.architecture["arguments"]["machines"] = True
