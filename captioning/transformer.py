"""A transformer decoder (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3): words look at the words before
them and at the cells of the picture.

Words go out by the matrix by which they come in (section 3.4). Positions are sinusoids (section 3.5), of cells half of the
row and half of the column. Deviations: `transformer_layer.py` normalises before each part, not behind it; GELU.

Letters: B pictures, S sentences of a picture, T words, M words at most, V words of the vocabulary, L = h * w cells,
D channels of the map, W width, N layers, H heads, d = W / H.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..backbone import build_backbone
from ..backbone.building import finish
from .attention import AnnotationVectors
from .decoder import Annotations, Decoder, Step, Unrolled, at_least_one
from .model import Captioner, map_channels, of_words
from .positions import grid_positions, sinusoids
from .transformer_layer import Cells, Layer


class Said(NamedTuple):
    """The words so far: longer by one after every step, which for beams is several times less to copy than M of them."""

    keys: Tensor  # (B, S, N, H, T, d)
    values: Tensor  # (B, S, N, H, T, d)


class TransformerDecoder(Decoder):
    """Feature maps to words by attention alone.

    `step` reports the attention of the last layer, the mean over its heads. Scheduled sampling asks for one word after
    another: `unroll` is then as slow as a loop. `truncate` has no meaning here: there is no chain of states to cut.

    Args:
        num_words: V.
        channels: D.
        width: W, a multiple of 4 and of `heads`.
        layers: N.
        feedforward: width between the two linear layers of each word.
        dropout: share of values dropped after each part and within the linear layers.
        most_words: M, of a sentence and its END.
        smoothing: see `Decoder`.
    """

    most_words: int
    of_words = ("words.", "bias")
    positions: Tensor  # (M, W)

    def __init__(
        self,
        num_words: int,
        channels: int,
        *,
        width: int = 512,
        heads: int = 8,
        layers: int = 3,
        feedforward: int = 2048,
        dropout: float = 0.1,
        most_words: int = 64,
        smoothing: float = 0.0,
    ) -> None:
        super().__init__(num_words, dropout=dropout, smoothing=smoothing)
        at_least_one(width=width, heads=heads, layers=layers, feedforward=feedforward, most_words=most_words)
        if width % 4 or width % heads:
            raise ValueError(f"width must be a multiple of 4 and of its {heads} heads, got {width}")
        self.width, self.heads, self.most_words = width, heads, most_words
        self.vectors, self.norm_vectors = AnnotationVectors(channels, width), nn.LayerNorm(width)
        self.words = nn.Embedding(num_words, width)
        self.layers = nn.ModuleList(Layer(width, heads, feedforward, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.bias = nn.Parameter(torch.zeros(num_words))
        self.register_buffer("positions", sinusoids(torch.arange(most_words), width), persistent=False)
        nn.init.normal_(self.words.weight, std=width**-0.5)  # times sqrt(W) in, logits of variance 1 out
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def prepare(self, annotations: Annotations) -> Cells:
        """Keys and values of the cells, for every layer."""
        height, width = annotations.maps.shape[-2:]
        positions = grid_positions(height, width, self.width, annotations.maps.device)
        cells = self.norm_vectors(self.vectors(annotations)) + positions
        keys, values = zip(*(layer.looks.keys_values(cells) for layer in self.layers), strict=True)
        return Cells(torch.stack(keys, 1), torch.stack(values, 1), annotations.valid.flatten(1))

    def begin(self, memory: Cells, sentences: int) -> Said:
        """Nothing was said."""
        pictures, layers, heads, _, depth = memory.keys.shape
        nothing = memory.keys.new_zeros(pictures, sentences, layers, heads, 0, depth)
        return Said(nothing, nothing)

    def step(self, words: Tensor, state: Said, memory: Cells) -> Step:
        """See `Decoder`.

        Raises:
            ValueError: `most_words` were said.
        """
        x, said = self._embedded(words[..., None], first=state.keys.shape[4]), []
        for i, layer in enumerate(self.layers):
            heard = layer.heard(x).after(state.keys[:, :, i], state.values[:, :, i])
            x, looking = layer(x, heard, memory.of(i))
            said.append(heard)
        state = Said(torch.stack([heard.keys for heard in said], 2), torch.stack([heard.values for heard in said], 2))
        attention = self._attention(looking, memory, words.shape[1])
        return Step(self._logits(x)[:, :, 0], state, attention[:, :, 0])

    def unroll(self, words: Tensor, memory: Cells) -> Unrolled:
        """See `Decoder`: all words at once.

        Raises:
            ValueError: sentences of more than `most_words`.
        """
        if self.guessing:
            return super().unroll(words, memory)
        x = self._embedded(words)
        for i, layer in enumerate(self.layers):
            x, looking = layer(x, layer.heard(x), memory.of(i))
        return Unrolled(self._logits(x), self._attention(looking, memory, words.shape[1]))

    def _embedded(self, words: Tensor, first: int = 0) -> Tensor:
        """Words (B, S, T), of which so many stand before the first, as vectors (B, S, T, W)."""
        last = first + words.shape[2]
        if last > self.most_words:
            raise ValueError(
                f"sentences of {last} words for a decoder of most_words={self.most_words}; "
                f"cut them, or build it with most_words={last}"
            )
        return self.dropout(self.words(words) * math.sqrt(self.width) + self.positions[first:last])

    def _logits(self, x: Tensor) -> Tensor:
        """(..., W) to (..., V)."""
        return F.linear(self.norm(x), self.words.weight, self.bias)

    def _attention(self, looking: Tensor, memory: Cells, sentences: int) -> Tensor:
        """Weights (B, S, T, L) of the last layer from its queries (B, H, S * T, d): little beside what was done with them."""
        similar = (looking @ memory.keys[:, -1].transpose(-1, -2)).float() / math.sqrt(looking.shape[-1])
        weights = similar.masked_fill(~memory.valid[:, None, None], -math.inf).softmax(-1).mean(1)
        return weights.unflatten(1, (sentences, -1))


def transformer_captioner(
    backbone: str = "mobilenet_v2",
    num_words: int = 10_000,
    *,
    width: int = 512,
    heads: int = 8,
    layers: int = 3,
    feedforward: int = 2048,
    dropout: float = 0.1,
    smoothing: float = 0.1,
    most_words: int = 64,
    layer: int = -1,
    norm: str = "frozen",
    trainable_stages: int | None = 0,
    backbone_weights: str | None = None,
    weights: str | None = None,
) -> Captioner:
    """A transformer decoder on one of a backbone's maps.

    Args:
        backbone: a name in `BACKBONES`.
        num_words: V.
        width, heads, layers, feedforward, dropout, most_words, smoothing: see `TransformerDecoder`.
        layer: which of the backbone's maps is looked at, -1 for the coarsest.
        norm: "frozen", "batch", "sync" or "group", of the backbone.
        trainable_stages: how many stages of the backbone train, counted from the last; None trains all, 0 none.
        backbone_weights: of the backbone alone: None, a path, a URL or "imagenet".
        weights: of the whole model: None, a path or a URL. With other words than the weights', what belongs to a word starts
            at random.

    Raises:
        ValueError: an argument out of range.
        WeightsError: weights that cannot be had or do not fit.
    """
    architecture = {"name": "transformer_captioner", "arguments": dict(locals())}
    body = build_backbone(backbone, norm=norm, weights=backbone_weights, trainable_stages=trainable_stages)
    decoder = TransformerDecoder(
        num_words,
        map_channels(body, layer),
        width=width,
        heads=heads,
        layers=layers,
        feedforward=feedforward,
        dropout=dropout,
        most_words=most_words,
        smoothing=smoothing,
    )
    captioner = Captioner(body, decoder, layer=layer)
    return finish(captioner, architecture, weights, allow_missing=of_words(decoder))
