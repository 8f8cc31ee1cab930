"""Which anchor or proposal learns which object, and which of them a step looks at. All shapes are fixed.

Matching and sampling: Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1.2; Fast R-CNN, https://arxiv.org/abs/1504.08083,
section 2.3. Matches equal those of torchvision's Matcher, but for crowds, which torchvision does not know.

Letters: B images, N objects (padded), A anchors or proposals.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..datasets.structures import Instances
from .matching import best_objects, covered


class Matches(NamedTuple):
    """What each anchor is to learn.

    Attributes:
        idxs: (B, A) int64, the object with the highest IoU; meaningful where `foreground`.
        foreground: (B, A) bool.
        background: (B, A) bool; anchors that are neither are ignored.
    """

    idxs: Tensor
    foreground: Tensor
    background: Tensor


def match(
    anchors: Tensor,
    targets: Instances,
    *,
    foreground_iou: float,
    background_iou: float,
    background_floor: float = 0.0,
    low_quality: bool = False,
) -> Matches:
    """Matches anchors to objects by IoU.

    Args:
        anchors: (A, 4), or (B, A, 4) where each image has its own; xyxy.
        targets: the objects of B images. Crowds are never matched, and background mostly inside one is ignored.
        foreground_iou: an anchor with at least this IoU is foreground.
        background_iou: one below this is background ...
        background_floor: ... unless it is below this.
        low_quality: anchors with the highest IoU for some object are foreground too, so that no object goes unlearnt.
    """
    anchors = anchors if anchors.ndim == 3 else anchors[None]
    valid = targets.labels >= 0
    if targets.crowd is not None:
        valid = valid & ~targets.crowd
    with torch.no_grad():
        # Padding is undefined, perhaps NaN; a box of no area overlaps nothing.
        objects = torch.where(valid[..., None], targets.boxes, 0)
        best, idxs, favourite = best_objects(anchors, objects)
        foreground = best >= foreground_iou
        background = (best < background_iou) & (best >= background_floor)
        if low_quality:
            foreground = foreground | favourite
        background = background & ~foreground
        if targets.crowd is not None:
            crowds = torch.where((targets.crowd & (targets.labels >= 0))[..., None], targets.boxes, 0)
            background = background & (covered(anchors, crowds) < 0.5)
    return Matches(idxs, foreground, background)


class Samples(NamedTuple):
    """A fixed number S of anchors an image.

    Attributes:
        idxs: (B, S) int64 into the anchors.
        foreground: (B, S) bool.
        valid: (B, S) bool; false where an image had fewer than S anchors to offer.
    """

    idxs: Tensor
    foreground: Tensor
    valid: Tensor


def sample(matches: Matches, number: int, foreground_share: float) -> Samples:
    """Draws anchors at random: at most `foreground_share` of `number` foreground, the rest background.

    Random keys and top-k stand in for a shuffle of the indices, so that no shape depends on the data.
    """
    available = matches.foreground.shape[1]
    most, number = min(max(1, int(number * foreground_share)), available), min(number, available)
    keys = torch.rand_like(matches.foreground, dtype=torch.float32)
    foreground_key, foreground_idxs = torch.where(matches.foreground, keys, -1).topk(most, dim=1)
    background_key, background_idxs = torch.where(matches.background, keys, -1).topk(number, dim=1)
    foreground = foreground_key >= 0
    room = number - foreground.sum(dim=1, keepdim=True)
    background = (background_key >= 0) & (torch.arange(number, device=keys.device) < room)
    # Both lists hold their valid entries first; the `number` places go to them, foreground before background.
    idxs = torch.cat([foreground_idxs, background_idxs], dim=1)
    rank = torch.cat([2.0 * foreground, 1.0 * background], dim=1)
    rank, order = rank.topk(number, dim=1)
    return Samples(idxs.gather(1, order), rank == 2, rank > 0)


def gather(values: Tensor, idxs: Tensor) -> Tensor:
    """Rows of each image: values (B, A, ...) at idxs (B, S) to (B, S, ...)."""
    if values.ndim == 2:
        return values.gather(1, idxs)
    return values.gather(1, idxs[..., None].expand(-1, -1, values.shape[-1]))


def mean_over_images(losses: Tensor, counted: Tensor, valid: Tensor) -> Tensor:
    """Each image's summed loss over its number of samples, then the mean over images.

    Dividing image by image makes a step over several processes equal to one process's with the same total batch.
    torchvision divides by the samples of the whole batch; both agree when every image fills its sample.

    Args:
        losses: (B, S), each sample's loss.
        counted: (B, S) bool, the samples whose loss is summed.
        valid: (B, S) bool, the samples that are divided by.
    """
    total = torch.where(counted, losses, 0).sum(dim=1)
    return (total / valid.sum(dim=1).clamp(min=1)).mean()
