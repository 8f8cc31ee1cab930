"""Stochastic "hard" attention (Show, Attend and Tell, section 4.1): a decoder that sees one cell at a time.

A path s is the cells that a sentence y looked at, drawn while training by the weights alpha. The expected loss over all
paths cannot be computed, but its gradient can be estimated from one of them (REINFORCE, Williams 1992; eq. 11 and 12):

    d E[-log p(y | s)] = E[ -d log p(y | s)  -  sum over t of A_t d log p(s_t) ],     A_t = sum from t on of (log p(y_t | s) - b)

for any b that does not depend on s. Deviation: the paper weighs all cells of a path by log p(y | s) - b of the whole sentence.
That is right on the mean, too, but what was said before a look, and how long a sentence is, tell nothing of the look: they
only add noise.

The first part of the gradient is that of `loss_words`, the second that of `loss_reinforce`; both are divided by the words of
the batch, so that their sum has the gradient of the expected mean loss of a word. `loss_entropy` keeps the weights from
settling too early.

At test time the most probable cell is seen, and nothing is left to chance; the paper does not say what it does there. The
attention reported is the chance of every cell, which says more than the one cell that was seen.

Deviation: a sentence that is given expected vectors learns where to look through them, exactly, as soft attention does.

Letters: as in `attending.py`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .attending import Attending
from .attention import AnnotationVectors, Memory, SoftAttention
from .decoder import PAD, Annotations, drawn, mean_word, shifted

EXPECTED = 0.5  # the chance that a sentence is given expected vectors in place of drawn ones
DECAY = 0.9  # of the baseline, at every batch
REINFORCE = 1.0  # lambda_r; only at 1 is the gradient that of the expected loss
ENTROPY = 0.002  # lambda_e


class HardState(NamedTuple):
    """A `State` that also knows of the path."""

    hidden: Tensor  # (B, S, H)
    cell: Tensor  # (B, S, H) or (B, S, 0)
    expected: Tensor  # (B, S) bool: the sentence is given expected vectors
    score: Tensor  # (B, S), the log probability of the cell drawn for the word last taken in; 0 where none was drawn


class HardAttending(Attending):
    """`Attending` that sees one cell before each word; its attention is a `HardAttention`."""

    attention: HardAttention

    def begin(self, memory: Memory, sentences: int) -> HardState:
        """See `Attending.begin`; in training each sentence's kind of look is drawn here."""
        state = super().begin(memory, sentences)
        score = state.hidden.new_zeros(state.hidden.shape[:2])
        expected = torch.rand_like(score) < EXPECTED if self.training else torch.zeros_like(score, dtype=torch.bool)
        return HardState(state.hidden, state.cell, expected, score)

    def look(self, query: Tensor, state: HardState, memory: Memory) -> tuple[HardState, Tensor, Tensor]:
        """At one cell of each picture, drawn in training and the most probable one otherwise."""
        expected, weights = self.attention(query, memory)
        index = (self.attention.draw(weights) if self.training else weights.argmax(-1))[..., None]
        seen = memory.vectors.gather(1, index.expand(-1, -1, expected.shape[-1]))
        if self.training:
            seen = torch.where(state.expected[..., None], expected, seen)
            score = weights.gather(-1, index).squeeze(-1).log().masked_fill(state.expected, 0)
            state = state._replace(score=score)
        return state, seen, weights

    def losses(self, annotations: Annotations, tokens: Tensor) -> dict[str, Tensor]:
        """Three means over words: see the head of this file for what the gradient of their sum is.

        Returns:
            `loss_words`, -log p(y | s); `loss_reinforce`, the sum of -A_t log p(s_t), the first factors held fixed: its value
            says nothing, its gradient does, and it is 0 in evaluation; and `loss_entropy`, minus the weights' entropy.
        """
        walk = self.walk(shifted(tokens), self.prepare(annotations))
        words = tokens != PAD
        said = -self.word_losses(walk, tokens)  # log p(y_t | s)
        path = torch.stack([state.score for state in walk.states], 2) * words
        better = (said.detach() - self.attention.baseline) * words
        advantages = better.flip(-1).cumsum(-1).flip(-1)
        if self.training:
            self.attention.follow(said.detach(), words)
        entropy = torch.special.entr(walk.weights.clamp(min=1e-20)).sum(-1)  # at 0 it has no gradient
        return {
            "loss_words": mean_word(-said, tokens),
            "loss_reinforce": -REINFORCE * mean_word(advantages * path, tokens),
            "loss_entropy": -ENTROPY * mean_word(entropy * words, tokens),
        }


class HardAttention(SoftAttention):
    """Weights as of soft attention, here the chances of cells, and what it takes to draw by them and learn from it.

    Attributes:
        baseline: b, a scalar that follows log p(y_t | s); it is saved with the weights.
    """

    baseline: Tensor

    def __init__(self, vectors: AnnotationVectors, width: int) -> None:
        super().__init__(vectors, width)
        self.register_buffer("baseline", torch.zeros(()))

    def draw(self, weights: Tensor) -> Tensor:
        """A cell (B, S) by the weights (B, S, L)."""
        return drawn(weights.detach())

    def follow(self, said: Tensor, words: Tensor) -> None:
        """b = 0.9 b + 0.1 log p(y_t | s), of the mean word: said (B, S, T), 0 where `words`, of that shape, says that none is."""
        mean = said.sum() / words.sum().clamp(min=1)
        self.baseline.copy_(torch.where(words.any(), self.baseline.lerp(mean, 1 - DECAY), self.baseline))
