"""Sentences as counted n-grams, in flat columns: what BLEU and CIDEr are computed from without a loop over words.

Letters: S sentences, W words of all of them, K rows of counts, I pictures, G different n-grams.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Counts:
    """How often each n-gram of one order stands in each sentence; a row for each that does, by sentence, then n-gram.

    Attributes:
        sentence: (K,) int64, 0..S-1.
        ngram: (K,) int64, 0..G-1, the same n-gram having the same number in all sentences counted together.
        count: (K,) int64, at least 1.
        size: G.
    """

    sentence: np.ndarray
    ngram: np.ndarray
    count: np.ndarray
    size: int

    def split(self, first: int) -> tuple[Counts, Counts]:
        """The rows of the first sentences, 0..first-1, and those of the others, numbered from 0 again."""
        row = np.searchsorted(self.sentence, first)
        return (
            Counts(self.sentence[:row], self.ngram[:row], self.count[:row], self.size),
            Counts(self.sentence[row:] - first, self.ngram[row:], self.count[row:], self.size),
        )


def count_ngrams(sentences: Sequence[Sequence[str]], orders: int) -> list[Counts]:
    """Counts of the n-grams of order 1 to `orders` in sentences of words; a sentence shorter than n has none."""
    lengths = np.array([len(words) for words in sentences], np.int64)
    numbers: dict[str, int] = {}
    words = np.array([numbers.setdefault(w, len(numbers)) for words in sentences for w in words], np.int64)
    sentence = np.repeat(np.arange(len(sentences)), lengths)
    ngrams, size, counts = words, len(numbers), []
    for order in range(1, orders + 1):
        if order > 1:  # an n-gram is the (n-1)-gram there and the word after it, in the same sentence
            inside = sentence[order - 1 :] == sentence[: len(sentence) - order + 1]
            starts = np.flatnonzero(inside)
            longer = ngrams[starts] * len(numbers) + words[starts + order - 1]
            found, number = np.unique(longer, return_inverse=True)
            ngrams, size = np.zeros_like(words), len(found)
            ngrams[starts] = number
        else:
            starts = np.arange(len(words))
        keys, count = np.unique(sentence[starts] * max(size, 1) + ngrams[starts], return_counts=True)
        counts.append(Counts(*np.divmod(keys, max(size, 1)), count, size))
    return counts


def look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The value of each wanted key, 0 where there is none; `keys` ascend."""
    if not len(keys):
        return np.zeros(len(wanted), values.dtype)
    place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], 0)
