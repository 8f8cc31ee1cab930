"""OverFeat (Sermanet et al. 2013, https://arxiv.org/abs/1312.6229): a classifier of windows run on whole pictures at once,
at several scales, with a box from every window and a greedy merging of them.

Offset max pooling (section 3.3, figure 3) pools the last map k x k times, shifted by 0 to k - 1 cells each way, slides the
head over every one of the results, and interleaves the answers. Pooling at all shifts, interleaved, is pooling at stride 1;
cells of one shift then lie k apart, and the head over each shift is the same head dilated by k. So it is written here: no
loop, and on a picture of the window's size it is the plain network.

Deviations:
- No layer pads. Layers 3 to 5 (6) of the paper do, by which a window seen densely differs from the same window cut out;
  here the two are equal everywhere. The fully connected layers then take 3 x 3 cells of the fast network's window of 231
  pixels (in the paper 6 x 6), and the accurate one's window has 245 pixels (in the paper 221).
- One training, of everything, with the windows of all scales at once, as the paper does for detection (section 5); for
  localization it trains the classifier on crops, then the regressor on fixed features.
- There is a background class for localization too, which the paper has for detection only. A window is of an object's
  class if it holds half of the object, the paper's limit for regression. Windows of either kind, and scales, count the
  same in the losses, in place of drawing negatives.
- Merging differs as `box_merging.py` says.
- The class-specific regressor is not the default: in the paper (figure 10) one for all classes does better.
- Rectified units start from He et al.'s initialisation instead of weights of 0.01.

Letters: B images, H, W pixels of the frame, L windows of one scale, C categories, A boxes a window (1, or C), N objects,
K candidates, D answers, k side of the last pooling, F cells that the head takes a side.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import load_weights
from ..backbone.building import finish
from ..backbone.chain import Chain, Stage
from ..backbone.weights import BACKBONE_OF
from ..datasets.structures import Instances
from .assignment import Matches, gather
from .box_merging import merge
from .boxes import area, clip, full_precision, intersection
from .model import Detector


class Windows(NamedTuple):
    """What the network says of every window of one scale, row by row.

    Attributes:
        logits: (B, L, C + 1), the last column for background.
        deltas: (B, L, A, 4), from the window's edges to the object's, in window sides.
        boxes: (L, 4), the windows, xyxy in the frame's pixels.
        valid: (B, L) bool; the others lie in the padding.
    """

    logits: Tensor
    deltas: Tensor
    boxes: Tensor
    valid: Tensor


class Outputs(NamedTuple):
    """What `forward` knows of a batch: its windows, scale by scale."""

    scales: list[Windows]


class OverFeat(Detector):
    """One network over every window of a picture at several sizes: class scores and boxes, merged into few answers.

    Args:
        backbone: convolutions and poolings without padding, and at most batch norms, to one map.
        classifier: from that map pooled at stride 1 to C + 1 maps of logits; its first layer is dilated by `pool`.
        regressor: likewise to 4 A maps of deltas.
        pool: k, the side of the last pooling.
        cells: F.
        num_classes: C.
        scales: by what pictures are resized, in turn.
        detections: D.
        candidates: K, (window, class) pairs an image that enter the merging, best first.
    """

    task = "localization"
    foreground_cover, background_cover = 0.5, 0.25  # share of an object that a window must hold, or may, to be that
    unit = 0.1  # of the window's side: losses of boxes are then about as large as those of classes
    top_classes = 5  # looked at in each scale
    merge_limit = 0.6  # no worse a match is merged
    score_threshold = 0.01  # of a candidate

    def __init__(
        self,
        backbone: Chain,
        classifier: nn.Module,
        regressor: nn.Module,
        *,
        pool: int,
        cells: int,
        num_classes: int,
        scales: Sequence[float] = (1.0, 1.25, 1.5),
        detections: int = 10,
        candidates: int = 64,
    ) -> None:
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=num_classes)
        if not scales or not all(math.isfinite(scale) and scale > 0 for scale in scales):
            raise ValueError(f"scales must be one or more positive factors, e.g. (1.0, 1.25, 1.5), got {tuple(scales)}")
        self.backbone, self.pool = backbone, nn.MaxPool2d(pool, stride=1)
        self.classifier, self.regressor = classifier, regressor
        self.scales, self.detections, self.candidates = tuple(scales), detections, candidates
        _check_unpadded(backbone)
        self.stride = backbone.strides[-1]
        self.window = backbone.min_size + (pool * cells - 1) * self.stride
        self.resize = (self.window, 2 * self.window)

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """Class scores and boxes of all windows at all scales.

        Args:
            images: (B, 3, H, W) RGB, uint8 or float in 0..255, padded right and below.
            sizes: (B, 2), the valid (height, width) of each.
        """
        normalized = self.normalize(images, sizes)
        return Outputs([self._at_scale(normalized, sizes, scale) for scale in self.scales])

    def dense(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Maps of logits (B, C + 1, h, w) and deltas (B, 4 A, h, w) of normalised images (B, 3, H, W).

        Cell (i, j) is the network's answer to the `window` pixels a side from (i * stride, j * stride) on; there are
        h = (H - window) // stride + 1 rows. Equal, in evaluation, to running the network on each of them.
        """
        features = self.pool(self.backbone(images)[-1])
        return self.classifier(features), self.regressor(features)

    def _at_scale(self, images: Tensor, sizes: Tensor, scale: float) -> Windows:
        """The windows of the resized images, which zeros fill up so that no row or column of pixels is left out."""
        resized = images if scale == 1 else F.interpolate(images, scale_factor=scale, mode="bilinear")
        missing = [-(side - self.window) % self.stride if side > self.window else self.window - side
                   for side in resized.shape[-2:]]  # fmt: skip
        logits, deltas = self.dense(F.pad(resized, (0, missing[1], 0, missing[0])))
        corners = [torch.arange(cells, device=images.device) * self.stride for cells in logits.shape[-2:]]
        # A window counts if it begins within the picture, less what the one before it reaches to.
        ends = (sizes * scale - self.window).clamp(min=0) + self.stride
        rows, columns = (along < ends[:, axis, None] for axis, along in enumerate(corners))
        y, x = (place.flatten() for place in torch.meshgrid(*corners, indexing="ij"))
        boxes = torch.stack([x, y, x + self.window, y + self.window], dim=-1) / scale
        return Windows(
            full_precision(logits).flatten(2).mT,
            full_precision(deltas).flatten(2).mT.unflatten(-1, (-1, 4)),
            boxes,
            (rows[:, :, None] & columns[:, None]).flatten(1),
        )

    def losses(self, outputs: Outputs, targets: Instances) -> dict[str, Tensor]:
        """`loss_cls` (cross-entropy) of windows with objects and without, and `loss_box` (L2) of those with, all to be summed."""
        each = [self._losses_at_scale(windows, targets) for windows in outputs.scales]
        return {name: torch.stack([losses[name] for losses in each]).mean() for name in each[0]}

    def _losses_at_scale(self, windows: Windows, targets: Instances) -> dict[str, Tensor]:
        matches = self._match(windows, targets)
        foreground, num_classes = matches.foreground, windows.logits.shape[-1] - 1
        labels = torch.where(foreground, gather(targets.labels, matches.idxs), num_classes)
        loss_cls = -windows.logits.log_softmax(dim=-1).gather(2, labels[..., None])[..., 0]
        kinds = foreground.any(dim=1).float() + matches.background.any(dim=1)
        means = _mean(loss_cls, foreground) + _mean(loss_cls, matches.background)
        # Of other windows the object may be padding, perhaps NaN, which even no weight would keep from the gradients.
        wanted = torch.where(foreground[..., None], gather(targets.boxes, matches.idxs), windows.boxes)
        error = (_deltas_of(windows, labels) - encode(wanted, windows.boxes)) / self.unit
        loss_box = _mean(0.5 * error.square().mean(dim=-1), foreground)
        return {"loss_cls": (means / kinds.clamp(min=1)).mean(), "loss_box": loss_box.mean()}

    def _match(self, windows: Windows, targets: Instances) -> Matches:
        """Each window's object: of those it holds half of, the one that it holds most pixels of."""
        crowd = torch.zeros_like(targets.labels, dtype=torch.bool) if targets.crowd is None else targets.crowd
        present = (targets.labels >= 0) & ~crowd
        objects, crowds = (
            torch.where(kind[..., None], targets.boxes, 0) for kind in (present, crowd & (targets.labels >= 0))
        )
        common = intersection(windows.boxes, objects)  # (B, L, N)
        cover = common / area(objects)[:, None].clamp(min=1e-6)
        held = cover >= self.foreground_cover
        most, idxs = torch.where(held, common, 0).max(dim=2)
        foreground = (most > 0) & windows.valid
        crowded = intersection(windows.boxes, crowds).amax(dim=2) >= 0.5 * area(windows.boxes)
        background = (cover.amax(dim=2) < self.background_cover) & ~crowded & windows.valid
        return Matches(idxs, foreground, background)

    def decode(self, outputs: Outputs, sizes: Tensor) -> Instances:
        """The merged boxes (B, D), clipped to their pictures, best first; label -1 marks padding.

        A box's confidence s is the sum of those of the windows it came from; its score is s / (1 + s), so that one sure
        window gives 0.5.
        """
        boxes, labels, scores = merge(*self._candidates(outputs), limit=self.merge_limit)
        boxes = clip(boxes, sizes)
        found = (labels >= 0) & (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        scores, order = torch.where(found, scores / (1 + scores), 0).topk(min(self.detections, scores.shape[1]), dim=1)
        found = scores > 0
        boxes, labels = gather(boxes, order), gather(labels, order)
        return Instances(torch.where(found[..., None], boxes, 0), torch.where(found, labels, -1), scores)

    def _candidates(self, outputs: Outputs) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, K, 4), labels (B, K; -1 for none) and confidences (B, K) of the best windows of all scales."""
        scores = torch.cat([self._scores(windows) for windows in outputs.scales], dim=1)
        boxes = torch.cat([decode(windows.deltas, windows.boxes[:, None]) for windows in outputs.scales], dim=1)
        # Infinite coordinates would make every mean they enter infinite.
        scores = torch.where(boxes.isfinite().all(dim=-1), scores, 0)
        number, num_classes = min(self.candidates, scores[0].numel()), scores.shape[-1]
        scores, place = scores.flatten(1).topk(number, dim=1)
        labels, variants = place % num_classes, boxes.shape[2]
        column = place // num_classes * variants + labels.clamp(max=variants - 1)
        boxes = gather(boxes.flatten(1, 2), column)
        found = scores > 0
        return torch.where(found[..., None], boxes, 0), torch.where(found, labels, -1), scores

    def _scores(self, windows: Windows) -> Tensor:
        """(B, L, C): probabilities of the scale's likeliest classes in valid windows, 0 elsewhere (section 4.3, a and b)."""
        scores = windows.logits.softmax(dim=-1)[..., :-1]
        scores = torch.where((scores > self.score_threshold) & windows.valid[..., None], scores, 0)
        peaks = scores.amax(dim=1, keepdim=True)
        least = peaks.topk(min(self.top_classes, peaks.shape[-1]), dim=-1).values[..., -1:]
        return torch.where(peaks >= least, scores, 0)


