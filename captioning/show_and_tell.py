"""A picture fed to a recurrent network, which then tells: the CNN-RNN captioners Show and Tell (Vinyals et al. 2015,
https://arxiv.org/abs/1411.4555) and Karpathy and Fei-Fei 2015 (https://arxiv.org/abs/1412.2306).

The picture is the mean vector of a backbone's map, projected to the width of a word, and is fed once, before START
(Show and Tell, eq. 10). Deviation: the papers take the last fully connected layer, which needs one size of picture.

Letters: B pictures, S sentences of a picture, T words, V words of the vocabulary, E width of an embedding, H of the state,
G gates of the cell, D channels of the map.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backbone import build_backbone
from ..backbone.building import finish
from .attention import AnnotationVectors, mean_vector
from .decoder import Annotations, Decoder, Step, Unrolled, at_least_one
from .model import Captioner, map_channels, of_words
from .recurrent import Cell, State, cell_named


class Picture(NamedTuple):
    """What is kept of a picture."""

    vector: Tensor  # (B, E)


class ShowAndTell(Decoder):
    """Takes in the picture, then words; attends to nothing.

    Args:
        num_words: V.
        channels: D.
        cell: which recurrence.
        width: H.
        embedding: E.
        dropout: of the inputs, and before the last layer.
        truncate, smoothing: see `Decoder`.
    """

    def __init__(
        self,
        num_words: int,
        channels: int,
        cell: Cell,
        *,
        width: int = 512,
        embedding: int = 512,
        dropout: float = 0.5,
        truncate: int | None = None,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_words, dropout=dropout, truncate=truncate, smoothing=smoothing)
        at_least_one(width=width, embedding=embedding)
        self.cell = cell
        self.vectors = AnnotationVectors(channels)
        self.picture = nn.Linear(channels, embedding)
        self.words = nn.Embedding(num_words, embedding)
        self.from_inputs = nn.Linear(embedding, cell.gates * width)
        self.from_hidden = nn.Linear(width, cell.gates * width)
        self.output = nn.Linear(width, num_words)
        cell.start(self.from_inputs)

    def prepare(self, annotations: Annotations) -> Picture:
        """The mean annotation vector, projected to (B, E)."""
        return Picture(self.picture(mean_vector(self.vectors(annotations), annotations.valid)))

    def begin(self, memory: Picture, sentences: int) -> State:
        """From nothing, the picture taken in like a word."""
        inputs = self.inputs(memory.vector)[:, None].expand(-1, sentences, -1)
        width = self.from_hidden.in_features
        nothing = inputs.new_zeros(*inputs.shape[:2], (1 + self.cell.cells) * width, dtype=torch.float32)
        return self.advance(inputs, State(nothing[..., :width], nothing[..., width:]))

    def step(self, words: Tensor, state: State, memory: Picture) -> Step:
        """See `Decoder.step`; the picture is in the state already."""
        state = self.advance(self.inputs(self.words(words)), state)
        return Step(self.say(state.hidden), state, None)

    def unroll(self, words: Tensor, memory: Picture) -> Unrolled:
        """See `Decoder.unroll`; all but the recurrence is done for all words at once."""
        if self.guessing:
            return super().unroll(words, memory)
        state, hidden = self.begin(memory, words.shape[1]), []
        for t, inputs in enumerate(self.inputs(self.words(words)).unbind(2)):
            state = self.advance(inputs, self.carried(state, t))
            hidden.append(state.hidden)
        return Unrolled(self.say(torch.stack(hidden, 2)), None)

    def inputs(self, vectors: Tensor) -> Tensor:
        """The part of a word or picture, (..., E), in the recurrence: (..., G * H)."""
        return self.from_inputs(self.dropout(vectors))

    def advance(self, inputs: Tensor, state: State) -> State:
        """One word further: (B, S, G * H)."""
        return self.cell(inputs, self.from_hidden(state.hidden), state)

    def say(self, hidden: Tensor) -> Tensor:
        """Logits (..., V) from states (..., H)."""
        return self.output(self.dropout(hidden))


def show_and_tell(
    backbone: str = "googlenet",
    num_words: int = 10_000,
    *,
    cell: str = "lstm",
    width: int = 512,
    embedding: int = 512,
    dropout: float = 0.5,
    truncate: int | None = None,
    smoothing: float = 0.0,
    layer: int = -1,
    norm: str = "frozen",
    trainable_stages: int | None = 0,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> Captioner:
    """Show and Tell; with `cell="rnn"` the network of Karpathy and Fei-Fei. Arguments as for `show_attend_tell`."""
    architecture = {"name": "show_and_tell", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    decoder = ShowAndTell(
        num_words,
        map_channels(body, layer),
        cell_named(cell),
        width=width,
        embedding=embedding,
        dropout=dropout,
        truncate=truncate,
        smoothing=smoothing,
    )
    return finish(Captioner(body, decoder, layer=layer), architecture, weights, allow_missing=of_words(decoder))
