"""COCO's strings of run lengths, many at once (https://github.com/cocodataset/cocoapi, common/maskApi.c).

From an object's fourth run on, what is written is the difference to the run two before. Each number goes low bits first,
five to a character, and a sixth bit says whether more follow; the last character's highest bit is the sign.

Letters: N objects, R runs of all of them, S characters of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

_ZERO = 48  # the character that stands for 0
_MOST = 7  # characters that a number takes, enough for pictures of 2^31 pixels
_WRONG = "its run lengths are no string of COCO's"


def unpack(strings: Sequence[str | bytes]) -> tuple[np.ndarray, np.ndarray]:
    """The run lengths that N strings stand for.

    Returns:
        (R,) int64 runs, object after object, and (N + 1,) int64 where each object's start.

    Raises:
        ValueError: a string is none of COCO's.
    """
    data = [_bytes(text) for text in strings]
    ends = np.cumsum([0, *map(len, data)])
    values, last = _numbers(b"".join(data))
    if (np.diff(ends) == 0).any() or not last[ends[1:] - 1].all():
        raise ValueError(_WRONG)
    counts = np.concatenate([[0], np.cumsum(last)])[ends]
    return _summed(values, counts), counts


def unpack_one(string: str | bytes) -> np.ndarray:
    """(R,) int64, the run lengths of one string; raises as `unpack`, which takes three times as long for a single one."""
    values, _ = _numbers(_bytes(string))
    if not len(values):
        raise ValueError(_WRONG)
    values[1::2], values[2::2] = values[1::2].cumsum(), values[2::2].cumsum()
    return values


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _numbers(text: bytes) -> tuple[np.ndarray, np.ndarray]:
    """(R,) int64, the numbers that the characters (S,) stand for, and (S,) bool, whether one ends with each."""
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - _ZERO
    last = (codes & 32) == 0
    if (codes < 0).any() or (codes > 63).any() or not last[-1:].all():
        raise ValueError(_WRONG)
    starts = np.flatnonzero(np.append(True, last))[:-1]
    lengths = np.diff(np.append(starts, len(codes)))
    if (lengths > _MOST).any():
        raise ValueError("its run lengths are longer than any picture")
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    values = np.add.reduceat((codes & 31) << 5 * place, starts)
    return values - np.where(codes[last] & 16, 1 << 5 * lengths, 0), last


def _summed(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """From differences to runs: each from the fourth on is added to the one two before it."""
    place = _chains(offsets)
    sums = np.zeros(len(values) + 1, np.int64)
    chained = np.empty_like(values)
    chained[place] = values
    np.cumsum(chained, out=sums[1:])
    first = _chain_starts(offsets)[place]
    return sums[place + 1] - sums[first]


def _chains(offsets: np.ndarray) -> np.ndarray:
    """(R,) a new place for each run: an object's first, then those of odd number, then the others of even number."""
    lengths = np.diff(offsets)
    number = np.arange(offsets[-1]) - np.repeat(offsets[:-1], lengths)
    odd = np.repeat(lengths // 2, lengths)
    place = np.where(number % 2 == 1, 1 + number // 2, np.where(number > 0, odd + number // 2, 0))
    return place + np.repeat(offsets[:-1], lengths)


def _chain_starts(offsets: np.ndarray) -> np.ndarray:
    """(R,) by new place, where the chain of each starts: three in an object, the first of one run."""
    lengths = np.diff(offsets)
    heads = np.zeros(offsets[-1], np.int64)
    for head in (offsets[:-1], offsets[:-1] + 1, offsets[:-1] + 1 + lengths // 2):
        head = head[head < len(heads)]  # an object of one run or two has fewer: then this is the next one's
        heads[head] = head
    return np.maximum.accumulate(heads)


def pack(runs: np.ndarray, offsets: np.ndarray) -> list[str]:
    """The strings of N objects' run lengths, those that COCO's own code writes.

    Args:
        runs: (R,) int64.
        offsets: (N + 1,) where each object's start.
    """
    number = np.arange(len(runs)) - np.repeat(offsets[:-1], np.diff(offsets))
    values = runs.astype(np.int64)
    late = np.flatnonzero(number > 2)
    values[late] -= runs[late - 2]
    # n characters hold the numbers from -2^(5n - 1) to 2^(5n - 1) - 1.
    size = np.where(values < 0, ~values, values)
    length = np.ones(len(values), np.int64)
    for digits in range(1, _MOST):
        length += size >= 1 << (5 * digits - 1)
    starts = np.concatenate([[0], np.cumsum(length)])
    place = np.arange(starts[-1]) - np.repeat(starts[:-1], length)
    codes = ((np.repeat(values, length) >> 5 * place) & 31) | 32
    codes[starts[1:] - 1] &= 31
    text = (codes + _ZERO).astype(np.uint8).tobytes().decode("ascii")
    ends = starts[offsets]
    return [text[start:stop] for start, stop in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)]