def _check_unpadded(backbone: Chain) -> None:
    for layer in backbone.features:
        if getattr(layer, "padding", 0) not in (0, (0, 0)):
            raise ValueError(f"OverFeat needs layers without padding, or a window's answer is not its own; got {layer}")


def _mean(values: Tensor, counted: Tensor) -> Tensor:
    """(B,): of values (B, L) the mean of those counted (B, L); 0 where none is."""
    return torch.where(counted, values, 0).sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def _deltas_of(windows: Windows, labels: Tensor) -> Tensor:
    """(B, L, 4): each window's deltas for a class (B, L); of one for all classes there is no choice."""
    column = labels.clamp(max=windows.deltas.shape[2] - 1)[..., None, None]
    return windows.deltas.gather(2, column.expand(-1, -1, 1, 4))[:, :, 0]


def encode(boxes: Tensor, windows: Tensor) -> Tensor:
    """From windows' edges to boxes' edges (section 4.2), in window sides: (..., 4) for boxes and square windows (..., 4)."""
    return (boxes - windows) / (windows[..., 2:] - windows[..., :2]).repeat_interleave(2, dim=-1)


def decode(deltas: Tensor, windows: Tensor) -> Tensor:
    """The inverse of `encode`: `decode(encode(b, w), w) == b` up to rounding. Of crossed edges the box has no area."""
    return windows + deltas * (windows[..., 2:] - windows[..., :2]).repeat_interleave(2, dim=-1)


