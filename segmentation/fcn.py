"""Fully convolutional networks, FCN-32s, 16s and 8s (Long, Shelhamer and Darrell 2015, https://arxiv.org/abs/1411.4038; in full:
Shelhamer, Long and Darrell 2016, https://arxiv.org/abs/1605.06211), on VGG-16 as in the papers, or on any backbone.

A classifier's fully connected layers become convolutions, its last one a score for each category, which are interpolated to
pixels: FCN-32s. FCN-16s doubles the scores first and adds those of the next finer map, FCN-8s does so once more. 32, 16 and 8
are VGG's strides; of other networks they are the coarsest map and one or two finer ones.

Training in stages (section 4.2): `fcn16s(weights="fcn32s.ckpt")` has FCN-32s' layers under their names, and new scores that
start at zero. All at once: from `backbone_weights`, on networks without norms with the paper's `skip_scales`.

Deviations. Pictures are not padded by 100 pixels and cropped: see `alignment.py`, by which any size comes out as it went in
and every cell's score on its pixels. fc6 pads by half its kernel. Networks whose classifier has no fc6 and fc7 get one 3x3
convolution instead, with the norm that such networks have.

Letters: B images, C categories, H, W pixels of the frame, h, w cells of a map.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise

from torch import Tensor, nn

from ..backbone import Backbone, build_backbone, check_backbone
from ..backbone.building import finish
from .alignment import Grid, Upsample, layout
from .fcn_head import SmallHead, WideHead, head_of
from .losses import MapLoss
from .model import Outputs, Segmenter

# The maps of networks that give only one, or others, unasked: the paper's, or the last ones of their stride.
MAPS = {
    "vgg": ("pool3", "pool4", "pool5"),
    "alexnet": ("pool1", "pool2", "pool5"),
    "zfnet": ("conv2", "pool2", "pool5"),
    "yolo20": ("conv3", "conv4", "conv5"),
}
LEARNED = ("none", "between", "all")
COARSEST = 32  # a pyramid's maps above it say nothing that a pixel needs


class FCN(Segmenter):
    """Scores of the coarsest map, and of as many finer ones as there are scales, summed on the way to pixels.

    Args:
        backbone: pixels to feature maps.
        head: from the coarsest map, which it leaves as large as it is, to what is scored.
        num_classes: C.
        skip_scales: of each finer map used, the coarsest of them first: what it is multiplied with before it is scored.
        learned_upsampling: see `fcn8s`.
        auxiliary: score each finer map alone, too, for the loss (deep supervision, https://arxiv.org/abs/1409.5185).
        loss: see `Segmenter`.

    Raises:
        ValueError: the backbone has too few maps, or `learned_upsampling` is unknown.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: WideHead | SmallHead,
        num_classes: int,
        *,
        skip_scales: Sequence[float] = (),
        learned_upsampling: str = "between",
        auxiliary: bool = False,
        loss: MapLoss | None = None,
    ) -> None:
        check_backbone(backbone, user="FCN")
        if learned_upsampling not in LEARNED:
            raise ValueError(f"learned_upsampling must be one of {', '.join(LEARNED)}, got {learned_upsampling!r}")
        super().__init__(mean=backbone.mean, std=backbone.std, num_classes=num_classes, loss=loss)
        self.backbone, self.head, self.skip_scales = backbone, head, tuple(skip_scales)
        self.layout = layout(backbone)
        self.levels = _levels(backbone, 1 + len(skip_scales))
        first, *finer = (self.layout.grids[level] for level in self.levels)
        grids = [first.shifted(head.shift), *finer]
        channels = [backbone.channels[level] for level in self.levels[1:]]

        self.score = _zeros(head.width, num_classes)
        self.skips = nn.ModuleList(_zeros(width, num_classes) for width in channels)
        upsample = partial(Upsample, num_classes, learned=learned_upsampling != "none")
        self.between = nn.ModuleList(upsample(*pair) for pair in pairwise(grids))
        self.to_pixels = Upsample(num_classes, grids[-1], learned=learned_upsampling == "all")
        watched = zip(channels, finer, strict=True) if auxiliary else ()
        self.auxiliary = nn.ModuleList(Auxiliary(width, num_classes, grid) for width, grid in watched)

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """See `Segmenter.forward`."""
        size = images.shape[-2:]
        maps = self.backbone(self.layout.pad(self.normalize(images, sizes)))
        coarsest, *finer = (maps[level] for level in self.levels)
        scores = self.score(self.head(coarsest))
        for skip, upsample, scale, x in zip(self.skips, self.between, self.skip_scales, finer, strict=True):
            scores = upsample(scores, x.shape[-2:]) + skip(scale * x)
        watched = zip(self.auxiliary, finer, strict=True) if self.auxiliary else ()
        return Outputs(self.to_pixels(scores, size), tuple(auxiliary(x, size) for auxiliary, x in watched))


def _levels(backbone: Backbone, count: int) -> list[int]:
    """Indices of the last `count` maps of different strides, coarsest first."""
    strides = tuple(backbone.strides)
    used = {stride: level for level, stride in enumerate(strides) if stride <= max(COARSEST, strides[0])}
    if len(used) < count:
        raise ValueError(
            f"FCN with {count - 1} skip(s) needs {count} maps of different strides up to {COARSEST}, the backbone gives strides "
            f"{strides}; take fcn32s, which needs one, or a backbone with more maps, e.g. 'vgg16' or 'mobilenet_v2'"
        )
    return list(used.values())[: -count - 1 : -1]


