"""The head that names and refines regions (Fast R-CNN, https://arxiv.org/abs/1504.08083), shared by the R-CNN family.

State dict keys and numbers are torchvision's. Deviations: crowds are ignored; each image counts the same in the losses.

Letters: B images, K regions an image, S sampled ones, C categories, D detections, P bins a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..datasets.structures import Instances
from .assignment import Matches, Samples, gather, match, mean_over_images, sample
from .boxes import clip, decode, encode, full_precision
from .nms import best, nms
from .truncated_svd import low_rank, two_ranks


class RoIHead(nn.Module):
    """Pools regions, tells their category (or background) and refines their box.

    The background class is column 0 of `box_predictor`, as in torchvision's weights; outside this class labels are 0..C-1.

    Args:
        pool: (features, rois (B, K, 4)) to (B * K, channels, P, P).
        box_head: pooled features to vectors.
        box_predictor: vectors to C + 1 logits and 4 (C + 1) deltas.
        samples: regions an image that the losses look at.
        score_threshold: detections of at most this score are dropped.
        iou_threshold: of the suppression, category by category.
        detections: D, the most detections an image.
        candidates: (region, category) pairs an image that enter the suppression, best first.
        background_floor: the least IoU with some object that makes a region background (Fast R-CNN, section 2.3: 0.1).
        box_beta: where the box loss turns from quadratic to linear, in units of the weighted offsets.
    """

    foreground_iou, background_iou, foreground_share = 0.5, 0.5, 0.25
    delta_weights = (10.0, 10.0, 5.0, 5.0)
    min_side = 1e-2  # pixels

    def __init__(
        self,
        pool: nn.Module,
        box_head: nn.Module,
        box_predictor: BoxPredictor,
        *,
        samples: int = 512,
        score_threshold: float = 0.05,
        iou_threshold: float = 0.5,
        detections: int = 100,
        candidates: int = 2048,
        background_floor: float = 0.0,
        box_beta: float = 1 / 9,
    ) -> None:
        super().__init__()
        self.pool, self.box_head, self.box_predictor = pool, box_head, box_predictor
        self.samples, self.score_threshold, self.iou_threshold = samples, score_threshold, iou_threshold
        self.detections, self.candidates = detections, candidates
        self.background_floor, self.box_beta = background_floor, box_beta
        self.num_classes = box_predictor.num_classes
        self.register_buffer("unit_box", torch.tensor([0.0, 0.0, 1.0, 1.0]), persistent=False)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, K, C + 1) and deltas (B, K, C + 1, 4) of regions (B, K, 4)."""
        logits, deltas = self.box_predictor(self.box_head(self.pool(features, rois)))
        batch, number = rois.shape[:2]
        return full_precision(logits).view(batch, number, -1), full_precision(deltas).view(batch, number, -1, 4)

    def losses(self, features: Sequence[Tensor], rois: Tensor, valid: Tensor, targets: Instances) -> dict[str, Tensor]:
        """Category (cross-entropy) and box (smooth L1) loss of sampled regions (Fast R-CNN, eq. 1).

        Args:
            features: feature maps of B images.
            rois: (B, K, 4), xyxy in pixels; the objects' own boxes join them, so that there is always something to find.
            valid: (B, K) bool.
            targets: the objects.
        """
        present = targets.labels >= 0
        # Padding is undefined, perhaps NaN, which even a region of no weight would carry into the gradients.
        rois = torch.cat([rois, torch.where(present[..., None], targets.boxes, 0).to(rois.dtype)], dim=1)
        valid = torch.cat([valid, present], dim=1)
        matches = match(
            rois,
            targets,
            foreground_iou=self.foreground_iou,
            background_iou=self.background_iou,
            background_floor=self.background_floor,
        )
        matches = Matches(matches.idxs, matches.foreground & valid, matches.background & valid)
        sampled = sample(matches, self.samples, self.foreground_share)
        return self.sampled_losses(
            features, gather(rois, sampled.idxs), targets, gather(matches.idxs, sampled.idxs), sampled
        )

    def sampled_losses(
        self, features: Sequence[Tensor], rois: Tensor, targets: Instances, matched: Tensor, sampled: Samples
    ) -> dict[str, Tensor]:
        """`losses` of given regions (B, S, 4); matched (B, S) says which object each goes with."""
        logits, deltas = self(features, rois)
        column = torch.where(sampled.foreground, gather(targets.labels, matched) + 1, 0)
        own = deltas.gather(2, column[..., None, None].expand(-1, -1, 1, 4))[:, :, 0]
        # Background has no box to learn and padding none of its own; a unit box stands in, whose offsets are zero.
        foreground = sampled.foreground[..., None]
        boxes = torch.where(foreground, gather(targets.boxes, matched), self.unit_box)
        wanted = encode(boxes, torch.where(foreground, rois, self.unit_box), self.delta_weights)
        cls = F.cross_entropy(logits.flatten(0, 1), column.flatten(), reduction="none").view_as(column)
        box = F.smooth_l1_loss(own, wanted, beta=self.box_beta, reduction="none").sum(dim=-1)
        return {
            "loss_cls": mean_over_images(cls, sampled.valid, sampled.valid),
            "loss_box": mean_over_images(box, sampled.foreground, sampled.valid),
        }

    def scores(self, logits: Tensor) -> Tensor:
        """Logits (B, K, C + 1) to scores (B, K, C) in [0, 1]."""
        return logits.softmax(dim=-1)[..., 1:]

    def decode(self, features: Sequence[Tensor], rois: Tensor, valid: Tensor, sizes: Tensor) -> Instances:
        """The final detections.

        Args:
            features: feature maps of B images.
            rois: (B, K, 4), xyxy in pixels.
            valid: (B, K) bool.
            sizes: (B, 2), each image's (height, width).

        Returns:
            Instances of (B, D), best first; label -1 marks padding.
        """
        logits, deltas = self(features, rois)
        scores = self.scores(logits)
        scores = torch.where(valid[..., None] & (scores > self.score_threshold), scores, -1)
        categories = scores.shape[-1]
        flat = scores.flatten(1)
        scores, idxs = flat.topk(min(self.candidates, flat.shape[1]), dim=1)
        roi, label = idxs // categories, idxs % categories
        column = roi * (categories + 1) + label + 1
        boxes = decode(gather(deltas.flatten(1, 2), column), gather(full_precision(rois), roi), self.delta_weights)
        boxes = clip(boxes, sizes)
        large = (boxes[..., 2:] - boxes[..., :2] >= self.min_side).all(dim=-1)
        kept = nms(boxes, (scores > 0) & large, self.iou_threshold, label)
        return best(boxes, scores, label, kept, self.detections)


