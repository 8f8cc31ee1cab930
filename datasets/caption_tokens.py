"""The sentences of a data set as numbers of words, encoded once and packed.

Letters: I pictures, B of a batch, S sentences of a picture, T words of a sentence, K sentences of all pictures, N words of
all sentences.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from .structures import Captions
from .table import DataError, Table

MULTIPLE = 4  # what T of a batch is a multiple of, or the most there is, so that a compiled network meets few shapes


class Tokens:
    """Every sentence of a table as numbers, in one array: lists of small objects are copied by workers page by page.

    Args:
        table: I pictures with `captions`, at least one each.
        encode: a sentence to the numbers of its words and, last, that of the end; none of them 0, which is padding.
        longest: a sentence of more words ends there, without the number of the end: nobody should learn to stop there.

    Attributes:
        counts: (I,) int64, how many sentences each picture has.
        cut: how many sentences were too long.

    Raises:
        DataError: a picture has no sentence.
    """

    def __init__(self, table: Table, encode: Callable[[str], list[int]], longest: int) -> None:
        captions = table.captions or [[]] * len(table)
        self.counts = np.array([len(group) for group in captions], np.int64)
        if not self.counts.all():
            raise DataError(f"{table.paths[self.counts.argmin()]}: no sentence about this picture; leave it out")
        encoded = [encode(sentence) for group in captions for sentence in group]
        kept = [words if len(words) <= longest + 1 else words[:longest] for words in encoded]
        self._most = longest + 1
        self.cut = sum(len(words) > longest + 1 for words in encoded)
        self._first = np.cumsum(self.counts) - self.counts  # (I,), each picture's first sentence
        self._lengths = np.array([len(words) for words in kept], np.int64)  # (K,)
        self._starts = np.cumsum(self._lengths) - self._lengths  # (K,)
        self._words = np.array([word for words in kept for word in words], np.int32)  # (N,)

    def batch(self, rows: np.ndarray, chosen: np.ndarray) -> Captions:
        """Some sentences of some pictures.

        Args:
            rows: (B,), the pictures.
            chosen: (B, S), which of its sentences, from 0; -1 for none, a sentence of padding alone.

        Returns:
            Tokens (B, S, T), T the longest one's rounded up to a multiple of 4, but no more than `longest` and an end.
        """
        sentences = np.where(chosen < 0, 0, self._first[rows][:, None] + chosen)
        lengths = np.where(chosen < 0, 0, self._lengths[sentences])
        places = np.arange(min(-(-max(1, lengths.max(initial=0)) // MULTIPLE) * MULTIPLE, self._most))
        words = self._words[np.minimum(self._starts[sentences][..., None] + places, len(self._words) - 1)]
        tokens = np.where(places < lengths[..., None], words, 0)
        return Captions(torch.from_numpy(tokens.astype(np.int64)))
