"""Selective search: boxes that may hold an object, from groupings of superpixels (Uijlings et al. 2013, "Selective Search
for Object Recognition", IJCV 104; https://doi.org/10.1007/s11263-013-0620-5).

A picture is cut into superpixels in several colour spaces and at several scales, each segmentation is grouped by several
sums of similarities, and every region of every hierarchy gives its box. Table 5's "fast" has 8 hierarchies, "quality" 80.

As in R-CNN's use of it, pictures are brought to a usual size first; unlike there, small ones are not enlarged. Nor does a
region's place in its hierarchy count for as much in the order as in the paper: see FLATNESS.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import cv2
import numpy as np

from ..datasets.proposals import Boxes, Proposer
from ..datasets.table import nearest
from .region_grouping import Grouping, grouped
from .superpixels import describe, segment, texture_bins, to_colour_space

FORMAT = 2  # to be raised when the boxes of equal settings change
# The power to which a region's place counts; the paper's is 1. With that the upper levels of 80 hierarchies fill the best 2000
# boxes of "quality", and small objects are missing. Chosen on 16 pictures of COCO's training set. On 30 of its validation set,
# mean of the seeds 0 to 5, recall at IoU 0.5 among 2000 boxes is 0.745 instead of 0.675 ("fast": 0.743 instead of 0.721). Among
# 100 it is 0.308 instead of 0.307, but in "fast" 0.302 instead of 0.325: where a few large objects matter, 1 is better.
FLATNESS = 0.25


class Diversity(NamedTuple):
    """What is varied, each with each: colour spaces, scales of the superpixels, and sums of similarities."""

    spaces: tuple[str, ...]
    scales: tuple[int, ...]
    measures: tuple[str, ...]


MODES = {
    "fast": Diversity(("hsv", "lab"), (50, 100), ("CTSF", "TSF")),
    "quality": Diversity(("hsv", "lab", "rgi", "h", "i"), (50, 100, 150, 300), ("CTSF", "TSF", "F", "S")),
}


@dataclass(frozen=True)
class SelectiveSearch(Proposer):
    """Selective search's boxes, in a pseudo-random order that prefers large regions (section 3.3).

    A region's place in its hierarchy, counted from 1 at the top, to the power FLATNESS, times a random number in [0, 1) is
    its value, and the boxes of all hierarchies are sorted by it; of equal boxes the first stays. Scores are minus those
    values. A picture that cannot be cut, of one colour, say, gives itself as its only box; so does one on which no box is
    large enough.

    Attributes:
        mode: "fast" or "quality", of MODES.
        limit: the most boxes a picture.
        seed: of the random numbers, which are the same for every picture.
        side: pictures whose longer side has more pixels are reduced to it first.
        least: boxes of which a side is shorter, in pixels of the reduced picture, are dropped. The authors' 20 suits Pascal
            VOC; of the objects of COCO, 75 % are among 2000 boxes with 8 (fast, 40 pictures), and 65 % with 20.
        masks: M, cells along the side of the regions' masks in their boxes; None proposes boxes alone.
    """

    mode: str = "fast"
    limit: int = 2000
    seed: int = 0
    side: int = 500
    least: int = 8
    # Not in the key of those without: boxes that were kept before there were masks are the same.
    masks: int | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"no mode {self.mode!r}; there are {', '.join(MODES)}{nearest(self.mode, MODES)}")
        if self.limit < 1 or self.side < 1 or self.least < 0:
            raise ValueError(f"limit and side must be at least 1 and least at least 0, got {self}")
        if self.masks is not None and self.masks < 1:
            raise ValueError(f"masks must be a number of cells from 1, or None for boxes alone, got {self.masks}")

    @property
    def key(self) -> str:
        return f"{self!r} format {FORMAT}" + ("" if self.masks is None else f" masks {self.masks}")

    def __call__(self, image: np.ndarray) -> Boxes:
        reduced = reduce(image, self.side)
        hierarchies = list(_hierarchies(reduced, MODES[self.mode]))
        boxes, values, rows = _in_order([each.boxes for each in hierarchies], np.random.default_rng(self.seed))
        height, width = reduced.shape[:2]
        large = np.minimum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]) >= self.least
        if not large.any():
            whole = np.array([[0, 0, width, height]])
            boxes, values, large, hierarchies = whole, np.zeros(1), np.ones(1, bool), []
        kept = np.flatnonzero(large)[: self.limit]
        scale = np.tile(np.array(image.shape[1::-1]) / (width, height), 2)
        masks = None if self.masks is None else _masks(hierarchies, rows[kept], boxes[kept], self.masks)
        return Boxes((boxes[kept] * scale).astype(np.float32), -values[kept].astype(np.float32), masks)


def reduce(image: np.ndarray, side: int) -> np.ndarray:
    """The picture with a longer side of at most `side` pixels, and of at least one pixel in each direction."""
    height, width = image.shape[:2]
    scale = min(1.0, side / max(height, width))
    if scale == 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


class _Hierarchy(NamedTuple):
    """Regions of one segmentation, superpixels first and the whole picture last.

    Attributes:
        boxes: (R, 4) int64 xyxy.
        regions: what they are made of.
        labels: (H, W), each pixel's superpixel.
    """

    boxes: np.ndarray
    regions: Grouping
    labels: np.ndarray


def _hierarchies(image: np.ndarray, diversity: Diversity) -> Iterator[_Hierarchy]:
    for space in diversity.spaces:
        picture = to_colour_space(image, space)
        textures = texture_bins(picture)
        for k in diversity.scales:
            labels = segment(picture, k)
            segments = describe(labels, picture, textures)
            for measures in diversity.measures:
                regions = grouped(segments, measures)
                yield _Hierarchy(regions.boxes, regions, labels)


def _in_order(hierarchies: list[np.ndarray], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All different boxes (P, 4), best first, their values (P,), ascending, and their rows among those of all (P,)."""
    boxes = np.concatenate(hierarchies)
    ranks = np.concatenate([np.arange(len(hierarchy), 0, -1) for hierarchy in hierarchies])
    values = ranks**FLATNESS * rng.random(len(ranks))
    order = np.argsort(values, kind="stable")
    _, first = np.unique(boxes[order], axis=0, return_index=True)
    kept = order[np.sort(first)]
    return boxes[kept], values[kept], kept


def _masks(hierarchies: list[_Hierarchy], rows: np.ndarray, boxes: np.ndarray, side: int) -> np.ndarray:
    """(P, M, M) bool: which cells of a region's box have their centre on it; all of them where there are no regions.

    Args:
        hierarchies: those that the regions come from.
        rows: (P,), the regions' among all hierarchies'.
        boxes: (P, 4), theirs.
        side: M.
    """
    masks, first = np.ones((len(boxes), side, side), bool), 0
    at = (np.arange(side) + 0.5) / side
    x, y = (np.floor(boxes[:, k, None] + at * (boxes[:, k + 2] - boxes[:, k])[:, None]).astype(int) for k in (0, 1))
    for one in hierarchies:
        own = (rows >= first) & (rows < first + len(one.boxes))
        superpixels = one.labels[y[own, :, None], x[own, None, :]]
        masks[own] = one.regions.members()[(rows[own] - first)[:, None, None], superpixels]
        first += len(one.boxes)
    return masks
