"""The decoder of Show, Attend and Tell (Xu et al. 2015, https://arxiv.org/abs/1502.03044): it looks before each word.

Deviations from the paper: what a sentence is punished for not looking at is a mean over cells, not a sum (section 4.2.1), and
losses are means over words, so that neither grows with the map or the sentence.

Letters: B pictures, S sentences of a picture, T words, V words of the vocabulary, E width of an embedding, H of the state,
G gates of the cell, L cells of the map, C channels of annotation vectors, A width of attention.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .attention import Attention, Memory
from .decoder import PAD, Annotations, Decoder, Step, Unrolled, shifted, stacked, word_loss
from .recurrent import Cell, State

COVERAGE = 1.0  # lambda, the weight of `loss_attention`
TAU = 1.0  # what the weights of a cell are to sum to over a sentence


class Attending(Decoder):
    """Looks, takes in a word, says the next one.

    Args:
        num_words: V.
        attention: where to look.
        cell: which recurrence.
        width: H.
        embedding: E.
        dropout: of embeddings, and before the last layer.
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
        truncate: int | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_words, truncate=truncate, smoothing=smoothing)
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
        self.dropout = nn.Dropout(dropout)
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
        return self.walk(words, memory)[0]

    def walk(self, words: Tensor, memory: Memory) -> tuple[Unrolled, list[Any]]:
        """`unroll`, and the state after each word; all but looking and the recurrence is done for all words at once."""
        if self.guessing:
            steps = self.steps(words, memory)
            return stacked(steps), [step.state for step in steps]
        embedded = self.dropout(self.words(words))
        state, walked = self.begin(memory, words.shape[1]), []
        for t, inputs in enumerate(self.from_words(embedded).unbind(2)):
            walked.append(self.advance(inputs, self.carried(state, t), memory))
            state = walked[-1][0]
        states, contexts, weights = zip(*walked, strict=True)
        hidden = torch.stack([state.hidden for state in states], 2)
        logits = self.say(embedded, hidden, torch.stack(contexts, 2))
        return Unrolled(logits, torch.stack(weights, 2)), list(states)

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
        logits, weights = self.unroll(shifted(tokens), self.prepare(annotations))
        return {
            "loss_words": word_loss(logits, tokens, self.smoothing),
            "loss_attention": COVERAGE * coverage_loss(weights, tokens, annotations.valid),
        }


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
