"""Several trained models that answer as one. Classifiers' probabilities are averaged; boxes are fused.

Boxes: weighted boxes fusion (Solovyev et al. 2019, https://arxiv.org/abs/1910.13302, section 3). Deviations:
- Clusters form around the survivors of non-maximum suppression, as in box voting (Gidaris and Komodakis 2015,
  https://arxiv.org/abs/1505.01749, section 5), where the paper moves a cluster's box with each newcomer; so a batch is
  fused at once.
- Of a model's boxes in a cluster only the best counts. The others are what its own suppression let pass, and the mean with
  them is a worse box with a lower score: fusing YOLOX-nano with nobody else cost 0.019 of its AP on COCO's pictures.
- Boxes are one object from an IoU of 0.65 on (in the paper 0.55), which is where YOLOX's own suppression stands.

Masks, which the paper does not have, are averaged like the boxes, each where its own box lies in the picture.

Letters: B images, M models, D detections of an image by one model, K = M * D of them together, S cells along a mask's side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..datasets.masks import recrop
from ..datasets.structures import Instances
from .boxes import iou
from .classification import whole_pictures
from .model import Detector
from .nms import nms

IOU = 0.65  # of detections of one object by several models


class Outputs(NamedTuple):
    """What each member says of a batch."""

    members: tuple[Any, ...]


class Ensemble(Detector):
    """The base: it runs all members; a subclass says how their answers become one. Build one by `ensemble`.

    Args:
        models: M detectors of one task, with the same categories in the same order, for pictures of the same size.

    Raises:
        ValueError: none, or they do not go together.
    """

    def __init__(self, models: Sequence[Detector]) -> None:
        _check(models)
        first = models[0]
        mean, std = (value.flatten().tolist() for value in (first.normalize.mean, first.normalize.std))
        super().__init__(mean=mean, std=std, num_classes=len(first.categories))
        self.models = nn.ModuleList(models)
        self.task, self.categories, self.resize = first.task, list(first.categories), first.resize
        self.proposer = next((model.proposer for model in models if model.proposer is not None), None)

    def forward(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Outputs:
        """All members' outputs; those with a proposer look at the same proposals, the first one's."""
        inputs = (images, sizes, proposals)
        return Outputs(tuple(model(*inputs[: 2 if model.proposer is None else 3]) for model in self.models))

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """Each loss's sum over the members that have it, divided by M: together the members' mean loss."""
        totals: dict[str, Tensor] = {}
        for model, member in zip(self.models, outputs.members, strict=True):
            for name, value in model.losses(member, targets).items():
                totals[name] = totals.get(name, 0) + value / len(self.models)
        return totals


class ClassifierEnsemble(Ensemble):
    """Classifiers whose probabilities are averaged."""

    def probabilities(self, outputs: Outputs) -> Tensor:
        """(B, C), each row of sum 1."""
        pairs = zip(self.models, outputs.members, strict=True)
        return torch.stack([model.probabilities(member) for model, member in pairs]).mean(dim=0)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """The likeliest categories, see `classification.whole_pictures`."""
        return whole_pictures(self.probabilities(outputs), sizes)


class DetectorEnsemble(Ensemble):
    """Detectors, or localizers, whose boxes are fused."""

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """As many detections as the member that gives most, see `fuse`."""
        found = [model.decode(member, sizes) for model, member in zip(self.models, outputs.members, strict=True)]
        pooled = Instances(*(torch.cat(parts, dim=1) for parts in zip(*map(_columns, found), strict=True)))
        if all(part.landmarks is not None for part in found):
            pooled.landmarks = torch.cat([part.landmarks for part in found], dim=1)
        if all(part.masks is not None for part in found):
            side = max(part.masks.shape[-1] for part in found)
            pooled.masks = torch.cat([_of_side(part.masks, side) for part in found], dim=1)
        members = torch.cat([torch.full_like(part.labels, m) for m, part in enumerate(found)], dim=1)
        return fuse(pooled, members, models=len(found), most=max(part.labels.shape[1] for part in found))


def _columns(instances: Instances) -> tuple[Tensor, Tensor, Tensor]:
    return instances.boxes, instances.labels, instances.scores


def _of_side(masks: Tensor, side: int) -> Tensor:
    """Masks (B, D, S, S) with `side` cells a side."""
    return masks if masks.shape[-1] == side else F.interpolate(masks, size=(side, side), mode="bilinear")


def fuse(pooled: Instances, members: Tensor, *, models: int, most: int) -> Instances:
    """Detections of several models as one set.

    The best detection of a label and those that overlap it are one cluster, and so on with what is left; of each model the
    best in a cluster counts. A cluster's box (and landmarks) is the mean of those, weighted by their scores; its score is
    their mean over all models, 0 of those that have none (the paper's equations 1 to 5). A cluster's mask is the mean, by the
    same weights, of theirs as they lie in the picture, each 0 outside its own box: what the greater part of them covers.

    Args:
        pooled: (B, K), in any order, label -1 as padding.
        members: (B, K) int64, the model that each is of.
        models: M.
        most: D, how many to return.

    Returns:
        (B, min(D, K)), best first, label -1 as padding.
    """
    order = torch.where(pooled.labels >= 0, pooled.scores, -1).argsort(dim=1, descending=True, stable=True)
    each = torch.arange(len(order), device=order.device)[:, None]
    pooled, members = pooled.map(lambda value: value[each, order]), members[each, order]
    weights = _clusters(pooled, members) * pooled.scores[:, None]  # (B, K, K): what a box counts in a cluster
    total = weights.sum(dim=-1)
    shares = weights / total.clamp(min=torch.finfo(total.dtype).tiny)[..., None]
    scores, best = (total / models).topk(min(most, total.shape[1]), dim=1)
    labels, shares = torch.where(scores > 0, pooled.labels[each, best], -1), shares[each, best]
    landmarks, masks = pooled.landmarks, pooled.masks
    with torch.autocast(shares.device.type, enabled=False):  # in half precision products lose whole pixels
        boxes = shares @ pooled.boxes
        if landmarks is not None:
            landmarks = torch.einsum("bij,bjpc->bipc", shares, landmarks.nan_to_num())
        if masks is not None:
            masks = torch.einsum("bij,bjyx->biyx", shares, _moved(pooled, boxes[each, shares.argmax(dim=1)]))
    return Instances(boxes, labels, scores, masks, landmarks=landmarks)


def _moved(pooled: Instances, boxes: Tensor) -> Tensor:
    """(B, K, S, S), the masks within other boxes (B, K, 4), in the same pixels; 0 of boxes without area."""
    old, new, masks = pooled.boxes.flatten(0, 1), boxes.flatten(0, 1), pooled.masks.flatten(0, 1)
    return recrop(masks.to(old.dtype), old, new).nan_to_num().view_as(pooled.masks)


def _clusters(pooled: Instances, members: Tensor) -> Tensor:
    """(B, K, K) floats, 1 where a box (last dimension) counts in the cluster of another, its best; best boxes come first."""
    valid, same = pooled.labels >= 0, pooled.labels[:, :, None] == pooled.labels[:, None]
    heads = nms(pooled.boxes, valid, IOU, pooled.labels)
    overlap = iou(pooled.boxes, pooled.boxes)
    # A head is its own; others go to the first head that overlaps them, the one that struck them out.
    near = heads[:, :, None] & same & (overlap > IOU) & ~heads[:, None]
    near = near | torch.diag_embed(heads)
    first = near.int().argmax(dim=1)
    alike = (first[:, :, None] == first[:, None]) & (members[:, :, None] == members[:, None])
    best = ~alike.tril(diagonal=-1).any(dim=2)
    belongs = torch.zeros_like(overlap).scatter(1, first[:, None], 1.0)
    return belongs * (near.any(dim=1) & valid & best)[:, None]


def ensemble(models: Sequence[Detector]) -> Ensemble:
    """Models as one: classifiers, detectors or localizers.

    Raises:
        ValueError: none, they do not go together, or have no answers to combine (autoencoders).
    """
    _check(models)
    if models[0].task == "reconstruction":
        raise ValueError("autoencoders find nothing that could be combined")
    return ClassifierEnsemble(models) if models[0].task == "classification" else DetectorEnsemble(models)


def _check(models: Sequence[Detector]) -> None:
    if not models:
        raise ValueError("an ensemble needs at least one model")
    for i, model in enumerate(models[1:], 2):
        for name in ("task", "categories", "resize"):
            wanted, got = getattr(models[0], name), getattr(model, name)
            if (tuple(got) if name == "resize" else got) != (tuple(wanted) if name == "resize" else wanted):
                raise ValueError(f"model {i} of the ensemble has {name} {got}, the first has {wanted}; they must agree")
