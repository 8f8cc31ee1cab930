"""The branch that draws each object's mask (Mask R-CNN, https://arxiv.org/abs/1703.06870, section 3), beside the one for boxes.

State dict keys and numbers are torchvision's. Deviations: a fixed number of regions an image, of which those that are no
objects count nothing; and the truth lies where the object is, where torchvision's lies half a pixel off (`truth_shift`).

Letters: B images, S sampled regions an image, P of them at most objects, D detections, R regions of all images, N objects,
M cells along the side of a mask that is predicted, T of a true one, C categories.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets.structures import Instances
from ..detectors.assignment import Samples, gather
from ..detectors.boxes import full_precision
from ..detectors.roi_head import BoxPredictor, RoIHead


class MaskRoIHead(RoIHead):
    """A head that names and refines regions, as `RoIHead`, and draws the mask of what it finds in them.

    Args:
        pool, box_head, box_predictor, samples, detections: see `RoIHead`.
        mask_pool: (features, rois (B, K, 4)) to (B * K, channels, M / 2, M / 2).
        mask_head: pooled features to features of the same size.
        mask_predictor: these, and the category of each region, to logits (R, M, M).

    Attributes:
        truth_shift: pixels by which the truth is read too far to the right and below. With 0.5 the loss is torchvision's,
            whose RoIAlign takes pixel i of a picture to lie at i, not at i + 0.5: what it learns is half a pixel off.
    """

    truth_shift = 0.0

    def __init__(
        self,
        pool: nn.Module,
        box_head: nn.Module,
        box_predictor: BoxPredictor,
        mask_pool: nn.Module,
        mask_head: nn.Module,
        mask_predictor: MaskPredictor,
        *,
        samples: int = 512,
        detections: int = 100,
    ) -> None:
        super().__init__(pool, box_head, box_predictor, samples=samples, detections=detections)
        self.mask_pool, self.mask_head, self.mask_predictor = mask_pool, mask_head, mask_predictor

    def mask_logits(self, features: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, K, M, M) of the masks of regions (B, K, 4) as objects of these categories (B, K), 0..C-1."""
        hidden = self.mask_head(self.mask_pool(features, rois))
        logits = self.mask_predictor(hidden, labels.flatten() + 1)  # column 0 is the background's
        return full_precision(logits).unflatten(0, labels.shape)

    def sampled_losses(
        self, features: Sequence[Tensor], rois: Tensor, targets: Instances, matched: Tensor, sampled: Samples
    ) -> dict[str, Tensor]:
        """See `RoIHead.sampled_losses`; and `loss_mask` of the objects among the same regions.

        Raises:
            ValueError: the targets have no masks.
        """
        losses = super().sampled_losses(features, rois, targets, matched, sampled)
        return losses | {"loss_mask": self._mask_loss(features, rois, targets, matched, sampled.foreground)}

    def _mask_loss(
        self, features: Sequence[Tensor], rois: Tensor, targets: Instances, matched: Tensor, foreground: Tensor
    ) -> Tensor:
        """Binary cross-entropy of the own category's mask alone (section 3), the mean over all cells of all objects."""
        if targets.masks is None:
            raise ValueError(
                "masks are learnt from masks, and the targets have none; let the data load them (masks=28)"
            )
        most = max(1, int(self.samples * self.foreground_share))
        idxs, counted = foreground_slots(foreground, min(most, foreground.shape[1]))
        rois, matched = full_precision(gather(rois, idxs)), gather(matched, idxs)
        # What is not counted is undefined, perhaps NaN, which not even a weight of zero would keep from the gradients.
        masks = torch.where(counted[..., None], gather(targets.masks.flatten(2), matched), 0)
        masks = masks.view(*idxs.shape, *targets.masks.shape[2:])
        boxes = torch.where(counted[..., None], gather(targets.boxes, matched), self.unit_box)
        labels = torch.where(counted, gather(targets.labels, matched), 0)
        logits = self.mask_logits(features, rois, labels)
        wanted = coverage(masks, boxes, rois + self.truth_shift, logits.shape[-1]).to(logits.dtype)
        losses = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=(-1, -2))
        counted = counted & has_mask(masks)
        return torch.where(counted, losses, 0).sum() / counted.sum().clamp(min=1)

    def decode(self, features: Sequence[Tensor], rois: Tensor, valid: Tensor, sizes: Tensor) -> Instances:
        """See `RoIHead.decode`; `masks` are (B, D, M, M), the probability of each cell of a box to be the object's."""
        found = super().decode(features, rois, valid, sizes)
        logits = self.mask_logits(features, found.boxes, found.labels.clamp(min=0))
        present = (found.labels >= 0)[..., None, None]
        return replace(found, masks=torch.where(present, logits.sigmoid(), 0))


