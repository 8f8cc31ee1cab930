"""The region proposal network (Faster R-CNN, https://arxiv.org/abs/1506.01497, section 3.1), over one feature map or a pyramid.

State dict keys and numbers are torchvision's. Deviations: crowds are ignored; each image counts the same in the losses (see
`mean_over_images`).

Letters: B images, A anchors of all levels, K proposals.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets.structures import Instances
from .anchors import Anchors
from .assignment import Samples, gather, match, mean_over_images, sample
from .boxes import clip, decode, encode, full_precision
from .nms import nms


class Proposals(NamedTuple):
    """What the RPN says of a batch.

    Attributes:
        logits: (B, A), objectness before the sigmoid.
        deltas: (B, A, 4), offsets from the anchors.
        anchors: (A, 4), xyxy in pixels.
        boxes: (B, K, 4), the proposals, best first, clipped to their image; no gradient.
        scores: (B, K), the proposals' objectness in [0, 1]; no gradient.
        valid: (B, K) bool; false where an image has fewer than K proposals.
        idxs: (B, K) int64, the anchor that each proposal was made from; None where proposals come from elsewhere.
    """

    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    boxes: Tensor
    scores: Tensor
    valid: Tensor
    idxs: Tensor | None = None


class RPN(nn.Module):
    """Objectness and offsets for every anchor, and the best boxes among them.

    Args:
        head: maps features to logits and deltas.
        anchors: the anchors of those features.
        pre_nms: candidates a level before suppression.
        post_nms: K, proposals an image after it.
        training_nms: both of them in training mode (section 3.3: 2000 proposals are learnt from, and fewer looked at later).
        iou_threshold: of the suppression, level by level.
        score_threshold: proposals of at most this objectness (in [0, 1]) are dropped.
        samples: anchors an image that the losses look at.
    """

    foreground_iou, background_iou, foreground_share = 0.7, 0.3, 0.5
    min_side = 1e-3  # pixels

    def __init__(
        self,
        head: RPNHead,
        anchors: Anchors,
        *,
        pre_nms: int = 1000,
        post_nms: int = 1000,
        training_nms: int = 2000,
        iou_threshold: float = 0.7,
        score_threshold: float = 0.0,
        samples: int = 256,
    ) -> None:
        super().__init__()
        self.head, self.anchors = head, anchors
        self.pre_nms, self.post_nms, self.training_nms = pre_nms, post_nms, training_nms
        self.iou_threshold = iou_threshold
        self.score_threshold, self.samples = score_threshold, samples

    def forward(self, features: Sequence[Tensor], sizes: Tensor, frame: tuple[int, int]) -> Proposals:
        """Proposals from feature maps.

        Args:
            features: L maps (B, C, H, W).
            sizes: (B, 2), each image's (height, width) in pixels.
            frame: (height, width) that the images are padded to.
        """
        anchors = self.anchors(features, frame)
        logits, deltas = self.head(features)
        with torch.no_grad():
            proposed = self._propose(logits, deltas, anchors, sizes)
        return Proposals(torch.cat(logits, dim=1), torch.cat(deltas, dim=1), torch.cat(anchors), *proposed)

    def _propose(
        self, logits: list[Tensor], deltas: list[Tensor], anchors: list[Tensor], sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The best boxes of each level, suppressed within it, then the best of all levels: boxes, scores, valid, idxs."""
        pre_nms, post_nms = (self.training_nms,) * 2 if self.training else (self.pre_nms, self.post_nms)
        levels = [self._candidates(*level, sizes, pre_nms) for level in zip(logits, deltas, anchors, strict=True)]
        most = max(scores.shape[1] for scores, _, _ in levels)
        scores = torch.stack([F.pad(s, (0, most - s.shape[1]), value=-torch.inf) for s, _, _ in levels], dim=1)
        boxes = torch.stack([F.pad(b, (0, 0, 0, most - b.shape[1])) for _, b, _ in levels], dim=1)  # (B, L, most, 4)
        first = [sum(len(level) for level in anchors[:i]) for i in range(len(anchors))]
        idxs = [F.pad(i + start, (0, most - i.shape[1])) for (_, _, i), start in zip(levels, first, strict=True)]
        kept = nms(boxes.flatten(0, 1), scores.flatten(0, 1) > -torch.inf, self.iou_threshold).view_as(scores)
        scores = torch.where(kept, scores, -torch.inf).flatten(1)
        scores, order = scores.topk(min(post_nms, scores.shape[1]), dim=1)
        valid = scores > -torch.inf
        boxes = torch.where(valid[..., None], gather(boxes.flatten(1, 2), order), 0)
        return boxes, scores.sigmoid(), valid, gather(torch.cat(idxs, dim=1), order)

    def _candidates(
        self, logits: Tensor, deltas: Tensor, anchors: Tensor, sizes: Tensor, number: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One level's best: logits (B, k), -inf where a box is too small or too faint, boxes (B, k, 4), anchors (B, k)."""
        scores, idxs = full_precision(logits).topk(min(number, logits.shape[1]), dim=1)
        boxes = clip(decode(gather(full_precision(deltas), idxs), anchors[idxs]), sizes)
        sides = boxes[..., 2:] - boxes[..., :2]
        good = (sides >= self.min_side).all(dim=-1) & (scores.sigmoid() > self.score_threshold)
        return torch.where(good, scores, -torch.inf), boxes, idxs

    def losses(self, proposals: Proposals, targets: Instances) -> dict[str, Tensor]:
        """Objectness (binary cross-entropy) and box (smooth L1) loss of sampled anchors (Faster R-CNN, eq. 1).

        Args:
            proposals: what `forward` returned.
            targets: the objects of B images, in the same pixels as the proposals.
        """
        matches = match(
            proposals.anchors,
            targets,
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
            low_quality=True,
        )
        sampled = sample(matches, self.samples, self.foreground_share)
        return self.sampled_losses(proposals, targets, gather(matches.idxs, sampled.idxs), sampled)

    def sampled_losses(
        self, proposals: Proposals, targets: Instances, matched: Tensor, sampled: Samples
    ) -> dict[str, Tensor]:
        """`losses` of given samples; matched (B, S) says which object each sample goes with."""
        logits = full_precision(gather(proposals.logits, sampled.idxs))
        deltas = full_precision(gather(proposals.deltas, sampled.idxs))
        anchors = proposals.anchors[sampled.idxs]
        # Background has no box to learn; its own anchor stands in, so that no logarithm of zero arises.
        boxes = torch.where(sampled.foreground[..., None], gather(targets.boxes, matched), anchors)
        objectness = F.binary_cross_entropy_with_logits(logits, sampled.foreground.to(logits.dtype), reduction="none")
        box = F.smooth_l1_loss(deltas, encode(boxes, anchors), beta=1 / 9, reduction="none").sum(dim=-1)
        return {
            "loss_objectness": mean_over_images(objectness, sampled.valid, sampled.valid),
            "loss_rpn_box": mean_over_images(box, sampled.foreground, sampled.valid),
        }


class RPNHead(nn.Module):
    """3 x 3 convolutions, then a logit and four offsets for each anchor of a cell; shared by all levels.

    Args:
        channels: of every feature map.
        anchors_per_cell: A.
        depth: number of 3 x 3 convolutions.
    """

    def __init__(self, channels: int, anchors_per_cell: int, *, depth: int = 1) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            *[
                nn.Sequential(nn.Conv2d(channels, channels, kernel_size=3, padding=1), nn.ReLU(inplace=True))
                for _ in range(depth)
            ]
        )
        self.cls_logits = nn.Conv2d(channels, anchors_per_cell, kernel_size=1)
        self.bbox_pred = nn.Conv2d(channels, anchors_per_cell * 4, kernel_size=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, std=0.01)
                nn.init.zeros_(layer.bias)

    def forward(self, features: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Per level: logits (B, H * W * A) and deltas (B, H * W * A, 4), in the anchors' order."""
        hidden = [self.conv(feature) for feature in features]
        logits = [self.cls_logits(h).permute(0, 2, 3, 1).flatten(1) for h in hidden]
        deltas = [self.bbox_pred(h).permute(0, 2, 3, 1).reshape(len(h), -1, 4) for h in hidden]
        return logits, deltas
