"""Where objects may be, said before any network knows what they are: proposers, and what they gave for a table's pictures.

Letters: I pictures, P proposals of one picture or of all, best first within a picture, M cells along a mask's side.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from .structures import Instances


class Boxes(NamedTuple):
    """A proposer's word on one picture, best first.

    Attributes:
        boxes: (P, 4) float32, xyxy in the picture's pixels, within it and of positive width and height.
        scores: (P,) float32, descending; of any range.
        masks: (P, M, M) bool, where a box is that of a region: the cells of the box that the region covers, see
            `Instances.masks`. None of boxes alone.
    """

    boxes: np.ndarray
    scores: np.ndarray
    masks: np.ndarray | None = None


class Proposer(ABC):
    """Pictures to boxes that may hold an object. A subclass is a frozen dataclass: its settings, and nothing else.

    Equal settings and pixels give equal boxes in equal order, in every process: proposals are kept on disk by `key`.

    Attributes:
        limit: the most boxes a picture.
    """

    limit: int

    @abstractmethod
    def __call__(self, image: np.ndarray) -> Boxes:
        """At most `limit` boxes of a picture (H, W, 3) uint8 RGB."""

    @property
    def key(self) -> str:
        """All that the boxes follow from besides the pixels; a subclass adds a number that it raises when its numbers change."""
        return repr(self)


@dataclass(frozen=True)
class Regions:
    """The proposals of a table's pictures, as columns.

    Attributes:
        boxes: (P, 4) float32, xyxy in the original pictures' pixels, picture after picture, best first.
        scores: (P,) float32.
        offsets: (I + 1,) int64: picture i's are rows offsets[i] to offsets[i + 1].
        masks: (P, M, ceil(M / 8)) uint8, the regions' in their boxes, eight cells of a row a byte as `pack` does it; None of
            boxes alone.
    """

    boxes: np.ndarray
    scores: np.ndarray
    offsets: np.ndarray
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        count = int(self.offsets[-1])
        if self.boxes.shape != (count, 4) or self.scores.shape != (count,):
            raise ValueError(f"{count} proposals need boxes {(count, 4)} and scores {(count,)}, got {self.boxes.shape} and "
                             f"{self.scores.shape}")  # fmt: skip
        if self.masks is not None:
            require_packed(self.masks, count)

    def __len__(self) -> int:
        """I."""
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> Boxes:
        """Those of one picture."""
        rows = slice(self.offsets[row], self.offsets[row + 1])
        return Boxes(self.boxes[rows], self.scores[rows], None if self.masks is None else unpack(self.masks[rows]))

    @staticmethod
    def of(pictures: list[Boxes]) -> Regions:
        """One picture's after the other's; with masks if all pictures have some, of one M."""
        counts = [len(picture.boxes) for picture in pictures]
        boxes = np.concatenate([np.zeros((0, 4)), *(picture.boxes for picture in pictures)])
        scores = np.concatenate([np.zeros(0), *(picture.scores for picture in pictures)])
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        masked = bool(pictures) and all(picture.masks is not None for picture in pictures)
        masks = np.concatenate([pack(picture.masks) for picture in pictures]) if masked else None
        return Regions(boxes.astype(np.float32), scores.astype(np.float32), offsets, masks)

    def best(self, limit: int) -> Regions:
        """The first `limit` of each picture."""
        counts = np.diff(self.offsets)
        keep = np.arange(len(self.boxes)) - np.repeat(self.offsets[:-1], counts) < limit
        offsets = np.concatenate([[0], np.cumsum(counts.clip(max=limit))])
        return Regions(self.boxes[keep], self.scores[keep], offsets, None if self.masks is None else self.masks[keep])

    def select(self, rows: np.ndarray) -> Regions:
        """Those of these pictures, in this order."""
        return Regions.of([self[int(row)] for row in rows])


def as_instances(found: Boxes) -> Instances:
    """One picture's proposals as objects of label 0, (P) of them."""
    boxes, scores = torch.from_numpy(found.boxes.copy()), torch.from_numpy(found.scores.copy())
    masks = None if found.masks is None else torch.from_numpy(found.masks.astype(np.float32))
    return Instances(boxes, torch.zeros(len(boxes), dtype=torch.int64), scores, masks)


def pack(masks: np.ndarray) -> np.ndarray:
    """(P, M, ceil(M / 8)) uint8 from masks (P, M, M) bool: thousands a picture are an eighth of the memory."""
    return np.packbits(masks, axis=-1)


def unpack(packed: np.ndarray) -> np.ndarray:
    """(P, M, M) bool: `unpack(pack(masks)) == masks`."""
    return np.unpackbits(packed, axis=-1, count=packed.shape[1]).astype(bool)


def require_packed(masks: np.ndarray, count: int) -> None:
    """That these are `count` packed masks.

    Raises:
        ValueError: they are not.
    """
    side = masks.shape[1] if masks.ndim == 3 else 0
    if side < 1 or masks.shape != (count, side, -(-side // 8)) or masks.dtype != np.uint8:
        raise ValueError(f"{count} packed masks are (P, M, ceil(M / 8)) uint8, got {masks.shape} {masks.dtype}")