def _zeros(channels: int, num_classes: int) -> nn.Conv2d:
    """A score layer as the paper starts it (section 4.3: zero is no worse than random)."""
    conv = nn.Conv2d(channels, num_classes, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)
    return conv


class Auxiliary(nn.Module):
    """Scores of one map alone: (B, channels, h, w) to (B, C, *size)."""

    def __init__(self, channels: int, num_classes: int, grid: Grid) -> None:
        super().__init__()
        self.score = nn.Conv2d(channels, num_classes, 1)
        self.to_pixels = Upsample(num_classes, grid)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        return self.to_pixels(self.score(x), size)


def fcn32s(
    backbone: str = "vgg16",
    num_classes: int = 21,
    *,
    norm: str = "batch",
    head_width: int | None = None,
    learned_upsampling: str = "between",
    loss: str = "cross_entropy",
    trainable_stages: int | None = None,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> FCN:
    """FCN-32s: the coarsest map alone. Arguments as for `fcn8s`; "between" learns no upsampling here, there is only the last."""
    architecture = {"name": "fcn32s", "arguments": dict(locals())}
    return _built(architecture, skip_scales=())


def fcn16s(
    backbone: str = "vgg16",
    num_classes: int = 21,
    *,
    norm: str = "batch",
    head_width: int | None = None,
    skip_scales: Sequence[float] = (1.0,),
    learned_upsampling: str = "between",
    auxiliary: bool = False,
    loss: str = "cross_entropy",
    trainable_stages: int | None = None,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> FCN:
    """FCN-16s: one skip, from VGG's pool4. `weights` may be FCN-32s'. Arguments as for `fcn8s`."""
    architecture = {"name": "fcn16s", "arguments": dict(locals())}
    return _built(architecture, skip_scales=_checked(skip_scales, 1))


def fcn8s(
    backbone: str = "vgg16",
    num_classes: int = 21,
    *,
    norm: str = "batch",
    head_width: int | None = None,
    skip_scales: Sequence[float] = (1.0, 1.0),
    learned_upsampling: str = "between",
    auxiliary: bool = False,
    loss: str = "cross_entropy",
    trainable_stages: int | None = None,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> FCN:
    """FCN-8s: two skips, from VGG's pool4 and pool3.

    Args:
        backbone: a name as for `build_backbone`.
        num_classes: C, background included where there is one.
        norm: "batch", "sync", "group" or "frozen", of the backbone. VGG-16 has none.
        head_width: channels of fc6 and fc7 where the backbone's classifier has such layers, else of the one convolution in
            their place; None for the classifier's 4096, or else 512.
        skip_scales: what pool4 and pool3 are multiplied with. (0.01, 0.0001) lets a VGG without norms, whose maps differ that
            much in size, be trained all at once (2016, section 4.3); 1 is for stages, and for networks with norms.
        learned_upsampling: which of the transposed convolutions are trained from their bilinear start: those "between" two maps
            (the paper: the last one, to pixels, stays bilinear), "all" or "none".
        auxiliary: deep supervision, see `FCN`.
        loss: a kind of `MapLoss`.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        backbone_weights: of the backbone alone, fc6 and fc7 included: None, a path, an address or "imagenet".
        weights: of the whole model, or of one with fewer skips: None, a path or an address. With another number of classes
            than the weights', all scores start at zero.

    Raises:
        ValueError: no such backbone, or one of too few maps; as many skip scales as there are skips are needed.
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "fcn8s", "arguments": dict(locals())}
    return _built(architecture, skip_scales=_checked(skip_scales, 2))


def _checked(skip_scales: Sequence[float], count: int) -> tuple[float, ...]:
    if len(skip_scales) != count:
        raise ValueError(f"skip_scales must be {count} number(s), one for each skip, got {tuple(skip_scales)}")
    return tuple(float(scale) for scale in skip_scales)


def _built(architecture: dict, *, skip_scales: Sequence[float]) -> FCN:
    arguments = architecture["arguments"]
    name, norm, backbone_weights = (arguments[key] for key in ("backbone", "norm", "backbone_weights"))
    body = build_backbone(
        name,
        norm=norm,
        weights=backbone_weights,
        trainable_stages=arguments["trainable_stages"],
        out_stages=maps_of(name, MAPS),
    )
    channels = body.channels[_levels(body, 1)[0]]
    num_classes = arguments["num_classes"]
    model = FCN(
        body,
        head_of(name, channels, arguments["head_width"], norm, backbone_weights),
        num_classes,
        skip_scales=skip_scales,
        learned_upsampling=arguments["learned_upsampling"],
        auxiliary=arguments.get("auxiliary", False),
        loss=MapLoss(num_classes, kind=arguments["loss"]),
    )
    # Scores of other categories, and what FCNs with fewer skips lack or learn at another stride.
    return finish(
        model,
        architecture,
        arguments["weights"],
        allow_missing=("score.", "skips.", "between.", "to_pixels.", "auxiliary."),
    )


def maps_of(backbone: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...] | None:
    """The maps that a table of families wants of a network; None for those that it gives unasked."""
    return next((maps for family, maps in table.items() if backbone.startswith(family)), None)
