"""The multiscale network of Farabet et al. 2013 ("Learning Hierarchical Features for Scene Labeling",
https://doi.org/10.1109/TPAMI.2012.231, section 3): one small network looks at every level of a Laplacian pyramid, its maps are
brought to the finest's size and stacked, and a classifier names each pixel.

Pictures are taken to YUV, each level's 15 x 15 neighbourhoods to mean 0 and deviation 1. The network sees 46 x 46 pixels of its
level, so of three levels 184 x 184 pixels of the picture. Answers with the borders of superpixels (section 4.1):
`smoothing.smoothed(farabet(...))`.

Deviations: all is trained together, on whole pictures, where the paper trains the classifier after the features and on drawn
patches (class weights stand in for its even choice of categories); convolutions see all maps where the paper's see chosen ones;
there are batch norms unless `norm` is None; scores of every fourth pixel are interpolated to pixels.

Letters: B pictures, C categories, L levels, H, W pixels of the frame, h, w those of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..backbone import norm_layer
from ..backbone.building import finish
from .losses import MapLoss
from .model import Outputs, Segmenter

KERNEL = 7
STRIDE = 4  # of the network's maps: two poolings
NEIGHBOURHOOD = 15
FLATTEST = 0.01  # the least deviation that is made 1, of pixels in 0..1: what is flatter shows noise alone
# Rows: Y, U, V of RGB (BT.601).
YUV = ((0.299, 0.587, 0.114), (-0.14713, -0.28886, 0.436), (0.615, -0.51499, -0.10001))


class MultiscaleNetwork(Segmenter):
    """See the file's head.

    Args:
        network: (B', 3, h, w) to (B', D, h / 4, w / 4), shared by all levels; h and w are multiples of 4.
        classifier: (B, L D, H / 4, W / 4) to (B, C, H / 4, W / 4).
        num_classes: C.
        levels: L, each half as large as the one before.
        loss: see `Segmenter`.
    """

    def __init__(
        self, network: nn.Module, classifier: nn.Module, num_classes: int, *, levels: int, loss: MapLoss | None = None
    ) -> None:
        super().__init__(mean=(0.0,) * 3, std=(1.0,) * 3, num_classes=num_classes, loss=loss)
        self.network, self.classifier, self.levels = network, classifier, levels
        self.register_buffer("yuv", torch.tensor(YUV), persistent=False)  # made here, as a copy from the CPU would wait

    def forward(self, images: Tensor, sizes: Tensor) -> Outputs:
        """See `Segmenter.forward`."""
        height, width = images.shape[-2:]
        multiple = STRIDE * 2 ** (self.levels - 1)
        padded = F.pad(self.normalize(images, sizes), (0, -width % multiple, 0, -height % multiple))
        with torch.autocast(images.device.type, enabled=False):  # local deviations are differences of squares
            yuv = torch.einsum("kc,bchw->bkhw", self.yuv, padded)
            bands = normalized_pyramid(yuv, sizes, self.levels)
        maps = [_enlarged(self.network(band), 2**level) for level, band in enumerate(bands)]
        scores = self.classifier(torch.cat(maps, 1))
        return Outputs(_enlarged(scores, STRIDE)[..., :height, :width])


def _enlarged(maps: Tensor, factor: int) -> Tensor:
    """Each cell becomes `factor` x `factor`, which it lies in the middle of."""
    return maps if factor == 1 else F.interpolate(maps, scale_factor=factor, mode="bilinear", align_corners=False)


def normalized_pyramid(maps: Tensor, sizes: Tensor, levels: int) -> list[Tensor]:
    """L maps (B, K, H / 2^l, W / 2^l) of pictures (B, K, H, W) in 0..1, their sides multiples of 2^(L - 1).

    A picture's levels are the same in every frame: what lies outside of the valid `sizes` (B, 2) has no part in any mean, and
    is 0 in the end.
    """
    insides = [_inside(sizes, level, maps.shape[-2:]).to(maps.dtype) for level in range(levels)]
    bands = laplacian_pyramid(maps, insides)
    return [_locally_normalized(band, inside) for band, inside in zip(bands, insides, strict=True)]


def _inside(sizes: Tensor, level: int, frame: Sequence[int]) -> Tensor:
    """(B, 1, h, w): where a level shows any of the picture."""
    shown = -(-sizes // 2**level)
    rows, columns = (
        torch.arange(side // 2**level, device=sizes.device) < shown[:, i, None] for i, side in enumerate(frame)
    )
    return (rows[:, :, None] & columns[:, None])[:, None]


def laplacian_pyramid(maps: Tensor, insides: Sequence[Tensor]) -> list[Tensor]:
    """Bands, finest first (Burt and Adelson 1983): each level less what the next one, enlarged, says of it; last, what is left.

    A level is half as large as the one before, which is smoothed with (1, 3, 3, 1) / 8 along both axes: the cells lie in the
    middle of four, as those of the network's poolings do.

    Args:
        maps: (B, K, H, W).
        insides: L masks (B, 1, H / 2^l, W / 2^l), 1 where the levels are valid, else 0.
    """
    bands = []
    for here, coarser in pairwise(insides):
        smaller = _resized(maps, here, 0.5)
        bands.append(maps - _resized(smaller, coarser, 2.0))
        maps = smaller
    return [*bands, maps]


def _resized(maps: Tensor, inside: Tensor, factor: float) -> Tensor:
    """Bilinear means of what is inside."""
    total, share = (
        F.interpolate(x, scale_factor=factor, mode="bilinear", antialias=factor < 1) for x in (maps * inside, inside)
    )
    return total / share.clamp(min=1e-6)


def _locally_normalized(maps: Tensor, inside: Tensor) -> Tensor:
    """Neighbourhoods of mean 0 and deviation 1, or less where there is nothing to see; 0 outside."""
    share = _neighbourhood(inside).clamp(min=1e-6)
    centred = (maps - _neighbourhood(maps * inside) / share) * inside
    deviation = (_neighbourhood(centred.square()) / share).sqrt()
    return centred / deviation.clamp(min=FLATTEST)


def _neighbourhood(maps: Tensor) -> Tensor:
    """Means over 15 x 15 pixels, of which those outside of the frame count as 0."""
    half = NEIGHBOURHOOD // 2
    maps = F.avg_pool2d(maps, (NEIGHBOURHOOD, 1), stride=1, padding=(half, 0))
    return F.avg_pool2d(maps, (1, NEIGHBOURHOOD), stride=1, padding=(0, half))


def _network(widths: Sequence[int], norm: str | None) -> nn.Sequential:
    """Three convolutions, the first two with tanh and 2 x 2 max pooling behind them (equations 4 to 6)."""
    first, second, last = widths
    return nn.Sequential(
        *_stage(3, first, KERNEL, norm),
        nn.MaxPool2d(2),
        *_stage(first, second, KERNEL, norm),
        nn.MaxPool2d(2),
        nn.Conv2d(second, last, KERNEL, padding=KERNEL // 2),
    )


def _stage(channels: int, width: int, kernel: int, norm: str | None) -> list[nn.Module]:
    norms = [] if norm is None else [norm_layer(norm)(width)]
    return [nn.Conv2d(channels, width, kernel, padding=kernel // 2), *norms, nn.Tanh()]


def _classifier(channels: int, hidden: int | None, num_classes: int, norm: str | None) -> nn.Sequential:
    stages = [] if hidden is None else _stage(channels, hidden, 1, norm)
    return nn.Sequential(*stages, nn.Conv2d(hidden or channels, num_classes, 1))


def farabet(
    num_classes: int = 21,
    *,
    levels: int = 3,
    widths: Sequence[int] = (16, 64, 256),
    hidden: int | None = 1024,
    norm: str | None = "batch",
    loss: str = "cross_entropy",
    weights: str | None = None,
) -> MultiscaleNetwork:
    """Farabet et al.'s network: 0.9 million parameters, and 0.8 in the hidden layer of the classifier.

    Args:
        num_classes: C.
        levels: L, at least 1.
        widths: channels of the network's three convolutions.
        hidden: width of the classifier's hidden layer; None for a linear one.
        norm: "batch", "sync", "group" or "frozen", behind convolutions before their tanh; None for none, as in the paper.
        loss: see `MapLoss`.
        weights: of the whole model: None, a path or a URL. With other categories the last layer starts at random.

    Raises:
        ValueError: an argument out of range.
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "farabet", "arguments": dict(locals())}
    if levels < 1 or len(widths) != 3:
        raise ValueError(f"need at least one level and three widths, got {levels} and {list(widths)}")
    classifier = _classifier(levels * widths[-1], hidden, num_classes, norm)
    model = MultiscaleNetwork(
        _network(widths, norm), classifier, num_classes, levels=levels, loss=MapLoss(num_classes, kind=loss)
    )
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.xavier_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return finish(model, architecture, weights, allow_missing=(f"classifier.{len(classifier) - 1}.",))
