"""Windows laid over a picture as a grid, whatever is on it: what proposals were before selective search, for comparison."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..datasets.proposals import Boxes, Proposer

FORMAT = 1  # to be raised when the boxes of equal settings change
GOLDEN = 0.5 * (5**0.5 - 1)


@dataclass(frozen=True)
class SlidingWindow(Proposer):
    """About `limit` windows of all scales and aspect ratios, which overlap their neighbours by one share of their size.

    Nothing is known of objects, so the order is one that spreads: every size takes its turn, the largest first, and a size's
    windows come from all over the picture. Scores merely descend, from 1. Where `limit` is too small for a grid of every size,
    the last ones of that order are missing.

    Attributes:
        limit: the most boxes a picture; the grids are as dense as it allows.
        scales: the windows' sides as shares of the picture's, geometric means both; 1 is the picture's own area.
        aspects: width over height. Windows that would be wider or higher than the picture are cut to it.
    """

    limit: int = 2000
    scales: tuple[float, ...] = (1.0, 0.707, 0.5, 0.354, 0.25, 0.177, 0.125)
    aspects: tuple[float, ...] = (1.0, 0.5, 2.0)

    def __post_init__(self) -> None:
        if self.limit < 1:
            raise ValueError(f"limit must be at least 1, got {self.limit}")
        if not self.scales or not self.aspects or min(self.scales) <= 0 or min(self.aspects) <= 0:
            raise ValueError(f"scales and aspects must be positive numbers, got {self.scales} and {self.aspects}")

    @property
    def key(self) -> str:
        return f"{self!r} format {FORMAT}"

    def __call__(self, image: np.ndarray) -> Boxes:
        size = np.array(image.shape[1::-1], np.float64)
        windows = self._sizes(size)
        stride = _stride(size, windows, self.limit)
        grids = [_grid(size, window, stride) for window in windows]
        turns = np.concatenate([np.arange(len(grid)) for grid in grids])
        order = np.argsort(turns, kind="stable")[: self.limit]
        boxes = np.concatenate(grids)[order].astype(np.float32)
        scores = np.linspace(1, 0, len(boxes), endpoint=False, dtype=np.float32)
        return Boxes(boxes, scores)

    def _sizes(self, size: np.ndarray) -> np.ndarray:
        """(N, 2) float64, the different (width, height) of windows in a picture of (width, height), largest first."""
        side = np.sqrt(size.prod())
        stretch = np.sqrt(self.aspects)
        shapes = np.stack([stretch, 1 / stretch], axis=1)
        wanted = side * np.sort(self.scales)[::-1, None, None] * shapes
        # Not below a pixel: a window has a width and a height on the smallest picture too.
        whole = np.rint(np.clip(wanted, 1, size)).reshape(-1, 2)
        _, first = np.unique(whole, axis=0, return_index=True)
        return whole[np.sort(first)]


def _stride(size: np.ndarray, windows: np.ndarray, limit: int) -> float:
    """The smallest step between windows, as a share of their size, that gives at most `limit`; 1 where even that is too many."""
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _counts(size, windows, middle).prod(axis=-1).sum() <= limit else (middle, high)
    return high


def _counts(size: np.ndarray, windows: np.ndarray, stride: float) -> np.ndarray:
    """(..., 2) how many windows lie side by side and one below the other, so that no step is longer than `stride`."""
    return 1 + np.ceil((size - windows) / (stride * windows) - 1e-9)


def _grid(size: np.ndarray, window: np.ndarray, stride: float) -> np.ndarray:
    """(N, 4) float64 xyxy of one size of window, neighbours in the picture far apart in the order."""
    columns, rows = (
        np.linspace(0, space, int(count))
        for space, count in zip(size - window, _counts(size, window, stride), strict=True)
    )
    corners = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
    spread = np.argsort(np.arange(len(corners)) * GOLDEN % 1, kind="stable")
    return np.concatenate([corners, corners + window], axis=1)[spread]
