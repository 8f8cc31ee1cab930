"""The decoder of Show, Attend and Tell (Xu et al. 2015, https://arxiv.org/abs/1502.03044): it looks before each word.

Deviations from the paper: what a sentence is punished for not looking at is a mean over cells, not a sum (section 4.2.1), and
losses are means over words, so that neither grows with the map or the sentence.

Letters: B pictures, S sentences of a picture, T words, V words of the vocabulary, E width of an embedding, H of the state,
G gates of the cell, L cells of the map, C channels of annotation vectors, A width of attention.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .attention import Attention, Memory
from .decoder import PAD, Annotations, Decoder, Step, Unrolled, at_least_one, mean_word, shifted, stacked, word_losses
from .recurrent import Cell, State

TAU = 1.0  # what the weights of a cell are to sum to over a sentence


class Walk(NamedTuple):
    """What became of known sentences."""

    seen: tuple[Tensor, Tensor, Tensor] | None  # what `say` takes, each (B, S, T, ...); None where logits are there
    weights: Tensor  # (B, S, T, L)
    states: list[Any]  # after each word
    logits: Tensor | None  # (B, S, T, V), where guesses were made by them on the way


class Attending(Decoder):
    """Looks, takes in a word, says the next one.

    Args:
        num_words: V.
        attention: where to look.
        cell: which recurrence.
        width: H.
        embedding: E.
        dropout: of embeddings, and before the last layer.
        coverage: weight of `loss_attention`, the paper's lambda.
        truncate, smoothing: see `Decoder`.
    """

    def __init__(
        self,
        num_words: int,
        attention: Attention,
        cell: Cell,
        *,
        width: int = 512,
        embedding: int = 512,
        dropout: float = 0.5,
        coverage: float = 1.0,
        truncate: int | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_words, dropout=dropout, truncate=truncate, smoothing=smoothing)
        at_least_one(width=width, embedding=embedding)
        if coverage < 0:
            raise ValueError(f"coverage must be 0 or more, got {coverage}")
        self.coverage = coverage
        self.attention, self.cell = attention, cell
        gates, channels = cell.gates * width, attention.channels
        self.parts = (gates, attention.width, 1)  # what is read from the hidden state: recurrence, query, beta
        self.start = nn.Linear(channels, (1 + cell.cells) * width)
        self.words = nn.Embedding(num_words, embedding)
        self.from_words = nn.Linear(embedding, gates)
        self.from_hidden = nn.Linear(width, sum(self.parts))
        self.from_context = nn.Linear(channels, gates, bias=False)
        self.deep = nn.Linear(width + channels, embedding)
        self.output = nn.Linear(embedding, num_words)
        cell.start(self.from_words)

    def prepare(self, annotations: Annotations) -> Memory:
        """See `Attention.prepare`."""
        return self.attention.prepare(annotations)

    def begin(self, memory: Memory, sentences: int) -> Any:
        """A `State`, or one of more fields, from the mean annotation vector (section 3.1.2)."""
        width = self.from_hidden.in_features
        start = self.start(memory.mean).float().tanh()[:, None].expand(-1, sentences, -1)
        return State(start[..., :width], start[..., width:])

    def step(self, words: Tensor, state: Any, memory: Memory) -> Step:
        """See `Decoder.step`."""
        embedded = self.dropout(self.words(words))
        state, context, weights = self.advance(self.from_words(embedded), state, memory)
        return Step(self.say(embedded, state.hidden, context), state, weights)

    def unroll(self, words: Tensor, memory: Memory) -> Unrolled:
        """See `Decoder.unroll`."""
        walk = self.walk(words, memory)
        return Unrolled(self.say(*walk.seen) if walk.logits is None else walk.logits, walk.weights)

    def walk(self, words: Tensor, memory: Memory) -> Walk:
        """Takes in all words; all but looking and the recurrence is done for all of them at once."""
        if self.guessing:
            steps = self.steps(words, memory)
            unrolled = stacked(steps)
            return Walk(None, unrolled.attention, [step.state for step in steps], unrolled.logits)
        embedded = self.dropout(self.words(words))
        state, walked = self.begin(memory, words.shape[1]), []
        for t, inputs in enumerate(self.from_words(embedded).unbind(2)):
            walked.append(self.advance(inputs, self.carried(state, t), memory))
            state = walked[-1][0]
        states, contexts, weights = zip(*walked, strict=True)
        hidden = torch.stack([state.hidden for state in states], 2)
        return Walk((embedded, hidden, torch.stack(contexts, 2)), torch.stack(weights, 2), list(states), None)

    def advance(self, inputs: Tensor, state: Any, memory: Memory) -> tuple[Any, Tensor, Tensor]:
        """One look and one word: the state after it, what was seen (B, S, C) and where (B, S, L).

        Args:
            inputs: (B, S, G * H), the word's part in the recurrence.
            state: before the word.
            memory: of the pictures.
        """
        recurrent, query, beta = self.from_hidden(state.hidden).split(self.parts, -1)
        state, context, weights = self.look(query, state, memory)
        context = beta.sigmoid() * context
        return self.cell(inputs + self.from_context(context), recurrent, state), context, weights

    def look(self, query: Tensor, state: Any, memory: Memory) -> tuple[Any, Tensor, Tensor]:
        """What is seen (B, S, C) and where (B, S, L), and a state that may note something about it."""
        return state, *self.attention(query, memory)

    def say(self, embedded: Tensor, hidden: Tensor, context: Tensor) -> Tensor:
        """Logits (..., V) from the last word's embedding (..., E), the state (..., H) and what was seen (..., C): eq. 7."""
        return self.output(self.dropout(embedded + self.deep(torch.cat([hidden, context], -1))))

    def losses(self, annotations: Annotations, tokens: Tensor) -> dict[str, Tensor]:
        """`loss_words`, the mean cross-entropy of a word, and `loss_attention`, see `coverage_loss`."""
        walk = self.walk(shifted(tokens), self.prepare(annotations))
        return {
            "loss_words": mean_word(self.word_losses(walk, tokens), tokens),
            "loss_attention": self.coverage * coverage_loss(walk.weights, tokens, annotations.valid),
        }

    def word_losses(self, walk: Walk, tokens: Tensor) -> Tensor:
        """(B, S, T) cross-entropy of every word, 0 of padding.

        On a CPU nothing is said where there is padding: there it costs time, often half of all, and to look for it costs none.
        """
        if walk.logits is not None:
            return word_losses(walk.logits, tokens, self.smoothing)
        if tokens.device.type != "cpu":
            return word_losses(self.say(*walk.seen), tokens, self.smoothing)
        there = tokens != PAD
        each = word_losses(self.say(*(part[there] for part in walk.seen)), tokens[there], self.smoothing)
        return each.new_zeros(tokens.shape).masked_scatter(there, each)


def coverage_loss(weights: Tensor, tokens: Tensor, valid: Tensor) -> Tensor:
    """Doubly stochastic attention (section 4.2.1): the weights that a sentence gives a cell are to sum to `TAU`.

    Args:
        weights: (B, S, T, L).
        tokens: (B, S, T), of which padding does not count.
        valid: (B, h, w) bool.

    Returns:
        The mean of (TAU - sum over words)^2 over the valid cells of a sentence, and over all sentences; 0 of none.
    """
    words, cells = tokens != PAD, valid.flatten(1)[:, None]
    missing = TAU - (weights * words[..., None]).sum(2)
    mean = (missing.square() * cells).sum(-1) / cells.sum(-1)
    sentences = words.any(-1)
    return (mean * sentences).sum() / sentences.sum().clamp(min=1)
