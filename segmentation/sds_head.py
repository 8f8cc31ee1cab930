"""The head of SDS (https://arxiv.org/abs/1407.1808): regions to names (section 3.3) and refined masks (3.4).

A region is an object if it covers it, with an IoU of at least 0.5 between their pixels. Its mask is drawn in two steps, each
by logistic regressions of the region's category: first coarsely, the figure in 10 x 10 cells of the box from the networks'
vectors and the region in the same cells; then each fine cell from what the coarse figure says there and from the region.

Deviations: the fine cells are those of the region's compact mask, where the paper takes superpixels; all that is learnt is
learnt together, where the paper fits regressions to the finished network; a region is compared with the object whose box
overlaps its box most; boxes, not regions, suppress each other.

Letters: B images, K regions an image, Q sampled ones, P of them at most objects, R regions, S pixels a side of a crop, M cells
along a mask's side, T along a true one's, C categories, D detections, G = 10 coarse cells a side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets.structures import Instances
from ..detectors.assignment import Matches, gather, match, mean_over_images, sample
from ..detectors.boxes import full_precision
from ..detectors.warp import Warp
from .mask_head import coverage, foreground_slots, has_mask
from .region_masks import best_regions, gather_masks, overlap, without_garbage

COARSE = 10  # G


class Regions(NamedTuple):
    """Pictures and regions in them.

    Attributes:
        images: (B, 3, H, W), normalised, zero beyond their valid part.
        boxes: (B, K, 4), xyxy in pixels.
        valid: (B, K) bool; false where an image has fewer than K.
        masks: (B, K, M, M), 1 where a cell of a box is the region's, else 0; None where all there is are boxes.
    """

    images: Tensor
    boxes: Tensor
    valid: Tensor
    masks: Tensor | None


class SDSHead(nn.Module):
    """Names regions and draws their masks, a fixed number at a time: 2000 of them do not fit into memory at once.

    Args:
        pool: cuts boxes out of the picture.
        describe: crops of boxes and of regions, both (R, 3, S, S), to vectors (R, width); a method of the backbone.
        width: of these vectors.
        num_classes: C.
        whole: M where all there is are boxes.
        chunk: regions at a time. Results do not depend on it, but for batch norms in training.
        samples: Q; a quarter of them objects.
        score_threshold: detections of at most this score are dropped.
        iou_threshold: of the suppression, category by category.
        detections: D.
        candidates: (region, category) pairs an image that enter the suppression, best first.
    """

    foreground_iou, background_iou, foreground_share = 0.5, 0.5, 0.25

    def __init__(
        self,
        pool: Warp,
        describe: Callable[[Tensor, Tensor], Tensor],
        width: int,
        num_classes: int,
        *,
        whole: int = 28,
        chunk: int = 128,
        samples: int = 64,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.3,
        detections: int = 100,
        candidates: int = 2048,
    ) -> None:
        super().__init__()
        self.pool, self.describe, self.num_classes, self.whole = pool, describe, num_classes, whole
        self.chunk, self.samples, self.score_threshold = chunk, samples, score_threshold
        self.iou_threshold, self.detections, self.candidates = iou_threshold, detections, candidates
        self.cls_score = nn.Linear(width, num_classes + 1)  # column 0 is the background's
        nn.init.normal_(self.cls_score.weight, std=0.01)
        nn.init.zeros_(self.cls_score.bias)
        self.refiner = Refiner(width, num_classes)

    def vectors(self, images: Tensor, boxes: Tensor, masks: Tensor) -> Tensor:
        """(B, K, width) of regions: boxes (B, K, 4), masks (B, K, M, M)."""
        some = max(1, self.chunk // len(boxes))
        parts = zip(boxes.split(some, dim=1), masks.split(some, dim=1), strict=True)
        described = [self.describe(*self.crops(images, *part)) for part in parts]
        return torch.cat([vectors.unflatten(0, (len(boxes), -1)) for vectors in described], dim=1)

    def crops(self, images: Tensor, boxes: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Each region's box with its surroundings, and the region alone, both (B * K, 3, S, S) (section 3.2).

        What is not the region's, the rim included, is the mean of all pictures there: zero, of normalised ones.
        """
        crops, rim = self.pool([images], boxes), self.pool.context
        figure = F.interpolate(masks.flatten(0, 1)[:, None], size=self.pool.size - 2 * rim, mode="bilinear")
        return crops, crops * F.pad((figure >= 0.5).to(crops.dtype), (rim, rim, rim, rim))

    def losses(self, regions: Regions, targets: Instances) -> dict[str, Tensor]:
        """Category (cross-entropy), coarse figure and mask (both binary cross-entropy, of objects) of sampled regions.

        The objects' own regions join the proposals, so that there is always something to find.

        Raises:
            ValueError: the targets have no masks.
        """
        targets = without_garbage(targets)
        boxes, masks = self._joined(regions, targets)
        with torch.no_grad():
            matches = self._matches(regions, boxes, masks, targets)
            sampled = sample(matches, self.samples, self.foreground_share)
        boxes, masks = gather(boxes, sampled.idxs), gather_masks(masks, sampled.idxs)
        matched = gather(matches.idxs, sampled.idxs)
        vectors = self.vectors(regions.images, boxes, masks)
        column = torch.where(sampled.foreground, gather(targets.labels, matched) + 1, 0)
        logits = full_precision(self.cls_score(vectors))
        cls = F.cross_entropy(logits.flatten(0, 1), column.flatten(), reduction="none").view_as(column)
        losses = {"loss_cls": mean_over_images(cls, sampled.valid, sampled.valid)}
        most = min(max(1, int(self.samples * self.foreground_share)), boxes.shape[1])
        slots, counted = foreground_slots(sampled.foreground, most)
        chosen = gather(boxes, slots), gather_masks(masks, slots), gather(vectors, slots), gather(matched, slots)
        return losses | self._mask_losses(*chosen, targets, counted)

    def _joined(self, regions: Regions, targets: Instances) -> tuple[Tensor, Tensor]:
        """Proposals and then objects: boxes (B, K + N, 4) and masks (B, K + N, M, M)."""
        masks, boxes = self._masks(regions), targets.boxes.to(regions.boxes.dtype)
        own = masks.new_ones(*boxes.shape[:2], *masks.shape[2:])
        if regions.masks is not None:
            own = (coverage(targets.masks, boxes, boxes, masks.shape[-1]) >= 0.5).to(masks.dtype)
        return torch.cat([regions.boxes, boxes], dim=1), torch.cat([masks, own], dim=1)

    def _masks(self, regions: Regions) -> Tensor:
        """(B, K, M, M); boxes alone count as regions that fill them."""
        if regions.masks is None:
            return regions.boxes.new_ones(*regions.boxes.shape[:2], self.whole, self.whole)
        return regions.masks.to(regions.boxes.dtype)

    def _matches(self, regions: Regions, boxes: Tensor, masks: Tensor, targets: Instances) -> Matches:
        """Which region is which object; of boxes alone by the boxes' overlap, as in the paper's network A."""
        matches = match(boxes, targets, foreground_iou=self.foreground_iou, background_iou=self.background_iou)
        if regions.masks is not None:
            matches = by_region(matches, boxes, masks, targets, self.foreground_iou)
        valid = torch.cat([regions.valid, targets.labels >= 0], dim=1)
        return Matches(matches.idxs, matches.foreground & valid, matches.background & valid)

    def _mask_losses(
        self, boxes: Tensor, masks: Tensor, vectors: Tensor, matched: Tensor, targets: Instances, counted: Tensor
    ) -> dict[str, Tensor]:
        """Of P regions an image, where `counted` (B, P), which are objects `matched` (B, P)."""
        truth, own = gather_masks(targets.masks, matched), gather(targets.boxes, matched)
        labels, counted = gather(targets.labels, matched).clamp(min=0), counted & has_mask(truth)
        found = self.refiner(vectors.flatten(0, 1), masks.flatten(0, 1), labels.flatten())
        losses = {}
        for name, logits in zip(("loss_coarse", "loss_mask"), found, strict=True):
            wanted = coverage(truth, own, full_precision(boxes), logits.shape[-1]).to(logits.dtype)
            each = F.binary_cross_entropy_with_logits(logits.view_as(wanted), wanted, reduction="none").mean((-1, -2))
            losses[name] = torch.where(counted, each, 0).sum() / counted.sum().clamp(min=1)
        return losses

    def decode(self, regions: Regions) -> Instances:
        """The final detections (B, D) with masks, best first; label -1 marks padding."""
        masks = self._masks(regions)
        vectors = self.vectors(regions.images, regions.boxes, masks)
        scores = full_precision(self.cls_score(vectors)).softmax(dim=-1)[..., 1:]
        scores = torch.where(regions.valid[..., None] & (scores > self.score_threshold), scores, -1)
        region, found = best_regions(
            regions.boxes, scores, iou_threshold=self.iou_threshold, candidates=self.candidates, most=self.detections
        )
        chosen = gather(vectors, region).flatten(0, 1), gather_masks(masks, region).flatten(0, 1)
        _, drawn = self.refiner(*chosen, found.labels.clamp(min=0).flatten())
        drawn = drawn.sigmoid().unflatten(0, region.shape)
        return replace(found, masks=torch.where((found.labels >= 0)[..., None, None], drawn, 0))


