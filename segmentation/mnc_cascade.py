"""The stages of MNC above its boxes (https://arxiv.org/abs/1512.04412): masks (section 3.2), then categories (3.3), and again
both on regressed boxes (3.5).

Stage 3 has two classifiers: of one the objects are the boxes that overlap some object by 0.5, of the other those whose mask
does so, too; only the second one's scores are answers (section 4).

Deviations: gradients go to boxes of objects alone; RoIAlign, averages of bilinear samples, in place of RoI warping and max
pooling; the objects' own boxes join the proposals to learn from; rounds share their weights; masks of suppressed boxes do not
vote on those that stay; each image counts the same in the losses.

Letters: B images, K boxes an image, S sampled ones, R boxes of all images, P bins a side, M = 28 cells along a mask's side, C
categories, D detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets.structures import Instances
from ..detectors.assignment import Matches, Samples, gather, match, mean_over_images, sample
from ..detectors.boxes import clip, decode, encode, full_precision
from ..detectors.roi_head import TwoLayerHead
from ..detectors.roi_pool import RoIAlign
from .mask_head import coverage, has_mask
from .region_masks import best_regions, gather_masks, overlap, without_garbage

MASK = 28  # M
HIDDEN = 256  # of the mask stage


class Answer(NamedTuple):
    """What a round says of boxes.

    Attributes:
        boxes: (B, K, 4), those it was asked about, xyxy in pixels.
        masks: (B, K, M, M), logits.
        logits: (B, K, C + 1), column 0 the background's, of masks that cover an object.
        box_logits: (B, K, C + 1), of boxes that do.
        deltas: (B, K, C + 1, 4), offsets from the boxes.
    """

    boxes: Tensor
    masks: Tensor
    logits: Tensor
    box_logits: Tensor
    deltas: Tensor


class Cascade(nn.Module):
    """Stages 2 and 3, once or twice (3.5: four and five).

    Args:
        pool: (features, boxes (B, K, 4)) to (B * K, channels, P, P), with gradients to the boxes.
        mask_stage: these to logits of masks.
        category_stage: these and masks to categories and offsets.
        rounds: 1 or 2; the second looks at the boxes that the first one regressed.
        samples: S, a quarter of them objects.
        score_threshold: detections of at most this score are dropped.
        iou_threshold: of the suppression, category by category.
        detections: D.
        candidates: (box, category) pairs an image that enter the suppression, best first.
        box_gradient: what gradients to boxes count, 0 to 1.
    """

    foreground_iou, background_iou, foreground_share, mask_iou = 0.5, 0.5, 0.25, 0.5
    delta_weights = (10.0, 10.0, 5.0, 5.0)
    min_side = 1e-2  # pixels

    def __init__(
        self,
        pool: RoIAlign,
        mask_stage: MaskStage,
        category_stage: CategoryStage,
        *,
        rounds: int = 2,
        samples: int = 64,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.3,
        detections: int = 100,
        candidates: int = 2048,
        box_gradient: float = 0.01,
    ) -> None:
        super().__init__()
        self.pool, self.mask_stage, self.category_stage, self.rounds = pool, mask_stage, category_stage, rounds
        self.samples, self.score_threshold, self.iou_threshold = samples, score_threshold, iou_threshold
        self.box_gradient = box_gradient
        self.detections, self.candidates, self.num_classes = detections, candidates, category_stage.num_classes
        self.register_buffer("unit_box", torch.tensor([0.0, 0.0, 1.0, 1.0]), persistent=False)

    def forward(self, features: Sequence[Tensor], boxes: Tensor) -> Answer:
        """One round: boxes (B, K, 4), their masks, and what the masks leave of them."""
        pooled = self.pool(features, boxes)
        masks = full_precision(self.mask_stage(pooled))
        found = self.category_stage(pooled, masks.sigmoid())
        logits, box_logits, deltas = (full_precision(each).unflatten(0, boxes.shape[:2]) for each in found)
        return Answer(boxes, masks.unflatten(0, boxes.shape[:2]), logits, box_logits, deltas.unflatten(-1, (-1, 4)))

    def regressed(self, answer: Answer, sizes: Tensor) -> Tensor:
        """(B, K, 4): each box as its likeliest category would have it, with gradients."""
        column = answer.logits[..., 1:].argmax(dim=-1) + 1
        boxes = decode(_own(answer.deltas, column), answer.boxes, self.delta_weights)
        return weakly(clip(boxes, sizes), self.box_gradient)

    def losses(
        self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, sizes: Tensor, targets: Instances
    ) -> dict[str, Tensor]:
        """`loss_mask`, `loss_cls`, `loss_cls_box` and `loss_box` of sampled boxes, each the sum over all rounds.

        Args:
            features: feature maps of B images.
            boxes: (B, K, 4), xyxy in pixels; the objects' own join them, so that there is always something to find.
            valid: (B, K) bool.
            sizes: (B, 2), each image's (height, width).
            targets: the objects, with masks.

        Raises:
            ValueError: the targets have no masks.
        """
        targets = without_garbage(targets)
        boxes = torch.cat([boxes, targets.boxes.to(boxes.dtype)], dim=1)
        matches = self._matches(boxes, torch.cat([valid, targets.labels >= 0], dim=1), targets)
        sampled = sample(matches, self.samples, self.foreground_share)
        boxes, matched = gather(boxes, sampled.idxs), gather(matches.idxs, sampled.idxs)
        losses = []
        for round_ in range(self.rounds):
            # A box of the background has no place to go to; it would go where it is the background's more surely.
            boxes = torch.where(sampled.foreground[..., None], boxes, boxes.detach())
            answer = self(features, boxes)
            losses.append(self._round_losses(answer, targets, matched, sampled))
            if round_ + 1 < self.rounds:
                boxes = self.regressed(answer, sizes)
                matched, foreground, background = self._matches(boxes, sampled.valid, targets)
                sampled = Samples(sampled.idxs, foreground, foreground | background)
        return {name: torch.stack([each[name] for each in losses]).sum() for name in losses[0]}

    def _matches(self, boxes: Tensor, valid: Tensor, targets: Instances) -> Matches:
        found = match(boxes.detach(), targets, foreground_iou=self.foreground_iou, background_iou=self.background_iou)
        return Matches(found.idxs, found.foreground & valid, found.background & valid)

    def _round_losses(self, answer: Answer, targets: Instances, matched: Tensor, sampled: Samples) -> dict[str, Tensor]:
        boxes, labels = answer.boxes.detach(), gather(targets.labels, matched) + 1
        truth, own = gather_masks(targets.masks, matched), gather(targets.boxes, matched)
        wanted = coverage(truth, own, boxes, MASK).to(answer.masks.dtype)
        mask = F.binary_cross_entropy_with_logits(answer.masks, wanted, reduction="none").mean(dim=(-1, -2))
        shown = sampled.foreground & has_mask(truth)
        with torch.no_grad():
            drawn = (answer.masks > 0).to(boxes.dtype)
            covering = sampled.foreground & (~shown | (overlap(drawn, boxes, truth, own) >= self.mask_iou))
        losses = {
            "loss_mask": mean_over_images(mask, shown, shown),
            "loss_box": mean_over_images(
                self._box_losses(answer, own, torch.where(sampled.foreground, labels, 0)),
                sampled.foreground,
                sampled.valid,
            ),
        }
        for name, logits, objects in (
            ("loss_cls", answer.logits, covering),
            ("loss_cls_box", answer.box_logits, sampled.foreground),
        ):
            column = torch.where(objects, labels, 0)
            each = F.cross_entropy(logits.flatten(0, 1), column.flatten(), reduction="none").view_as(column)
            losses[name] = mean_over_images(each, sampled.valid, sampled.valid)
        return losses

    def _box_losses(self, answer: Answer, own: Tensor, column: Tensor) -> Tensor:
        """(B, S) smooth L1 between the offsets in each box's column and those to its object; of column 0 undefined."""
        foreground = (column > 0)[..., None]
        boxes = torch.where(foreground, answer.boxes.detach(), self.unit_box)
        wanted = encode(torch.where(foreground, own, self.unit_box), boxes, self.delta_weights)
        return F.smooth_l1_loss(_own(answer.deltas, column), wanted, reduction="none").sum(dim=-1)

    def decode(self, features: Sequence[Tensor], boxes: Tensor, valid: Tensor, sizes: Tensor) -> Instances:
        """The best detections of all rounds, (B, D) with masks, best first; label -1 marks padding.

        Args:
            features, boxes, valid, sizes: as for `losses`.
        """
        answers = [self(features, clip(boxes, sizes))]
        while len(answers) < self.rounds:
            answers.append(self(features, self.regressed(answers[-1], sizes)))
        boxes, masks, logits = (
            torch.cat(each, dim=1) for each in zip(*(answer[:3] for answer in answers), strict=True)
        )
        large = (boxes[..., 2:] - boxes[..., :2] >= self.min_side).all(dim=-1) & valid.repeat(1, self.rounds)
        scores = logits.softmax(dim=-1)[..., 1:]
        scores = torch.where(large[..., None] & (scores > self.score_threshold), scores, -1)
        box, found = best_regions(
            boxes, scores, iou_threshold=self.iou_threshold, candidates=self.candidates, most=self.detections
        )
        drawn = gather_masks(masks, box).sigmoid()
        return replace(found, masks=torch.where((found.labels >= 0)[..., None, None], drawn, 0))