class MaskHead(nn.Sequential):
    """3 x 3 convolutions that keep the size (Mask R-CNN, figure 4, right).

    Args:
        channels: of the pooled features.
        depth: number of convolutions.
        width: channels of each.
        norm: batch norm after each (torchvision's `_v2`).
    """

    def __init__(self, channels: int, *, depth: int = 4, width: int = 256, norm: bool = False) -> None:
        blocks: list[nn.Module] = []
        for i in range(depth):
            conv = nn.Conv2d(channels if i == 0 else width, width, kernel_size=3, padding=1, bias=not norm)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            norms = [nn.BatchNorm2d(width)] if norm else []
            blocks.append(nn.Sequential(conv, *norms, nn.ReLU(inplace=True)))
        super().__init__(*blocks)
        self.width = width if depth else channels


class MaskPredictor(nn.Module):
    """A transposed convolution to twice the size, and from each cell's features the logits of background and C categories.

    Only one category of each region is ever asked for, and so only that one is computed: of 91 categories a
    ninety-first of the memory.
    """

    def __init__(self, channels: int, num_classes: int, *, width: int = 256) -> None:
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(channels, width, kernel_size=2, stride=2)
        self.mask_fcn_logits = nn.Conv2d(width, num_classes + 1, kernel_size=1)
        for layer in (self.conv5_mask, self.mask_fcn_logits):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, hidden: Tensor, columns: Tensor) -> Tensor:
        """(R, channels, M / 2, M / 2) and the column of each (R,), 0..C, to logits (R, M, M)."""
        hidden = F.relu(self.conv5_mask(hidden))
        weight = self.mask_fcn_logits.weight.flatten(1)[columns]  # (R, width)
        logits = torch.bmm(weight[:, None], hidden.flatten(2)).unflatten(2, hidden.shape[2:])[:, 0]
        return logits + self.mask_fcn_logits.bias[columns][:, None, None]


def foreground_slots(foreground: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where the foreground of (B, S) is: indices (B, `most`), and which of them count, (B, `most`) bool.

    Where there is less of it than slots, it comes again and again, uncounted: batch norm then sees the very regions that
    are learnt, and no background.
    """
    order = foreground.float().topk(most, dim=1).indices
    number = foreground.sum(dim=1, keepdim=True).clamp(max=most)
    slots = torch.arange(most, device=foreground.device)
    return order.gather(1, slots % torch.where(number > 0, number, most)), slots < number


def has_mask(masks: Tensor) -> Tensor:
    """Which objects have one, (...) bool of (..., T, T): one that is empty, as a broken outline's, says nothing about masks."""
    return masks.amax(dim=(-1, -2)) > 0


def coverage(masks: Tensor, boxes: Tensor, rois: Tensor, side: int) -> Tensor:
    """The share of each cell of regions that objects cover: their masks within other boxes than their own.

    Exact for masks that are what `Instances.masks` says, each cell covered evenly: areas are kept, and what lies outside
    the object's box is not covered.

    Args:
        masks: (..., T, T).
        boxes: (..., 4), the masks' own, xyxy in pixels.
        rois: (..., 4), in the same pixels.
        side: M.

    Returns:
        (..., M, M) in [0, 1].
    """
    columns = _shares(boxes[..., 0::2], rois[..., 0::2], masks.shape[-1], side)
    rows = _shares(boxes[..., 1::2], rois[..., 1::2], masks.shape[-1], side)
    with torch.autocast("cpu" if masks.is_meta else masks.device.type, enabled=False):
        return rows @ masks.to(rows.dtype) @ columns.mT


def _shares(old: Tensor, new: Tensor, cells: int, side: int) -> Tensor:
    """Along one axis, the share of each new cell that lies in each old one: (..., side, cells), from (..., 2) ends."""
    edges = torch.arange(side + 1, device=new.device, dtype=new.dtype) / side
    edges = new[..., :1] + edges * (new[..., 1:] - new[..., :1])  # (..., side + 1), in pixels
    edges = (edges - old[..., :1]) * (cells / (old[..., 1:] - old[..., :1]).clamp(min=1e-6))  # in old cells
    low, high = edges[..., :-1, None], edges[..., 1:, None]
    cell = torch.arange(cells, device=new.device, dtype=new.dtype)
    common = (torch.minimum(high, cell + 1) - torch.maximum(low, cell)).clamp(min=0)
    return common / (high - low).clamp(min=1e-6)