class TwoLayerHead(nn.Module):
    """Two fully connected layers over the flattened bins (Fast R-CNN's fc6 and fc7; FPN, section 4.2).

    Args:
        channels: of the maps that regions are pooled from.
        bins: P.
        width: outputs of either layer.
        dropout: share of either layer's outputs that are zero in training.
        ranks: of fc6 and fc7, where each is the product of two, see `truncated_svd`; None for whole layers.
    """

    def __init__(
        self,
        channels: int,
        bins: int = 7,
        width: int = 1024,
        *,
        dropout: float = 0.0,
        ranks: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        inputs = channels * bins**2
        if ranks is None:
            self.fc6, self.fc7 = nn.Linear(inputs, width), nn.Linear(width, width)
        else:
            six, seven = two_ranks(ranks)
            self.fc6, self.fc7 = low_rank(inputs, width, six), low_rank(width, width, seven)
        self.dropout = nn.Dropout(dropout)
        self.bins, self.width = bins, width

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, channels, P, P) to (R, width)."""
        vectors = self.dropout(F.relu(self.fc6(pooled.flatten(1))))
        return self.dropout(F.relu(self.fc7(vectors)))


class ConvHead(nn.Sequential):
    """3 x 3 convolutions with batch norm, then one fully connected layer (torchvision's `_v2` detectors)."""

    def __init__(
        self, channels: int, bins: int = 7, *, depth: int = 4, conv_width: int = 256, width: int = 1024
    ) -> None:
        blocks: list[nn.Module] = []
        for i in range(depth):
            conv = nn.Conv2d(channels if i == 0 else conv_width, conv_width, kernel_size=3, padding=1, bias=False)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            blocks.append(nn.Sequential(conv, nn.BatchNorm2d(conv_width), nn.ReLU(inplace=True)))
        super().__init__(*blocks, nn.Flatten(), nn.Linear(conv_width * bins**2, width), nn.ReLU(inplace=True))
        self.width = width


class StageHead(nn.Module):
    """A backbone's last stage applied to each region, then averaged (He et al. 2015, appendix A).

    Args:
        stage: (R, channels, P, P) to (R, width, P', P').
        width: channels that `stage` gives.
    """

    def __init__(self, stage: nn.Module, width: int) -> None:
        super().__init__()
        self.stage, self.width = stage, width

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, channels, P, P) to (R, width)."""
        return self.stage(pooled).mean(dim=(2, 3))


class BoxPredictor(nn.Module):
    """Logits of background and C categories, and a box for each of them (Fast R-CNN, section 2.3)."""

    def __init__(self, width: int, num_classes: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.cls_score = nn.Linear(width, num_classes + 1)
        self.bbox_pred = nn.Linear(width, 4 * (num_classes + 1))

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """(R, width) to logits (R, C + 1) and deltas (R, 4 (C + 1))."""
        return self.cls_score(vectors), self.bbox_pred(vectors)
