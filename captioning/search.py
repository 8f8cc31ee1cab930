"""How sentences are found: the likeliest word each time, beam search, or chance.

    captions = Beam(width=5)(decoder, annotations)

All pictures and sentences are worked on at once, in shapes that do not depend on the data, over a fixed number of words:
nothing waits for a GPU. Sentences of one picture stand side by side, as the decoder takes them; what belongs to the
picture is kept once.

- PAD, START and UNKNOWN are never said: their logits are -inf before the softmax, so that `scores` are log probabilities
  of the decoder restricted to what it may say, and those of all sentences still sum to 1.
- `scores` are sums over the words and END, not divided by anything; only the order of beams is by a score per length.
- A sentence that has not ended after `most` words stands as it is: no END is forced on it, and its score has none.
- `attention` is that of the words said and of END, and 0 behind it.

Letters: B pictures, S sentences of a picture, K beams, T words at most, V words of the vocabulary, L cells.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..datasets.structures import Captions
from .decoder import END, PAD, START, UNKNOWN, Annotations, Decoder, at_least_one, drawn


@dataclass(frozen=True)
class Greedy:
    """The likeliest word each time: one sentence a picture.

    Args:
        most: T, at least 1.
    """

    most: int = 20

    def __post_init__(self) -> None:
        at_least_one(most=self.most)

    def __call__(self, decoder: Decoder, annotations: Annotations) -> Captions:
        """Annotations (B, ...) to Captions of (B, 1)."""
        return _spoken(decoder, annotations, 1, self.most, lambda log_probs: log_probs.argmax(-1))


@dataclass(frozen=True)
class Sampling:
    """Words by chance, from torch's random generator: different sentences about a picture, of which some may be alike.

    `scores` are log probabilities of the decoder as it is, whatever the temperature and the nucleus.

    Args:
        count: S, sentences of a picture.
        temperature: logits are divided by it: below 1 likely words become likelier; more than 0.
        nucleus: words are drawn from the smallest set of likeliest ones whose probability, after the temperature, reaches
            so much, in (0, 1] (Holtzman et al. 2019, https://arxiv.org/abs/1904.09751); at least one word.
        most: T, at least 1.
    """

    count: int = 1
    temperature: float = 1.0
    nucleus: float = 1.0
    most: int = 20

    def __post_init__(self) -> None:
        at_least_one(count=self.count, most=self.most)
        if not 0 < self.temperature < math.inf:
            raise ValueError(
                f"temperature must be more than 0, got {self.temperature}; without chance it is Greedy, --beam 1"
            )
        if not 0 < self.nucleus <= 1:
            raise ValueError(f"nucleus must be in (0, 1], got {self.nucleus}; 1 draws from all words")

    def __call__(self, decoder: Decoder, annotations: Annotations) -> Captions:
        """Annotations (B, ...) to Captions of (B, S), likeliest first."""
        captions = _spoken(decoder, annotations, self.count, self.most, self._drawn)
        order = captions.scores.argsort(dim=1, descending=True)
        return captions.map(lambda value: _taken(value, order))

    def _drawn(self, log_probs: Tensor) -> Tensor:
        """A word of each sentence, (B, S), by log probabilities (B, S, V)."""
        log_probs = log_probs - log_probs.amax(-1, keepdim=True)  # so that no temperature is too low for float32,
        chances = (log_probs / max(self.temperature, torch.finfo(log_probs.dtype).tiny)).softmax(-1)  # nor 0 there
        if self.nucleus == 1:
            return drawn(chances)
        chances, words = chances.sort(dim=-1, descending=True)
        likelier = chances.cumsum(-1) - chances  # what the words before have together: 0 for the first
        place = drawn(chances * (likelier < self.nucleus))
        return words.gather(-1, place[..., None])[..., 0]


@dataclass(frozen=True)
class Beam:
    """The best `width` beginnings are followed together.

    A sentence that ended keeps its place for as long as it is among the best; ended or not, they compete by
    score / length ** length_power, the length counting END.

    Args:
        width: K.
        most: T, at least 1.
        length_power: 0 compares sums, and so favours short sentences; 1 compares means of a word.
        count: S, sentences of a picture, at most `width`. Where there are not so many, the rest is padding of score -inf.
    """

    width: int = 5
    most: int = 20
    length_power: float = 0.7
    count: int = 1

    def __post_init__(self) -> None:
        at_least_one(width=self.width, most=self.most, count=self.count)
        if self.count > self.width:
            raise ValueError(f"count must be at most the width of {self.width}, got {self.count}; make the beam wider")
        if not 0 <= self.length_power < math.inf:
            raise ValueError(f"length_power must be 0 or more, got {self.length_power}")

    def __call__(self, decoder: Decoder, annotations: Annotations) -> Captions:
        """Annotations (B, ...) to Captions of (B, S), best first."""
        memory, words, state = _begun(decoder, annotations, self.width, self.most)
        ended = torch.zeros_like(words, dtype=torch.bool)
        lengths = torch.zeros_like(words, dtype=torch.float32)
        scores = torch.full_like(lengths, -math.inf)
        scores[:, 0] = 0  # all beams begin alike: one of them counts
        trace: list[tuple[Tensor, Tensor, Tensor | None]] = []
        for _ in range(self.most):
            step = decoder.step(words, state, memory)
            totals = scores[..., None] + _log_probabilities(step.logits, ended)
            lengths = lengths + ~ended
            parents, words, scores = self._best(totals, lengths)
            trace.append((parents, words, step.attention))
            ended, lengths = _taken(ended, parents) | (words == END), _taken(lengths, parents)
            state = type(step.state)(*(_taken(value, parents) for value in step.state))
        return _traced(trace, scores[:, : self.count])

    def _best(self, totals: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Which beams go on, with which word, and their new scores, each (B, K), best first.

        Args:
            totals: (B, K, V), scores of every beam with every word behind it.
            lengths: (B, K), of every beam with a word behind it.
        """
        ranks = totals / lengths[..., None] ** self.length_power if self.length_power else totals
        best = ranks.flatten(1).topk(self.width).indices
        words = totals.shape[-1]
        return best // words, best % words, totals.flatten(1).gather(1, best)


def _spoken(
    decoder: Decoder, annotations: Annotations, count: int, most: int, choose: Callable[[Tensor], Tensor]
) -> Captions:
    """Sentences (B, S) whose words are chosen, each sentence for itself, by log probabilities (B, S, V)."""
    memory, words, state = _begun(decoder, annotations, count, most)
    ended = torch.zeros_like(words, dtype=torch.bool)
    scores = torch.zeros_like(words, dtype=torch.float32)
    tokens, attention = [], []
    for _ in range(most):
        step = decoder.step(words, state, memory)
        log_probs = _log_probabilities(step.logits, ended)
        words, state = choose(log_probs), step.state
        scores = scores + log_probs.gather(-1, words[..., None])[..., 0]
        ended = ended | (words == END)
        tokens.append(words)
        attention.append(step.attention)
    return _captions(torch.stack(tokens, 2), scores, attention)


def _begun(decoder: Decoder, annotations: Annotations, count: int, most: int) -> tuple[Any, Tensor, Any]:
    """The memory, the first word (B, S) and the state before it."""
    if decoder.most_words is not None and most > decoder.most_words:
        raise ValueError(
            f"most is {most} words, the decoder says {decoder.most_words} at most; ask for no more than these"
        )
    memory = decoder.prepare(annotations)
    words = torch.full((len(annotations.maps), count), START, device=annotations.maps.device)
    return memory, words, decoder.begin(memory, count)


def _log_probabilities(logits: Tensor, ended: Tensor) -> Tensor:
    """Of every word, (B, S, V) float32: -inf where it is never said; where a sentence has ended (B, S), PAD is certain."""
    words, ended = torch.arange(logits.shape[-1], device=logits.device), ended[..., None]
    sayable = (words == END) | (words > UNKNOWN)
    allowed = (ended & (words == PAD)) | (~ended & sayable)  # no `where`: onnxruntime has none of bools
    return logits.float().masked_fill(~allowed, -math.inf).log_softmax(-1)


def _taken(value: Tensor, rows: Tensor) -> Tensor:
    """Of (B, K, ...) the rows (B, N) of each picture: (B, N, ...)."""
    first = torch.arange(len(value), device=value.device)[:, None] * value.shape[1]
    return value.flatten(0, 1).index_select(0, (first + rows).flatten()).unflatten(0, rows.shape)


def _traced(trace: list[tuple[Tensor, Tensor, Tensor | None]], scores: Tensor) -> Captions:
    """The sentences that stand in the first S beams, of scores (B, S), from the last word back to the first."""
    rows = torch.arange(scores.shape[1], device=scores.device).expand_as(scores)
    tokens, attention = [], []
    for parents, words, weights in reversed(trace):
        tokens.append(_taken(words, rows))
        rows = _taken(parents, rows)  # attention is known of the beams as they stood before the word
        attention.append(None if weights is None else _taken(weights, rows))
    there = scores > -math.inf
    return _captions(torch.stack(tokens[::-1], 2) * there[..., None], scores, attention[::-1])


def _captions(tokens: Tensor, scores: Tensor, attention: list[Tensor | None]) -> Captions:
    """With the attention (B, S, L) of every word, or None of all."""
    if attention[0] is None:
        return Captions(tokens, scores)
    return Captions(tokens, scores, torch.stack(attention, 2).float() * (tokens != PAD)[..., None])
