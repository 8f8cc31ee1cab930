"""DeepLabV3+ (Chen et al. 2018, https://arxiv.org/abs/1802.02611): a dilated backbone, atrous spatial pyramid pooling for
context, and a light decoder that brings back the finer maps' outlines.

Deviations. The decoder takes one finer map after the other, those of strides 8 and 4 unasked, where the paper takes that of
stride 4 alone. Maps are interpolated to where the finer one's cells lie, see `alignment.py`. The mean over the picture leaves its
padding out and has a bias instead of a norm, which one picture in training would not allow.

Letters: B images, C categories, H, W pixels of the frame, h, w cells of a map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..backbone import Backbone, build_backbone, check_backbone, norm_layer
from ..backbone.building import finish
from ..backbone.norms import Norm
from .alignment import Grid, Upsample, layout
from .fcn import maps_of
from .fcn_resnet import FCNHead
from .losses import MapLoss
from .model import Outputs, Segmenter

LATERAL = 48  # channels that a finer map is brought to before it joins (section 4.1)
DROPOUT = 0.1
# The maps of networks that give only one unasked: the last ones of their stride.
MAPS = {
    "vgg": ("conv1", "conv2", "conv3", "conv4", "conv5"),
    "alexnet": ("conv1", "conv2", "conv5"),
    "zfnet": ("conv1", "pool1", "conv2", "conv5"),
    "yolo20": ("conv1", "conv2", "conv3", "conv4", "conv5"),
    "lenet": ("c1", "c3", "c5"),
}
# The first of these maps, of that stride, ResNet and MobileNet give only when asked.
ALL_STAGES, FIRST_STRIDE = (1, 2, 3, 4, 5), 2


class DeepLabV3Plus(Segmenter):
    """Context from the coarsest map, outlines from finer ones, coarse to fine, and scores.

    Args:
        backbone: pixels to feature maps.
        num_classes: C.
        skips: strides of the finer maps that join, coarse to fine.
        rates: dilations of the pyramid's 3x3 convolutions, in cells of the coarsest map.
        width: channels of context and decoder.
        norm: channels to a normalisation layer, of all but the backbone.
        auxiliary: a second head, for the loss alone, on the backbone's last map but one.
        auxiliary_weight, loss: see `Segmenter`.

    Raises:
        ValueError: the backbone has no map of one of the strides, or no last map but one for the auxiliary head.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        skips: Sequence[int] = (8, 4),
        rates: Sequence[int] = (6, 12, 18),
        width: int = 256,
        norm: Norm = nn.BatchNorm2d,
        auxiliary: bool = False,
        auxiliary_weight: float = 0.4,
        loss: MapLoss | None = None,
    ) -> None:
        check_backbone(backbone, user="DeepLabV3+")
        mean, std = backbone.mean, backbone.std
        super().__init__(mean=mean, std=std, num_classes=num_classes, loss=loss, auxiliary_weight=auxiliary_weight)
        self.backbone, self.layout = backbone, layout(backbone)
        self.levels = _levels(backbone, skips)
        channels, grids = backbone.channels, self.layout.grids
        self.context = ASPP(channels[-1], width, rates, grids[-1], norm=norm)
        chain = [grids[-1], *(grids[level] for level in self.levels)]
        self.decoder = nn.ModuleList(
            Join(width, channels[level], coarse, fine, norm=norm)
            for level, coarse, fine in zip(self.levels, chain[:-1], chain[1:], strict=True)
        )
        self.score = nn.Sequential(nn.Dropout(DROPOUT), nn.Conv2d(width, num_classes, 1))
        self.to_pixels = Upsample(num_classes, chain[-1])
        self.auxiliary = None
        if auxiliary:
            if len(channels) < 2:
                raise ValueError(
                    f"the auxiliary head needs a second map, the backbone gives strides {backbone.strides}"
                )
            self.auxiliary = FCNHead(channels[-2], num_classes, norm=norm)
            self.auxiliary_to_pixels = Upsample(num_classes, grids[-2])

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """See `Segmenter.forward`."""
        size = images.shape[-2:]
        maps = self.backbone(self.layout.pad(self.normalize(images, sizes)))
        x = self.context(maps[-1], sizes)
        for join, level in zip(self.decoder, self.levels, strict=True):
            x = join(x, maps[level])
        auxiliary = ()
        if self.auxiliary is not None:
            auxiliary = (self.auxiliary_to_pixels(self.auxiliary(maps[-2]), size),)
        return Outputs(self.to_pixels(self.score(x), size), auxiliary)