# -- Builders --


class Layer(NamedTuple):
    """A convolution, its ReLU, and the max pooling after it (1 for none), whose stride is its side."""

    channels: int
    kernel: int
    stride: int = 1
    pool: int = 1


class Plan(NamedTuple):
    """A network's numbers.

    Attributes:
        layers: of the features.
        pool, cells: k and F.
        classifier, regressor: widths of the layers below the last.
        norm: batch norm in the features, in place of the classifier's dropout. None in the heads: of the smallest scale a
            batch has few windows, whose statistics are not the other scales'.
    """

    layers: tuple[Layer, ...]
    pool: int
    cells: int
    classifier: tuple[int, int]
    regressor: tuple[int, int]
    norm: bool = False


NETWORKS = {
    # Table 1: window 231, stride 16.
    "fast": Plan(
        (Layer(96, 11, stride=4, pool=2), Layer(256, 5, pool=2), Layer(512, 3), Layer(1024, 3), Layer(1024, 3)),
        pool=2, cells=3, classifier=(3072, 4096), regressor=(4096, 1024),
    ),
    # Table 3: window 245, stride 12.
    "accurate": Plan(
        (Layer(96, 7, stride=2, pool=3), Layer(256, 7, pool=2), Layer(512, 3), Layer(512, 3), Layer(1024, 3), Layer(1024, 3)),
        pool=3, cells=3, classifier=(4096, 4096), regressor=(4096, 1024),
    ),
    # For pictures of about 128 pixels: window 80, stride 8.
    "small": Plan(
        (Layer(24, 6, stride=2, pool=2), Layer(48, 4, pool=2), Layer(96, 3), Layer(96, 3)),
        pool=2, cells=2, classifier=(192, 128), regressor=(128, 64), norm=True,
    ),
}  # fmt: skip


