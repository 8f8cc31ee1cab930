"""Superpixels grouped into ever larger regions: always the two most similar neighbours become one (Uijlings et al. 2013,
"Selective Search for Object Recognition", IJCV 104, algorithm 1 and equations 1 to 6).

Letters: S superpixels, R = 2 S - 1 regions of all levels, D histogram bins, N regions.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush

import numpy as np

from .superpixels import Segments


def group(segments: Segments, measures: str) -> np.ndarray:
    """The boxes of all regions of a hierarchy.

    Args:
        segments: S superpixels, each of which reaches each other over neighbours.
        measures: which similarities are added: letters of "CTSF", for colour, texture, size and fill. Of equally similar
            pairs, the one whose regions are older merges.

    Returns:
        (R, 4) int64 xyxy, in the order of making: first the superpixels, last the whole picture.
    """
    return grouped(segments, measures).boxes


def grouped(segments: Segments, measures: str) -> Grouping:
    """A hierarchy that is made: as `group`, whose boxes are these regions'."""
    regions = Grouping(segments, measures)
    neighbours = _neighbours(segments)
    first, second = segments.pairs.T
    # Pairs stay in the heap when one of them is gone, and are passed over when they come up.
    heap = list(zip((-regions.similarity(first, second)).tolist(), first.tolist(), second.tolist(), strict=True))
    heapify(heap)
    while heap:
        _, i, j = heappop(heap)
        if neighbours[i] is None or neighbours[j] is None:
            continue
        around = sorted((neighbours[i] | neighbours[j]) - {i, j})
        neighbours[i] = neighbours[j] = None
        new = regions.merge(i, j)
        neighbours.append(set(around))
        if not around:
            break
        for other, similarity in zip(around, regions.similarity(new, np.array(around)).tolist(), strict=True):
            neighbours[other] -= {i, j}
            neighbours[other].add(new)
            heappush(heap, (-similarity, other, new))
    return regions


def _neighbours(segments: Segments) -> list[set[int] | None]:
    """Each superpixel's; None stands for a region that went into another."""
    neighbours: list[set[int] | None] = [set() for _ in segments.sizes]
    for i, j in segments.pairs.tolist():
        neighbours[i].add(j)
        neighbours[j].add(i)
    return neighbours


class Grouping:
    """The regions made so far, as rows of arrays with room for all that will be.

    A region's number is its row: superpixels come first, each merged region after those that it was made of.
    """

    def __init__(self, segments: Segments, measures: str) -> None:
        if not measures or set(measures) - set("CTSF"):
            raise ValueError(f'measures are letters of "CTSF", got {measures!r}')
        self.count = len(segments.sizes)
        self._measures = measures
        self._superpixels, self._parts = self.count, []
        self._area = float(segments.sizes.sum())
        parts = {"C": segments.colour, "T": segments.texture}
        histograms = [part for letter, part in parts.items() if letter in measures]
        # Side by side: one intersection of histograms is then the sum of both similarities.
        self._histograms = _with_room(np.concatenate([*histograms, np.zeros((self.count, 0), np.float32)], axis=1))
        self._sizes = _with_room(segments.sizes.astype(np.float64))
        # (-x0, -y0, x1, y1), so that the box around two is their maximum.
        self._corners = _with_room(segments.boxes * np.array([-1.0, -1, 1, 1]))

    @property
    def boxes(self) -> np.ndarray:
        """(N, 4) int64 xyxy."""
        return (self._corners[: self.count] * (-1, -1, 1, 1)).astype(np.int64)

    def merge(self, i: int, j: int) -> int:
        """Makes one region of two (equations 3 and 5); returns its number."""
        new, sizes, histograms = self.count, self._sizes, self._histograms
        sizes[new] = sizes[i] + sizes[j]
        share = np.float32(sizes[i] / sizes[new])
        histograms[new] = share * histograms[i] + (1 - share) * histograms[j]
        np.maximum(self._corners[i], self._corners[j], out=self._corners[new])
        self._parts.append((i, j))
        self.count += 1
        return new

    def members(self) -> np.ndarray:
        """(N, S) bool: which superpixels each region is made of."""
        members = np.zeros((self.count, self._superpixels), bool)
        np.fill_diagonal(members, True)
        for new, (i, j) in enumerate(self._parts, self._superpixels):
            np.logical_or(members[i], members[j], out=members[new])
        return members

    def similarity(self, i: int | np.ndarray, j: np.ndarray) -> np.ndarray:
        """(N,) float64 sums of the measures, each in [0, 1], between regions: i is (N,) or one number, j is (N,)."""
        total = np.zeros(len(j))
        if self._histograms.shape[1]:  # equations 2 and 4
            total += np.minimum(self._histograms[j], self._histograms[i]).sum(axis=1)
        sizes = self._sizes[j] + self._sizes[i]
        if "S" in self._measures:
            total += 1 - sizes / self._area
        if "F" in self._measures:
            around = np.maximum(self._corners[j], self._corners[i])
            total += 1 - ((around[:, 0] + around[:, 2]) * (around[:, 1] + around[:, 3]) - sizes) / self._area
        return total


def _with_room(rows: np.ndarray) -> np.ndarray:
    """(2 S - 1, ...) from (S, ...): the rows, then as many but one of zeros."""
    return np.concatenate([rows, np.zeros_like(rows[1:])])