class MaskStage(nn.Sequential):
    """Stage 2: a box's features to the logits of its mask, whatever its category (section 3.2).

    Args:
        channels: of the pooled features.
        bins: P.
    """

    def __init__(self, channels: int, bins: int) -> None:
        super().__init__(
            nn.Flatten(),
            nn.Linear(channels * bins**2, HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(HIDDEN, MASK**2),
            nn.Unflatten(1, (MASK, MASK)),
        )


class CategoryStage(nn.Module):
    """Stage 3: categories and offsets from two pathways (section 3.3).

    Args:
        box_path: a box's features to a vector.
        mask_path: the same features, weighted by the mask, to a vector.
        num_classes: C.
    """

    def __init__(self, box_path: TwoLayerHead, mask_path: TwoLayerHead, num_classes: int) -> None:
        super().__init__()
        self.box_path, self.mask_path, self.num_classes = box_path, mask_path, num_classes
        width = box_path.width + mask_path.width
        self.cls_score, self.cls_score_box = (nn.Linear(width, num_classes + 1) for _ in range(2))
        self.bbox_pred = nn.Linear(width, 4 * (num_classes + 1))
        for layer, deviation in ((self.cls_score, 0.01), (self.cls_score_box, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: Tensor, masks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits by mask and by box, both (R, C + 1), and deltas (R, 4 (C + 1)).

        Args:
            pooled: (R, channels, P, P).
            masks: (R, M, M), probabilities; gradients reach them.
        """
        paths = (self.box_path, pooled), (self.mask_path, masked(pooled, masks))
        vectors = torch.cat([path(F.max_pool2d(features, 2)) for path, features in paths], dim=1)
        return self.cls_score(vectors), self.cls_score_box(vectors), self.bbox_pred(vectors)


def masked(pooled: Tensor, masks: Tensor) -> Tensor:
    """Features (R, channels, P, P) times the masks (R, M, M), brought to P x P by averages (eq. 4)."""
    return pooled * F.adaptive_avg_pool2d(masks[:, None], pooled.shape[-1]).to(pooled.dtype)


def weakly(values: Tensor, share: float) -> Tensor:
    """The same values, to which gradients count only so much."""
    return values.detach() + share * (values - values.detach())


def _own(deltas: Tensor, column: Tensor) -> Tensor:
    """(B, K, 4): of deltas (B, K, C + 1, 4) those in each box's column (B, K)."""
    return deltas.gather(2, column[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
