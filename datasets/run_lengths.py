"""Masks of many objects as columns: where each begins and ends along the columns of its picture's pixels.

That is COCO's run-length encoding (https://github.com/cocodataset/cocoapi, common/maskApi.c) with its runs summed up: pixel
(y, x) of a picture of H rows is number x * H + y, and a mask covers the numbers from one edge up to the next, then again
from the third up to the fourth, and so on.

Letters: N objects, E edges of all of them, H, W pixels of a picture, h, w of a part of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from .polygons import trace
from .run_strings import pack

_AT_ONCE = 1 << 18  # edges that are looked at together: what is made of them stays in the processor's cache


@dataclass(frozen=True)
class RunLengths:
    """The masks of N objects.

    Attributes:
        edges: (E,) int64 in ascending order within a mask, without repetition: begin, end, begin, end, …
        offsets: (N + 1,) int64: mask i's edges are rows offsets[i] to offsets[i + 1], an even number; none is an empty mask.
        sizes: (N, 2) int64, (H, W) of the picture that each lies in.

    Raises:
        ValueError: the columns' shapes do not go together.
    """

    edges: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.offsets) - 1
        if self.sizes.shape != (count, 2) or self.edges.shape != (int(self.offsets[-1]),):
            raise ValueError(f"{count} masks need sizes {(count, 2)} and edges {(int(self.offsets[-1]),)}, got "
                             f"{self.sizes.shape} and {self.edges.shape}")  # fmt: skip

    def __len__(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @cached_property
    def areas(self) -> np.ndarray:
        """(N,) int64, in pixels."""
        sums = np.concatenate([[0], np.cumsum(self.edges[1::2] - self.edges[::2])])
        return np.diff(sums[self.offsets // 2])

    @cached_property
    def boxes(self) -> np.ndarray:
        """(N, 4) int64, xyxy, the least box around each mask; zeros for an empty one."""
        cuts = np.searchsorted(self.offsets, np.arange(_AT_ONCE, len(self.edges), _AT_ONCE))
        rows = [slice(start, stop) for start, stop in pairwise([0, *cuts.tolist(), len(self)])]
        return np.concatenate([self._boxes(some) for some in rows])

    def _boxes(self, rows: slice) -> np.ndarray:
        offsets = self.offsets[rows.start : rows.stop + 1]
        begin, last = self.edges[offsets[0] : offsets[-1] : 2], self.edges[offsets[0] + 1 : offsets[-1] : 2] - 1
        counts = np.diff(offsets) // 2
        height = np.repeat(self.sizes[rows, 0], counts)
        left, right = begin // height, last // height
        crossing = right > left  # from the bottom of one column to the top of the next
        top = np.where(crossing, 0, begin - left * height)
        bottom = np.where(crossing, height - 1, last - right * height)
        boxes, some = np.zeros((len(counts), 4), np.int64), counts > 0
        starts = (offsets[:-1][some] - offsets[0]) // 2
        if len(starts):
            lows = (np.minimum.reduceat(side, starts) for side in (left, top))
            highs = (np.maximum.reduceat(side, starts) + 1 for side in (right, bottom))
            boxes[some] = np.stack([*lows, *highs], axis=1)
        return boxes

    def select(self, rows: np.ndarray) -> RunLengths:
        """The masks of these rows (N', bool or int), in their order."""
        rows = np.arange(len(self))[rows]
        counts = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        edges = self.edges[np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], counts)]
        return RunLengths(edges, offsets, self.sizes[rows])

    def part(self, row: int, rows: slice, columns: slice) -> np.ndarray:
        """(h, w) uint8, 1 where the mask of a row is, within these rows and columns of its picture."""
        height = int(self.sizes[row, 0])
        start, stop = columns.start * height, columns.stop * height
        edges = self.edges[self.offsets[row] : self.offsets[row + 1]].clip(start, stop)
        runs = np.diff(edges, prepend=start, append=stop)
        covered = np.repeat((np.arange(len(runs)) & 1).astype(np.uint8), runs)
        return covered.reshape(columns.stop - columns.start, height).T[rows]

    def pixels(self, row: int) -> np.ndarray:
        """(H, W) uint8, 1 where the mask of a row is."""
        height, width = self.sizes[row].tolist()
        return self.part(row, slice(0, height), slice(0, width))

    def to_coco(self) -> list[dict[str, Any]]:
        """N of COCO's {"size": [H, W], "counts": string}, the same that its own code writes."""
        last = self.sizes.prod(axis=1)
        some = np.diff(self.offsets) > 0
        full = np.zeros(len(self), bool)  # masks that reach the last pixel have no background behind it
        full[some] = self.edges[self.offsets[1:][some] - 1] == last[some]
        edges = np.insert(self.edges, self.offsets[1:][~full], last[~full])
        offsets = self.offsets + np.concatenate([[0], np.cumsum(~full)])
        runs = np.diff(edges, prepend=0)
        runs[offsets[:-1]] = edges[offsets[:-1]]
        columns = zip(self.sizes.tolist(), pack(runs, offsets), strict=True)
        return [{"size": size, "counts": counts} for size, counts in columns]

    def to_polygons(self) -> list[list[list[float]]]:
        """N lists of COCO's polygons, [x0, y0, x1, y1, …] along the edges of pixels, which give the same masks back."""
        outlines = []
        for row, (x0, y0, x1, y1) in enumerate(self.boxes.tolist()):
            parts = trace(self.part(row, slice(y0, y1), slice(x0, x1)))
            corner = np.array([x0, y0])
            outlines.append([(np.reshape(part, (-1, 2)) + corner).ravel().tolist() for part in parts])
        return outlines

    @staticmethod
    def from_edges(owner: np.ndarray, edges: np.ndarray, sizes: np.ndarray) -> RunLengths:
        """Masks of N objects from edges in any order; two at one place cancel out.

        Args:
            owner: (E,) int64, the object of each.
            edges: (E,) int64.
            sizes: (N, 2) int64, (H, W).
        """
        sizes = np.asarray(sizes, np.int64).reshape(-1, 2)
        stride = int(sizes.prod(axis=1).max(initial=0)) + 1
        # One number each is sorted ten times as fast as pairs; the stable sort takes what is in order as it is.
        keys = np.sort(owner * stride + edges, kind="stable")
        starts = np.flatnonzero(np.diff(keys, prepend=-1))
        keys = keys[starts[np.diff(starts, append=len(keys)) % 2 == 1]]
        offsets = np.searchsorted(keys, np.arange(len(sizes) + 1) * stride)
        return RunLengths(keys - np.repeat(np.arange(len(sizes)) * stride, np.diff(offsets)), offsets, sizes)

    @staticmethod
    def concatenate(several: Sequence[RunLengths]) -> RunLengths:
        """One's masks after the other's."""
        edges = np.concatenate([np.zeros(0, np.int64), *(one.edges for one in several)])
        counts = np.concatenate([np.zeros(0, np.int64), *(np.diff(one.offsets) for one in several)])
        sizes = np.concatenate([np.zeros((0, 2), np.int64), *(one.sizes for one in several)])
        return RunLengths(edges, np.concatenate([[0], np.cumsum(counts)]), sizes)