def overfeat(
    num_classes: int = 1000,
    *,
    network: str = "fast",
    weights: str | None = None,
    backbone_weights: str | None = None,
    scales: Sequence[float] = (1.0, 1.25, 1.5),
    class_specific: bool = False,
    detections: int = 10,
    candidates: int = 64,
) -> OverFeat:
    """OverFeat with one of the paper's networks, or a small one for pictures of about 128 pixels.

    Args:
        num_classes: C.
        network: "fast", "accurate" or "small"; see `NETWORKS`.
        weights: of the whole model: None, a path or a URL. With another number of classes than the weights', the last
            layers start at random.
        backbone_weights: of the features alone, from a file of this model or of its features: None, a path or a URL.
        scales: by what pictures are resized before windows are cut; a picture smaller than the window is filled up.
        class_specific: regress a box for every category, or one for all.
        detections: D.
        candidates: K, which merging takes K - 1 rounds for.

    Raises:
        ValueError: no such network, or scales that are no positive factors.
    """
    architecture = {"name": "overfeat", "arguments": dict(locals())}
    if network not in NETWORKS:
        raise ValueError(f"network must be one of {', '.join(NETWORKS)}, got {network!r}")
    plan = NETWORKS[network]
    body = _features(plan)
    if backbone_weights is not None:
        load_weights(body, backbone_weights, within=BACKBONE_OF)
    model = OverFeat(
        body,
        _head(plan, plan.classifier, num_classes + 1, dropout=not plan.norm),
        _head(plan, plan.regressor, 4 * num_classes if class_specific else 4, dropout=False),
        pool=plan.pool,
        cells=plan.cells,
        num_classes=num_classes,
        scales=scales,
        detections=detections,
        candidates=candidates,
    )
    return finish(model, architecture, weights, allow_missing=("classifier.last.", "regressor.last."))


def _features(plan: Plan) -> Chain:
    """The convolutional layers, a stage each."""
    stages, channels, stride = [], 3, 1
    for number, layer in enumerate(plan.layers, 1):
        modules = _block(channels, layer.channels, layer.kernel, stride=layer.stride, norm=plan.norm)
        modules += [nn.MaxPool2d(layer.pool)] if layer.pool > 1 else []
        channels, stride = layer.channels, stride * layer.stride * layer.pool
        stages.append(Stage(f"conv{number}", modules, channels, stride))
    return Chain(stages, (stages[-1].name,))


def _head(plan: Plan, widths: tuple[int, int], channels: int, *, dropout: bool) -> nn.Sequential:
    """Fully connected layers as convolutions, the first over every k-th of F x F cells, the last named `last`."""
    first = _block(plan.layers[-1].channels, widths[0], plan.cells, dilation=plan.pool)
    second = _block(*widths, 1)
    last = nn.Conv2d(widths[1], channels, 1)
    nn.init.normal_(last.weight, std=0.01)
    nn.init.zeros_(last.bias)
    after = [nn.Dropout(0.5)] if dropout else []
    layers = {"fc1": nn.Sequential(*first, *after), "fc2": nn.Sequential(*second, *after), "last": last}
    return nn.Sequential(OrderedDict(layers))


def _block(
    inputs: int, outputs: int, kernel: int, *, norm: bool = False, stride: int = 1, dilation: int = 1
) -> list[nn.Module]:
    """A convolution, its norm if any, and its ReLU, from He et al.'s start."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, dilation=dilation, bias=not norm)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return [conv, *([nn.BatchNorm2d(outputs)] if norm else []), nn.ReLU(inplace=True)]
