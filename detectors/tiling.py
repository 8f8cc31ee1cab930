"""Small objects in large pictures: a detector looks at overlapping tiles and at the whole, and its answers become one.

    find_tiled(load("best.ckpt"), image, tile=640)

Each tile is resized as any picture is, so that objects of few pixels come to the size that the model was trained on; the
whole picture is looked at too, for objects larger than a tile. `tile_merging.py` says what becomes of objects that a border
cuts.

Letters: T tiles.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..datasets.structures import Instances
from .inference import find, find_each
from .model import Detector
from .tile_merging import merge_tiles

TASKS = ("detection", "instance_segmentation")  # of models that answer with many objects, wherever they are


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut.

    Attributes:
        tile: side of the square tiles, in pixels of the picture.
        overlap: the least share of its side that a tile has in common with the next; objects up to that size are seen
            whole.

    Raises:
        ValueError: less than 32 pixels, or an overlap that is not from 0 to 0.9.
    """

    tile: int
    overlap: float = 0.2

    def __post_init__(self) -> None:
        if self.tile < 32:
            raise ValueError(f"tiles must be at least 32 pixels a side, got {self.tile}")
        if not 0 <= self.overlap <= 0.9:
            raise ValueError(f"the overlap of tiles must be from 0 to 0.9 of their side, got {self.overlap}")

    def tiles(self, height: int, width: int) -> Tensor:
        """(T, 4) int64, xyxy: all of one size, that of the picture where it is smaller, and evenly spread over it."""
        down, right = min(self.tile, height), min(self.tile, width)
        corners = [(x, y) for y in self._starts(height) for x in self._starts(width)]
        return torch.tensor([[x, y, x + right, y + down] for x, y in corners])

    def _starts(self, length: int) -> list[int]:
        step, free = self.tile * (1 - self.overlap), max(length - self.tile, 0)
        count = math.ceil(free / step - 1e-9)
        return [round(i * free / max(count, 1)) for i in range(count + 1)]


def find_tiled(
    model: Detector, image: Tensor, *, tile: int, overlap: float = 0.2, score: float = 0.5, batch_size: int = 8
) -> Instances:
    """The objects in one large picture, looked for in tiles and in the whole picture.

    Args:
        model: a detector of many objects, with masks or without; each tile is resized as it resizes any picture.
        image: (3, H, W) uint8 RGB.
        tile: see `Tiling`, also for `overlap`.
        score: the least score of a detection, in its tile.
        batch_size: tiles at a time.

    Returns:
        Boxes, labels, scores, and masks where the model gives them, in the picture's pixels on the CPU, best first.

    Raises:
        ValueError: the model answers for whole pictures, or a tiling that cannot be.
    """
    if model.task not in TASKS:
        raise ValueError(f"tiles are for detectors of many objects; this model is made for {model.task}")
    tiles = Tiling(tile, overlap).tiles(*image.shape[1:])
    found = [find(model, image, score=score)]
    if len(tiles) == 1:
        return found[0]
    for some in tiles.split(batch_size):
        parts = [image[:, y0:y1, x0:x1] for x0, y0, x1, y1 in some.tolist()]
        found += find_each(model, parts, score=score)
    whole = torch.tensor([[0, 0, image.shape[2], image.shape[1]]])
    return merge_tiles(found, torch.cat([whole, tiles]))
