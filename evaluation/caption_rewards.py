"""CIDEr-D of sentences of numbers, as a reward while training (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726).

The same number as `captions.py` gives, for a few sentences at a time: how rare an n-gram is was counted beforehand, over all
training pictures.

Letters: n, the length of an n-gram, 1 to 4.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence

from .captions import ORDERS, SIGMA

Words = Sequence[int]
Grams = list[Counter[tuple[int, ...]]]  # of each order


class CiderRewards:
    """Scores sentences against a picture's own.

    Args:
        pictures: the sentences of every training picture, each the numbers of its words.
    """

    def __init__(self, pictures: Iterable[Sequence[Words]]) -> None:
        self._seen: Counter[tuple[int, ...]] = Counter()  # in how many pictures' sentences each n-gram stands
        count = 0
        for sentences in pictures:
            self._seen.update({gram for words in sentences for grams in _grams(words) for gram in grams})
            count += 1
        self._log_count = math.log(max(count, 1))

    def __call__(self, said: Sequence[Words], truths: Sequence[Words]) -> list[float]:
        """CIDEr-D, from 0 to 10, of each of some sentences about one picture; `truths` are its own, at least one."""
        references = [self._vector(words) for words in truths]
        return [self._mean(self._vector(words), references) for words in said]

    def _vector(self, words: Words) -> tuple[list[dict[tuple[int, ...], float]], list[float], int]:
        """Of each order the weights of its n-grams and their norm; and the number of bigrams, the measure of length."""
        weights = [
            {gram: count * (self._log_count - math.log(max(self._seen[gram], 1))) for gram, count in grams.items()}
            for grams in _grams(words)
        ]
        norms = [math.sqrt(sum(weight * weight for weight in order.values())) for order in weights]
        return weights, norms, max(len(words) - 1, 0)

    @staticmethod
    def _mean(said: tuple, references: list[tuple]) -> float:
        weights, norms, length = said
        total = 0.0
        for true_weights, true_norms, true_length in references:
            similar = 0.0
            for order in range(ORDERS):
                product = sum(
                    min(weight, true) * true
                    for gram, weight in weights[order].items()
                    if (true := true_weights[order].get(gram)) is not None
                )
                if product:
                    similar += product / (norms[order] * true_norms[order])
            total += similar / ORDERS * math.exp(-((length - true_length) ** 2) / (2 * SIGMA**2))
        return 10 * total / len(references)


def _grams(words: Words) -> Grams:
    return [Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1)) for n in range(1, ORDERS + 1)]
