"""COCO's greedy matching of detections to truths, for all IoU thresholds and size ranges at once.

The rule (pycocotools, cocoeval.py, evaluateImg): within one image and category the detections choose in the order of
their scores. Each takes the free truth that it overlaps most, if by the threshold at least; of equal overlaps the last.
Truths that do not count (crowds, sizes out of range) are taken only when no other is left, and a crowd can be taken
again and again.

Only detections that overlap some truth by the lowest threshold have a choice: the contenders. They choose in turns: the
first contender of every (image, category) at once, then every second, and so on. A turn is a handful of array
operations, and each overlapping pair is looked at in one turn only, so the work is that of the pairs and not of the
detections.

Letters: P pairs, J contenders, K truths, T thresholds, A size ranges.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from .pairs import Pairs, run_starts


class Matching(NamedTuple):
    """What each contender took.

    Attributes:
        contenders: (J,) int64, places of the detections in the order in which the pairs' groups were given.
        counted: (J, T, A) bool, took a truth that counts: a true positive.
        ignored: (J, T, A) bool, took a truth that does not count: the detection is neither right nor wrong.
        truth: (J,) int64, the truth taken at the first threshold in the first size range; -1 where none was.
    """

    contenders: np.ndarray
    counted: np.ndarray
    ignored: np.ndarray
    truth: np.ndarray


def match(pairs: Pairs, groups: np.ndarray, thresholds: np.ndarray, *, void: np.ndarray, crowd: np.ndarray) -> Matching:
    """The greedy matching.

    Args:
        pairs: those that overlap by the first threshold at least, of detections sorted by group and falling score.
        groups: (D,) the group of each detection, ascending.
        thresholds: (T,) ascending.
        void: (K, A) bool, truths that do not count in a size range; crowds never count.
        crowd: (K,) bool, truths that can be taken more than once.
    """
    queue = _Queue.arrange(pairs, groups)
    reaches = np.searchsorted(thresholds, queue.overlap, side="right").astype(np.uint8)
    best = _take_turns(queue, reaches, len(thresholds), void=void, crowd=crowd)
    choices = queue.choices[:, None, None].astype(best.dtype)
    counted = best > choices
    ignored = (best > 0) & ~counted
    taken = best[:, 0, 0].astype(np.int64)
    row = queue.first[:-1] + np.maximum(taken - 1, 0) % queue.choices
    truth = np.where(taken > 0, queue.truth[row], -1) if len(row) else np.empty(0, np.int64)
    return Matching(queue.contenders, counted, ignored, truth)


class _Queue(NamedTuple):
    """Pairs in the order of turns: by turn, then by contender, then from the least to the most wanted truth."""

    contenders: np.ndarray  # (J,) by turn
    turns: np.ndarray  # (turns + 1,) where each turn starts among the contenders
    first: np.ndarray  # (J + 1,) where each contender's pairs start
    choices: np.ndarray  # (J,) how many pairs each contender has
    rank: np.ndarray  # (P,) 1..choices, how much the contender wants the truth
    truth: np.ndarray  # (P,)
    overlap: np.ndarray  # (P,)

    @staticmethod
    def arrange(pairs: Pairs, groups: np.ndarray) -> _Queue:
        starts = run_starts(pairs.detection)
        contenders, choices = pairs.detection[starts[:-1]], np.diff(starts)
        group_starts = run_starts(groups[contenders])
        turn = np.arange(len(contenders)) - np.repeat(group_starts[:-1], np.diff(group_starts))
        by_turn = np.argsort(turn, kind="stable")
        place = np.empty_like(by_turn)
        place[by_turn] = np.arange(len(by_turn))
        # Pairs come sorted by truth, and a stable sort keeps that order among equal overlaps: the last is wanted most.
        order = np.lexsort((pairs.overlap, np.repeat(place, choices)))
        choices = choices[by_turn]
        first = np.concatenate([[0], np.cumsum(choices)])
        rank = np.arange(1, len(order) + 1) - np.repeat(first[:-1], choices)
        turns = run_starts(turn[by_turn])
        return _Queue(contenders[by_turn], turns, first, choices, rank, pairs.truth[order], pairs.overlap[order])


def _take_turns(
    queue: _Queue, reaches: np.ndarray, num_thresholds: int, *, void: np.ndarray, crowd: np.ndarray
) -> np.ndarray:
    """(J, T, A) what each took: 0 nothing, `rank` a truth that does not count, `choices + rank` one that does."""
    most = 2 * int(queue.choices.max(initial=1))
    # Truths that count are wanted above all that do not.
    wanted = queue.rank[:, None] + np.repeat(queue.choices, queue.choices)[:, None] * ~void[queue.truth]
    wanted = wanted.astype(np.min_scalar_type(most))
    free = np.ones((len(void), num_thresholds, void.shape[1]), bool)
    best = np.zeros((len(queue.contenders), num_thresholds, void.shape[1]), wanted.dtype)
    levels = np.arange(num_thresholds, dtype=np.uint8)
    for start, stop in pairwise(queue.turns):
        pairs = slice(queue.first[start], queue.first[stop])
        truth = queue.truth[pairs]
        open_ = free[truth] & (levels < reaches[pairs, None])[:, :, None]
        offers = open_ * wanted[pairs, None, :]
        best[start:stop] = np.maximum.reduceat(offers, queue.first[start:stop] - queue.first[start], axis=0)
        winners = np.repeat(best[start:stop], queue.choices[start:stop], axis=0)
        # A group has one contender a turn, so no truth occurs twice here.
        free[truth] &= (offers != winners) | ~open_ | crowd[truth, None, None]
    return best
