"""Boxes of one picture described one by one, by the decoder that describes whole pictures (as dense captioning does,
Johnson et al. 2016, https://arxiv.org/abs/1511.07571, with boxes from any detector).

- "crop": each box is cut from the picture and goes through the whole model as a picture of its own. Small things are seen
  enlarged, and nothing around them is; a pass of the backbone for each.
- "roi": the backbone sees the picture once, and each box is sampled from its map (RoIAlign, He et al. 2017,
  https://arxiv.org/abs/1703.06870, section 3). One pass for all boxes; what surrounds them counts as far as cells see.

A box around the whole picture is described as the picture is: exactly so as a crop, and as a region where the picture fills
its frame.

Letters: N boxes, D channels, h, w cells of a picture's map and of each region's.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torchvision
from torch import Tensor

from .decoder import Annotations
from .inference import Said, annotate, caption_each, prepare, shapes, write
from .model import Captioner

Way = Literal["crop", "roi"]
CHUNK = 16  # boxes at a time: memory stays the same however many there are


def describe(model: Captioner, image: Tensor, boxes: Tensor, way: Way = "crop") -> list[Said]:
    """What the model says of each box of a picture.

    Args:
        model: on any device; its `search` says how sentences are found, and how many.
        image: (3, H, W) uint8 RGB.
        boxes: (N, 4), xyxy in its pixels. They are clipped to the picture, of which each sees at least a pixel.
        way: how a box is seen, see above.

    Returns:
        N answers; their `extent` is in pixels from the top left corner of the box (as a crop, of the whole pixels that it
        touches).

    Raises:
        ValueError: boxes of another shape or not finite, or no such way.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 4 or not boxes.isfinite().all():
        raise ValueError(
            f"boxes must be (N, 4), xyxy in pixels and finite, got {tuple(boxes.shape)}: {boxes.tolist()[:3]}"
        )
    if way not in WAYS:
        raise ValueError(f"boxes are described by {' or '.join(WAYS)}, got {way!r}")
    if not len(boxes):
        return []
    return WAYS[way](model, image, _clipped(boxes.float().cpu(), *image.shape[1:]))


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    """Boxes within a picture, each at least a pixel wide and high."""
    x0, y0, x1, y1 = boxes.unbind(1)
    x0, y0 = x0.clamp(0, width - 1), y0.clamp(0, height - 1)
    x1, y1 = x1.clamp(max=width).maximum(x0 + 1), y1.clamp(max=height).maximum(y0 + 1)
    return torch.stack([x0, y0, x1, y1], dim=1)


def _as_crops(model: Captioner, image: Tensor, boxes: Tensor) -> list[Said]:
    corners = torch.cat([boxes[:, :2].floor(), boxes[:, 2:].ceil()], dim=1).int().tolist()
    crops = [image[:, y0:y1, x0:x1] for x0, y0, x1, y1 in corners]
    chunks = [crops[start : start + CHUNK] for start in range(0, len(crops), CHUNK)]
    return [said for chunk in chunks for said in caption_each(model, chunk)]


def _as_regions(model: Captioner, image: Tensor, boxes: Tensor) -> list[Said]:
    batch = prepare(model, [image])
    whole = annotate(model, batch.images, batch.sizes)
    (grid,) = shapes(whole)
    scale = batch.infos[0].scale
    said = []
    for chunk in boxes.split(CHUNK):
        regions = _pooled(whole, chunk * torch.tensor([scale[1], scale[0]] * 2), grid, _stride(model))
        sizes = torch.tensor([grid], device=regions.maps.device).mul(_stride(model)).expand(len(chunk), 2)
        extents = (chunk[:, 2:] - chunk[:, :2]).flip(1).tolist()
        said += write(model, regions, sizes, [tuple(extent) for extent in extents])
    return said


def _pooled(whole: Annotations, boxes: Tensor, grid: tuple[int, int], stride: int) -> Annotations:
    """Regions of one picture's map, each of as many cells as the picture itself.

    A cell of a region is no larger than one of the map: a single bilinear sample of it misses nothing, and the region of
    the whole picture is its map.
    """
    height, width = grid
    maps = whole.maps[..., :height, :width]  # not what is padding in the frame
    rois = [boxes.to(maps)]
    maps = torchvision.ops.roi_align(maps, rois, grid, spatial_scale=1 / stride, sampling_ratio=1, aligned=True)
    return Annotations(maps, torch.ones(len(maps), *grid, dtype=torch.bool, device=maps.device))


def _stride(model: Captioner) -> int:
    return model.backbone.strides[model.layer]


WAYS: dict[str, Callable[[Captioner, Tensor, Tensor], list[Said]]] = {"crop": _as_crops, "roi": _as_regions}
