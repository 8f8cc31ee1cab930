"""Hypercolumns (Hariharan, Arbeláez, Girshick and Malik 2015, https://arxiv.org/abs/1411.5752): the mask of a detected box from
the features of several layers at once.

The hypercolumn of a cell of a box is what all layers say there, each brought to the box's grid of M x M cells, fully connected
layers everywhere the same. A logistic regression of the box's category tells from it whether the cell is the object's; and as
that depends on the place, there are K x K of them on a coarse grid, between whose answers a cell interpolates (section 3,
"Interpolating into a grid of classifiers"). Hypercolumns are never made: a linear function of them is the sum of one for each
layer, computed at the layer's own resolution and then upsampled ("Efficient classification using convolutions and upsampling").

The boxes are Faster R-CNN's, on the same pass of the same network, and all is learnt together ("Representation as a neural
network"; section 4.1's system 1 refines detections likewise).

Deviations: layers are read in each box by RoIAlign, on grids of about their own resolution, where the paper crops and warps the
picture; classifiers see one cell of a layer (1 x 1), not its neighbours; the figure is not projected on superpixels, and
detections are not scored anew; masks are learnt in sampled proposals that overlap an object by 0.5.

Letters: B images, C categories, D detections, R regions, L layers, M cells along a mask's side, K classifiers along a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import Backbone, BackboneWithFPN, LastMap, build_backbone
from ..detectors.boxes import full_precision
from ..detectors.faster_rcnn import CANDIDATES, FasterRCNN, finished, rpn_over
from ..detectors.roi_head import BoxPredictor, TwoLayerHead
from ..detectors.roi_pool import RoIAlign, RoIPool
from ..detectors.wide_head import gaussian_predictor, wide_head
from .mask_head import MaskRoIHead

# Maps of networks that usually give their last alone: those of strides 4, 8 and 16, as far as there are such.
LAYERS = {"vgg": ("conv3", "conv4", "conv5"), "alexnet": ("conv2", "conv4", "conv5")}
FEWEST = 7  # cells along a side of the grid on which a layer is read
CERTAIN = 1e-6  # no answer is surer: its logarithm, and the gradient, must stay finite


class Hypercolumn(FasterRCNN):
    """Faster R-CNN that draws the mask of each detection from hypercolumns.

    Its backbone gives the layers of the hypercolumns, finest first, the RPN looks at the last ones, as many as it has anchors
    for, and `roi_heads` is a `HypercolumnHead`.
    """

    task = "instance_segmentation"


class HypercolumnHead(MaskRoIHead):
    """A head that names and refines regions, and draws the masks of what it finds from hypercolumns.

    Args:
        pool, box_head, box_predictor: see `RoIHead`; `pool` takes all the maps.
        classifiers: what tells cells of the object.
        readers: one for each map of the hypercolumn: (that map alone, rois (B, N, 4)) to (B * N, channels, P, P).
    """

    def __init__(
        self,
        pool: nn.Module,
        box_head: TwoLayerHead,
        box_predictor: BoxPredictor,
        classifiers: ClassifierGrid,
        readers: Sequence[RoIAlign],
    ) -> None:
        super().__init__(pool, box_head, box_predictor, nn.ModuleList(readers), nn.Identity(), classifiers)

    def mask_logits(self, features: Sequence[Tensor], rois: Tensor, labels: Tensor) -> Tensor:
        """Logits (B, N, M, M) of the masks of regions (B, N, 4) as objects of these categories (B, N), 0..C-1."""
        layers = [read([level], rois) for read, level in zip(self.mask_pool, features, strict=True)]
        whole = self.box_head(self.pool(features, rois))[..., None, None]  # fc7, one cell for all of the box
        return self.mask_predictor([*layers, whole], labels.flatten()).unflatten(0, labels.shape)


class LastPool(nn.Module):
    """Pools from the last of several maps.

    Args:
        pool: of one map.
        strides: of all maps.
    """

    def __init__(self, pool: RoIPool, strides: Sequence[int]) -> None:
        super().__init__()
        self.pool, self.strides = pool, tuple(strides)

    def forward(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        return self.pool(features[-1:], rois)


class ClassifierGrid(nn.Module):
    """K x K logistic regressions of each category over hypercolumns, interpolated from cell to cell.

    Args:
        channels: of each of L layers.
        num_classes: C.
        size: M; the paper's is 50.
        grid: K; the paper's are 5 and 10.
    """

    def __init__(self, channels: Sequence[int], num_classes: int, *, size: int = 50, grid: int = 5) -> None:
        super().__init__()
        self.size = size
        self.weights = nn.ParameterList(nn.Parameter(torch.empty(num_classes, grid**2, width)) for width in channels)
        for weight in self.weights:
            nn.init.normal_(weight, std=0.01)
        self.bias = nn.Parameter(torch.zeros(num_classes, grid**2))
        self.register_buffer("shares", interpolation(grid, size), persistent=False)

    def forward(self, layers: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Logits (R, M, M) from L layers of the same regions (R, channels, P, P), and their categories (R,), 0..C-1.

        Only the regressions of a region's own category are computed.
        """
        scores = full_precision(self.bias[labels])[..., None, None]
        for layer, weight in zip(layers, self.weights, strict=True):
            own = torch.bmm(weight[labels].to(layer.dtype), layer.flatten(2)).unflatten(2, layer.shape[2:])
            scores = scores + F.interpolate(full_precision(own), size=(self.size, self.size), mode="bilinear")
        # Answers are interpolated, not what they are made of: this is a mixture of logistic regressions.
        answers = (scores.sigmoid() * self.shares).sum(dim=1)
        return answers.logit(CERTAIN)