class Refiner(nn.Module):
    """A region's mask, drawn by regressions of its category (section 3.4).

    Args:
        width: of the networks' vectors.
        num_classes: C.
    """

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.coarse = nn.Linear(width + COARSE**2, num_classes * COARSE**2)
        nn.init.normal_(self.coarse.weight, std=0.01)
        nn.init.zeros_(self.coarse.bias)
        # Weights of the coarse figure and of the region, and a bias; at first both have the same say.
        self.fine = nn.Parameter(torch.tensor([4.0, 4.0, -4.0]).repeat(num_classes, 1))

    def forward(self, vectors: Tensor, regions: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the coarse figure (R, G, G) and of the mask (R, M, M).

        Args:
            vectors: (R, width).
            regions: (R, M, M), 0 or 1.
            labels: (R,), 0..C-1.
        """
        seen = F.adaptive_avg_pool2d(regions[:, None], COARSE).flatten(1)
        every = self.coarse(torch.cat([vectors, seen.to(vectors.dtype)], dim=1)).view(len(labels), -1, COARSE, COARSE)
        rows = torch.arange(len(labels), device=labels.device)
        coarse = full_precision(every[rows, labels])
        # The first step is not bent to please the second.
        figure = F.interpolate(coarse.detach().sigmoid()[:, None], size=regions.shape[1:], mode="bilinear")[:, 0]
        by_figure, by_region, bias = self.fine[labels][..., None, None].unbind(1)
        return coarse, by_figure * figure + by_region * regions + bias


def by_region(matches: Matches, boxes: Tensor, masks: Tensor, targets: Instances, least: float) -> Matches:
    """Matches whose foreground are the regions that cover their object, with an IoU of at least `least` between pixels.

    Args:
        matches: by boxes.
        boxes: (B, K, 4).
        masks: (B, K, M, M).
        targets: with masks.
        least: in [0, 1].
    """
    learnt = targets.labels >= 0
    if targets.crowd is not None:
        learnt = learnt & ~targets.crowd
    own, truth = gather(targets.boxes, matches.idxs), gather_masks(targets.masks, matches.idxs)
    foreground = gather(learnt, matches.idxs) & (overlap(masks, boxes, truth, own) >= least)
    return Matches(matches.idxs, foreground, ~foreground & (matches.foreground | matches.background))
