"""SDS, simultaneous detection and segmentation (Hariharan, Arbeláez, Girshick and Malik 2014, https://arxiv.org/abs/1407.1808):
R-CNN whose proposals are regions, not boxes, and whose answers are masks.

Each region is seen twice, as its box cut out of the picture and as the same with everything but the region filled with the
mean. Two networks describe the two crops, side by side and trained together on regions labelled by their own overlap: the
paper's network C (section 3.2). Above both vectors the region is named (3.3), and its mask drawn anew (3.4), see `sds_head.py`.

Deviations: regions are selective search's, as MCG is not at hand, and proposals that are boxes alone count as regions that
fill them; a softmax learnt with the network names regions, no support vector machines; what else differs is listed in
`sds_head.py`.

Letters: B images, H, W pixels of the frame, K regions an image, R regions, S pixels a side of a crop, M cells along a mask's
side, C categories, D detections.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..backbone import Backbone
from ..backbone.building import finish
from ..datasets.structures import Instances
from ..detectors.fast_rcnn import FastRCNN
from ..detectors.proposers import proposer_named
from ..detectors.rcnn import RegionNetwork, region_network
from ..detectors.warp import Warp
from .sds_head import Regions, SDSHead

WHOLE = 28  # M where proposals are boxes alone


class SDS(FastRCNN):
    """Names given regions and draws their masks: `TwoPathways` below an `SDSHead`."""

    task = "instance_segmentation"

    def forward(self, images: Tensor, sizes: Tensor, proposals: Instances | None = None) -> Regions:
        """The pictures, and the regions in them.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below.
            sizes: (B, 2), the valid (height, width) of each.
            proposals: (B, K), boxes in the frame's pixels and their regions as masks (B, K, M, M); label -1 as padding. None
                asks the proposer, see `FastRCNN.forward`.
        """
        if proposals is None:
            proposals = self.propose(images, sizes)
        outputs = super().forward(images, sizes, proposals)
        masks = proposals.masks
        if masks is not None:
            masks = torch.where(outputs.valid[..., None, None], masks, 0)
        return Regions(outputs.features[0], outputs.boxes, outputs.valid, masks)

    def losses(self, outputs: Regions, targets: Instances) -> dict[str, Tensor]:
        """`loss_cls`, `loss_coarse` and `loss_mask`, to be summed; the targets have masks."""
        return self.roi_heads.losses(outputs, targets)

    def decode(self, outputs: Regions, sizes: Tensor) -> Instances:
        """Final detections: Instances of (B, D) with masks (B, D, M, M), best first, label -1 as padding.

        Boxes are the regions'; masks are probabilities within each box, the object's own from 0.5 on.
        """
        return self.roi_heads.decode(outputs)


class TwoPathways(Backbone):
    """Two networks side by side, one for boxes and one for regions; what they give of a whole picture is the picture.

    Args:
        box, region: alike, each crops (R, 3, S, S) to vectors (R, width).
    """

    strides, channels = (1,), (3,)

    def __init__(self, box: RegionNetwork, region: RegionNetwork) -> None:
        super().__init__()
        self.box, self.region, self.width = box, region, box.width + region.width
        self.mean, self.std = box.mean, box.std
        self.stage_prefixes = {
            name: tuple(f"{path}.{prefix}" for path in ("box", "region") for prefix in prefixes)
            for name, prefixes in box.stage_prefixes.items()
        }

    def forward(self, images: Tensor) -> list[Tensor]:
        return [images]

    def describe(self, boxes: Tensor, regions: Tensor) -> Tensor:
        """(R, 2 width) of the same regions' crops with and without what is around them, both (R, 3, S, S)."""
        return torch.cat([self.box.describe(boxes), self.region.describe(regions)], dim=1)


def sds(
    backbone: str = "alexnet",
    num_classes: int = 20,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    proposer: str = "selective_search_regions",
    proposals: int = 2000,
    size: int = 227,
    context: int = 16,
    samples: int = 64,
    detections: int = 100,
) -> SDS:
    """SDS on two AlexNets, as in its paper, or on two of any network.

    Args:
        backbone: a name in `CLASSIFIERS` or "timm:NAME", whose last layer is left out; or a name in `BACKBONES`, whose
            last map is averaged.
        num_classes: C.
        weights: of the whole model: None, a path or a URL. With another number of classes than the weights', the last
            layers start at random.
        backbone_weights: of either network alone: None, a path, a URL or "imagenet".
        norm: "frozen", "batch", "sync" or "group"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the networks train, counted from the last; None trains all.
        proposer: a name in `PROPOSERS`; only some of them give regions.
        proposals: K, at most.
        size: S, the networks' input.
        context: pixels of S on each side that show what is around a region's box.
        samples: regions of an image that the losses look at, a quarter of them objects.
        detections: D.
    """
    architecture = {"name": "sds", "arguments": dict(locals())}
    paths = [
        region_network(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
        for _ in range(2)
    ]
    network = TwoPathways(*paths)
    head = SDSHead(
        Warp(size, context),
        network.describe,
        network.width,
        num_classes,
        whole=WHOLE,
        samples=samples,
        detections=detections,
    )
    model = SDS(network, head, proposer_named(proposer, proposals))
    return finish(model, architecture, weights, allow_missing=("roi_heads.cls_score.", "roi_heads.refiner."))