def interpolation(grid: int, size: int) -> Tensor:
    """(K^2, M, M): the share that each classifier of a grid has in each cell's answer, bilinear; they sum to 1."""
    return F.interpolate(torch.eye(grid**2).view(1, -1, grid, grid), size=(size, size), mode="bilinear")[0]


def hypercolumn(
    backbone: str = "vgg16",
    num_classes: int = 20,
    *,
    weights: str | None = None,
    backbone_weights: str | None = None,
    norm: str = "frozen",
    trainable_stages: int | None = None,
    anchor_sizes: Sequence[Sequence[float]] | None = None,
    proposals: int = 300,
    samples: int = 128,
    detections: int = 100,
    head_width: int | None = None,
    size: int = 50,
    grid: int = 5,
) -> Hypercolumn:
    """Hypercolumns of VGG-16 as in its paper, of the maps of any backbone, or of a pyramid's up to stride 32.

    Args:
        backbone: a name in `BACKBONES`. On a pyramid the detector is `faster_rcnn`, else `faster_rcnn_c5`.
        num_classes: C.
        weights: of the whole model: None, a path or a URL. With another number of classes than the weights', the last
            layers start at random.
        backbone_weights: of the backbone, and of fc6 and fc7 where its classifier has such layers, see `wide_head`:
            None, a path, a URL or "imagenet".
        norm: "frozen", "batch", "sync" or "group"; frozen statistics only make sense with trained weights.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        anchor_sizes: sides of the anchors in pixels, a row for each map that proposes; None for the detector's usual ones.
        proposals: of an image, at most; more of them in training, see `rpn_over`.
        samples: regions of an image that the second stage's losses look at; masks are learnt in a quarter of them.
        detections: D.
        head_width: of the two fully connected layers; None for 4096, or on a pyramid 1024.
        size: M; fewer cells, 28 say, cost less.
        grid: K.
    """
    architecture = {"name": "hypercolumn", "arguments": dict(locals())}
    layers = next((names for kind, names in LAYERS.items() if backbone.startswith(kind)), None)
    body = build_backbone(
        backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages, out_stages=layers
    )
    if isinstance(body, BackboneWithFPN):
        rpn = rpn_over(body, anchor_sizes or ((32,), (64,), (128,), (256,), (512,)), proposals=proposals)
        head = _on_pyramid(body, num_classes, head_width or 1024, size=size, grid=grid)
    else:
        single = LastMap(body)
        rpn = rpn_over(single, anchor_sizes or ((128, 256, 512),), proposals=proposals, candidates=CANDIDATES)
        box_head = wide_head(backbone, single.channels[0], head_width or 4096, weights=backbone_weights)
        head = _on_layers(body, box_head, num_classes, size=size, grid=grid)
    head.samples, head.detections = samples, detections
    model = Hypercolumn(body, rpn, head)
    return finished(model, architecture, weights, last_layers=("roi_heads.box_predictor.", "roi_heads.mask_predictor."))


def _on_pyramid(body: Backbone, num_classes: int, width: int, *, size: int, grid: int) -> HypercolumnHead:
    """The head of `faster_rcnn`, and hypercolumns of the pyramid up to stride 32."""
    strides = [stride for stride in body.strides if stride <= 32]
    box_head = TwoLayerHead(body.channels[0], width=width)
    classifiers = ClassifierGrid([*body.channels[: len(strides)], width], num_classes, size=size, grid=grid)
    predictor = BoxPredictor(width, num_classes)
    return HypercolumnHead(RoIAlign(strides), box_head, predictor, classifiers, _readers(strides, size))


def _on_layers(body: Backbone, box_head: TwoLayerHead, num_classes: int, *, size: int, grid: int) -> HypercolumnHead:
    """The head of `faster_rcnn_c5`, and hypercolumns of all the maps."""
    strides, width = body.strides, box_head.width
    pool = LastPool(RoIPool(strides[-1:], output_size=box_head.bins), strides)
    classifiers = ClassifierGrid([*body.channels, width], num_classes, size=size, grid=grid)
    head = HypercolumnHead(pool, box_head, gaussian_predictor(width, num_classes), classifiers, _readers(strides, size))
    head.box_beta = 1.0
    return head


def _readers(strides: Sequence[int], size: int) -> list[RoIAlign]:
    """Half the mask's resolution for the finest map, half of that for the next, and so on."""
    return [RoIAlign((stride,), output_size=max(FEWEST, size >> (i + 1))) for i, stride in enumerate(strides)]