def _levels(backbone: Backbone, skips: Sequence[int]) -> list[int]:
    """Indices of the last map of each stride, which must be finer than the context's, and finer each than the one before."""
    strides = tuple(backbone.strides)
    found = {stride: level for level, stride in enumerate(strides) if stride < strides[-1]}
    if list(skips) != sorted(set(skips) & found.keys(), reverse=True):
        raise ValueError(
            f"skips must be some of the strides {sorted(found, reverse=True)}, in this order, got {tuple(skips)}"
        )
    return [found[stride] for stride in skips]


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling (https://arxiv.org/abs/1706.05587, section 3.3): one map seen at several widths at once.

    A 1x1 convolution, dilated separable 3x3 ones, and the mean over the picture, side by side and then mixed.
    """

    def __init__(self, channels: int, width: int, rates: Sequence[int], grid: Grid, *, norm: Norm) -> None:
        super().__init__()
        self.stride, self.start = grid.stride, float(grid.start)
        self.branches = nn.ModuleList(_separable(channels, width, dilation=rate, norm=norm) for rate in rates)
        self.branches.insert(0, _conv(channels, width, 1, norm=norm))
        self.picture = nn.Sequential(nn.Conv2d(channels, width, 1), nn.ReLU(inplace=True))
        self.mix = _conv((len(rates) + 2) * width, width, 1, norm=norm)

    def forward(self, x: Tensor, sizes: Tensor) -> Tensor:
        """(B, channels, h, w) and the valid (height, width) in pixels, (B, 2), to (B, width, h, w)."""
        seen = [branch(x) for branch in self.branches]
        mean = self.picture(self._mean(x, sizes))
        return self.mix(torch.cat([*seen, mean.expand_as(seen[0])], dim=1))

    def _mean(self, x: Tensor, sizes: Tensor) -> Tensor:
        """(B, channels, 1, 1): over the cells that lie in the picture; the first one always counts."""
        rows, columns = (
            (torch.arange(cells, device=x.device) * self.stride + self.start).clamp(min=0) < sizes[:, axis, None]
            for axis, cells in enumerate(x.shape[-2:])
        )
        inside = rows[:, None, :, None] & columns[:, None, None, :]
        inside[..., 0, 0] = True
        weights = inside / inside.sum((2, 3), keepdim=True)
        return (x * weights.to(x.dtype)).sum((2, 3), keepdim=True)


class Join(nn.Module):
    """A coarse map brought to where a finer one's cells lie, and both mixed.

    Args:
        width: channels of the coarse map, and of what comes out.
        channels: of the finer map.
        coarse, fine: where their cells lie.
        norm: channels to a normalisation layer.
    """

    def __init__(self, width: int, channels: int, coarse: Grid, fine: Grid, *, norm: Norm) -> None:
        super().__init__()
        self.upsample = Upsample(width, coarse, fine)
        self.lateral = _conv(channels, LATERAL, 1, norm=norm)
        self.mix = nn.Sequential(
            _separable(width + LATERAL, width, norm=norm),
            _separable(width, width, norm=norm),
        )

    def forward(self, coarse: Tensor, fine: Tensor) -> Tensor:
        """(B, width, h, w) and (B, channels, h', w') to (B, width, h', w')."""
        return self.mix(torch.cat([self.upsample(coarse, fine.shape[-2:]), self.lateral(fine)], dim=1))


def _separable(channels: int, width: int, *, norm: Norm, dilation: int = 1) -> nn.Sequential:
    """A 3x3 convolution of each channel by itself, then a 1x1 one of all (section 3.1)."""
    spatial = _conv(channels, channels, 3, norm=norm, dilation=dilation, groups=channels)
    return nn.Sequential(spatial, _conv(channels, width, 1, norm=norm))


def _conv(channels: int, width: int, kernel: int, *, norm: Norm, dilation: int = 1, groups: int = 1) -> nn.Sequential:
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(channels, width, kernel, padding=padding, dilation=dilation, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
    return nn.Sequential(conv, norm(width), nn.ReLU(inplace=True))


def deeplabv3_plus(
    backbone: str = "mobilenet_v2",
    num_classes: int = 21,
    *,
    norm: str = "batch",
    output_stride: int | None = 16,
    skips: Sequence[int] = (8, 4),
    rates: Sequence[int] = (6, 12, 18),
    width: int = 256,
    auxiliary: bool = False,
    auxiliary_weight: float = 0.4,
    loss: str = "cross_entropy",
    trainable_stages: int | None = None,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> DeepLabV3Plus:
    """DeepLabV3+ on any backbone.

    Args:
        backbone: a name as for `build_backbone`.
        num_classes: C, background included where there is one.
        norm: "batch", "sync", "group" or "frozen", of the backbone; the rest has batch norms where these are frozen.
        output_stride: of the coarsest map, whose stages are dilated instead; None as the backbone is, for those without that
            choice.
        skips: strides of the finer maps that the decoder joins, coarse to fine: (4,) in the paper; ResNet and MobileNet have
            one of stride 2, too.
        rates: of the pyramid pooling, in cells of the coarsest map; smaller ones suit small pictures.
        width: channels of context and decoder.
        auxiliary, auxiliary_weight: a second head, for the loss alone, and the weight of its loss.
        loss: a kind of `MapLoss`.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all.
        backbone_weights: of the backbone alone: None, a path, an address or "imagenet".
        weights: of the whole model: None, a path or an address. With another number of classes than the weights', the last
            layers start at random.

    Raises:
        ValueError: no such backbone, or one without such maps or choice of stride.
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "deeplabv3_plus", "arguments": dict(locals())}
    body = build_backbone(
        backbone,
        norm=norm,
        weights=backbone_weights,
        trainable_stages=trainable_stages,
        out_stages=maps_of(backbone, MAPS) or (ALL_STAGES if FIRST_STRIDE in skips else None),
        output_stride=output_stride,
    )
    model = DeepLabV3Plus(
        body,
        num_classes,
        skips=skips,
        rates=rates,
        width=width,
        norm=norm_layer("batch" if norm.startswith("frozen") else norm),
        auxiliary=auxiliary,
        auxiliary_weight=auxiliary_weight,
        loss=MapLoss(num_classes, kind=loss),
    )
    return finish(model, architecture, weights, allow_missing=("score.1.", "auxiliary.4."))
