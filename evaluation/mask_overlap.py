"""Overlap of masks, counted in whole pixels: intersection over union, 64 pixels at a time.

Most pairs need no counting: where neither the boxes around two masks nor their areas leave room for the overlap that is
asked for, the pair is passed over. The masks of the others are packed into bits within their boxes: column by column, in
words of 64 rows that begin at the same rows in every mask of a picture, so that a pair's words need no shifting.

Letters: D detections, K truths, P pairs, N masks, E edges, W words.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ..datasets.run_lengths import RunLengths
from .pairs import Overlap
from .records import Detections, Truth

_WORD = 64
_COLUMNS = 1 << 18  # columns of pairs that are counted at once: their words stay in the processor's cache
_ALL = np.uint64(2**64 - 1)


def mask_overlap(truth: Truth, detections: Detections, *, at_least: float = 0.0) -> Overlap:
    """Overlap of masks: intersection over union; over the detection's own area where the truth is a crowd.

    Both counts are whole and their quotient is COCO's to the last bit.

    Args:
        truth: K objects with masks.
        detections: D with masks.
        at_least: overlaps below it may be given as 0 without being counted.

    Raises:
        ValueError: there are no masks; by the function, two masks of one image are of pictures of different sizes.
    """
    if truth.masks is None or detections.masks is None:
        raise ValueError(f"{'truth' if truth.masks is None else 'detections'} must have masks to be scored by them")
    true_area, found_area = truth.masks.areas, detections.masks.areas

    def overlap(found: np.ndarray, true: np.ndarray) -> np.ndarray:
        _require_same_size(detections.masks, truth.masks, found, true)
        areas, crowd = (found_area[found], true_area[true]), truth.crowd[true]
        values = np.zeros(len(found))
        room = _quotient(_most(detections.masks, truth.masks, found, true, areas), *areas, crowd)
        chosen = np.flatnonzero((room >= at_least) & (room > 0))
        shared = intersections(detections.masks, truth.masks, found[chosen], true[chosen])
        values[chosen] = _quotient(shared, *(area[chosen] for area in areas), crowd[chosen])
        return values

    return overlap


def _require_same_size(one: RunLengths, other: RunLengths, rows: np.ndarray, others: np.ndarray) -> None:
    wrong = np.flatnonzero((one.sizes[rows] != other.sizes[others]).any(axis=1))
    if len(wrong):
        first, second = one.sizes[rows[wrong[0]]].tolist(), other.sizes[others[wrong[0]]].tolist()
        raise ValueError(
            f"the mask of detection {rows[wrong[0]]} is of a picture of {first} pixels [height, width], its image's truth of "
            f"{second}; bring predictions to the original pictures' size"
        )


def _quotient(shared: np.ndarray, found: np.ndarray, true: np.ndarray, crowd: np.ndarray) -> np.ndarray:
    """Intersection over union, of counts; 0 without an intersection, also of two empty masks."""
    union = np.where(crowd, found, found + true - shared)
    return np.divide(shared, union, out=np.zeros(len(shared)), where=shared > 0)


def _most(
    one: RunLengths, other: RunLengths, rows: np.ndarray, others: np.ndarray, areas: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """(P,) pixels that two masks can share at most, by their boxes and areas."""
    low = np.maximum(one.boxes[rows, :2], other.boxes[others, :2])
    high = np.minimum(one.boxes[rows, 2:], other.boxes[others, 2:])
    return np.minimum((high - low).clip(min=0).prod(axis=1), np.minimum(*areas))


def intersections(one: RunLengths, other: RunLengths, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """(P,) int64, the pixels that two masks share.

    Args:
        one, other: masks of pictures of the same sizes, pair by pair.
        rows, others: (P,) rows of each.
    """
    wide = np.minimum(one.boxes[rows, 2], other.boxes[others, 2]) - np.maximum(
        one.boxes[rows, 0], other.boxes[others, 0]
    )
    ends = np.cumsum(wide.clip(min=0))
    total = int(ends[-1]) if len(ends) else 0
    cuts = np.unique([*np.searchsorted(ends, np.arange(0, total, _COLUMNS), side="right"), len(rows)])
    parts = [np.zeros(0, np.int64)]
    for start, stop in pairwise(np.union1d([0], cuts)):
        first, second = _Bits.of(one, rows[start:stop]), _Bits.of(other, others[start:stop])
        parts.append(_count(first, second))
    return np.concatenate(parts)


class _Bits(NamedTuple):
    """The masks of P rows as bits.

    Attributes:
        words: (W,) uint64, mask after mask, column after column within its box, each from top to bottom.
        first: (P,) where each row's words start; rows of the same mask share them.
        left, right: (P,) its columns.
        top, bottom: (P,) the words, of those in a column of the picture, that its columns have.
    """

    words: np.ndarray
    first: np.ndarray
    left: np.ndarray
    right: np.ndarray
    top: np.ndarray
    bottom: np.ndarray

    @staticmethod
    def of(masks: RunLengths, rows: np.ndarray) -> _Bits:
        """Packs the masks of these rows, each once."""
        used, again = np.unique(rows, return_inverse=True)
        left, top, right, bottom = masks.boxes[used].T
        top, bottom = top // _WORD, -(-bottom // _WORD)
        ends = np.cumsum((right - left) * (bottom - top))
        first = np.concatenate([[0], ends[:-1]])[: len(used)]
        total = int(ends[-1]) if len(ends) else 0
        begin, end = _places(masks.select(used), first, left, top, bottom - top)
        words = _filled(_flips(begin, total) ^ _flips(end, total))
        columns = (column[again.reshape(-1)] for column in (first, left, right, top, bottom))
        return _Bits(words, *columns)


def _places(
    masks: RunLengths, first: np.ndarray, left: np.ndarray, top: np.ndarray, tall: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The bits at which masks begin and end, column by column; `tall` words make a column."""
    owner = np.repeat(np.arange(len(masks)), np.diff(masks.offsets) // 2)
    height = masks.sizes[owner, 0]
    begin, last = masks.edges[::2], masks.edges[1::2] - 1
    x0, x1 = begin // height, last // height
    column = tall[owner] * _WORD
    origin = (first - top - left * tall)[owner] * _WORD
    begin, end = origin + x0 * column + begin - x0 * height, origin + x1 * column + last + 1 - x1 * height
    # What goes on in the next column ends below the picture and begins again above it.
    more = np.flatnonzero(x1 > x0)
    times = (x1 - x0)[more]
    which = np.repeat(more, times)
    x = x1[which] - (np.repeat(np.cumsum(times), times) - 1 - np.arange(len(which)))
    above = origin[which] + x * column[which]
    return np.append(begin, above), np.append(end, above - column[which] + height[which])


def _flips(places: np.ndarray, total: int) -> np.ndarray:
    """(W + 1,) words with these bits, all different, set."""
    words = np.zeros(total + 1, np.uint64)
    np.add.at(words, places // _WORD, np.left_shift(np.uint64(1), (places % _WORD).astype(np.uint64)))
    return words


def _filled(flips: np.ndarray) -> np.ndarray:
    """Words in which every bit says whether an odd number of flips lie at it or before it."""
    words = flips
    for step in (1, 2, 4, 8, 16, 32):
        words = words ^ (words << np.uint64(step))
    odd = np.bitwise_xor.accumulate(words >> np.uint64(_WORD - 1))
    words[1:] ^= odd[:-1] * _ALL
    return words


def _count(one: _Bits, other: _Bits) -> np.ndarray:
    """(P,) int64, the bits that the masks of each pair share."""
    left, right = np.maximum(one.left, other.left), np.minimum(one.right, other.right)
    top, bottom = np.maximum(one.top, other.top), np.minimum(one.bottom, other.bottom)
    wide, deep = right - left, bottom - top
    counts = np.zeros(len(left), np.int64)
    some = np.flatnonzero((wide > 0) & (deep > 0))
    if not len(some):
        return counts
    wide = wide[some]
    starts = np.cumsum(wide) - wide
    at, at_other = (
        _strides((bits.first + (left - bits.left) * (bits.bottom - bits.top) + top - bits.top)[some],
                 (bits.bottom - bits.top)[some], wide, starts)
        for bits in (one, other)
    )  # fmt: skip
    shared = _ones(one.words[at] & other.words[at_other]).astype(np.int64)
    levels = np.repeat(deep[some], wide)
    for level in range(1, int(levels.max())):
        more = np.flatnonzero(levels > level)
        shared[more] += _ones(one.words[at[more] + level] & other.words[at_other[more] + level])
    counts[some] = np.add.reduceat(shared, starts)
    return counts


def _strides(first: np.ndarray, step: np.ndarray, counts: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """`concatenate([f + s * arange(c) for f, s, c in zip(first, step, counts)])`, where the parts begin at `starts`."""
    steps = np.repeat(step, counts)
    last = first + (counts - 1) * step
    steps[starts] = first
    steps[starts[1:]] -= last[:-1]
    return np.cumsum(steps)


def _ones(words: np.ndarray) -> np.ndarray:
    """The bits set in each word."""
    if hasattr(np, "bitwise_count"):  # numpy 2
        return np.bitwise_count(words)
    return _BYTES[words.view(np.uint8).reshape(-1, 8)].sum(axis=1, dtype=np.uint8)


_BYTES = np.array([bin(byte).count("1") for byte in range(256)], np.uint8)
