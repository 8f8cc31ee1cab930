"""Where a decoder looks before each word: softly at all cells, or at a region that a spatial transformer lays out.

An attention module is given the decoder's query and what it prepared of the pictures, and says what it saw and where:

    memory = attention.prepare(annotations)            # once a picture
    context, weights = attention(queries, memory)      # before each word; weights sum to 1, and are 0 in padding

Letters: B pictures, S sentences of a picture, L = h * w cells, D channels of the map, C of annotation vectors, A width of
queries and keys, N places that a region is sampled at.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..backbone.spatial_transformer import Affine, ParameterLayer, SpatialTransformer, Transform
from .decoder import Annotations
from .positions import grid_positions

PLACES = 32  # channels that tell where a cell lies


class Memory(NamedTuple):
    """What is kept of a picture."""

    vectors: Tensor  # (B, L, C), zero in padding
    keys: Tensor  # (B, L, A), or (B, 1, A) where places are not told apart
    mean: Tensor  # (B, C), over the cells that lie in the picture
    valid: Tensor  # (B, h, w) bool


class AnnotationVectors(nn.Module):
    """A map's cells as vectors (section 3.1.1), on request narrower than the map: a projection learnt with the decoder.

    A decoder multiplies contexts in every step, so that a wide map (1280 channels of MobileNetV2) costs dearly there and
    next to nothing when it is narrowed once a picture.

    Args:
        channels: D.
        width: C; None for the map's own channels, as in the paper.
        places: widen the map by `PLACES` channels that tell each cell's row and column: what a decoder else only knows as far
            as the backbone sees the picture's edge, and has to tell left from right by.
    """

    def __init__(self, channels: int, width: int | None = None, *, places: bool = False) -> None:
        super().__init__()
        channels += PLACES if places else 0
        self.projection = nn.Identity() if width is None else nn.Linear(channels, width)
        self.channels, self.places = channels if width is None else width, places

    def forward(self, annotations: Annotations) -> Tensor:
        """(B, L, C), zero in padding, whatever the map holds there."""
        valid = annotations.valid.flatten(1)[..., None]
        vectors = annotations.maps.flatten(2).mT
        if self.places:
            places = grid_positions(*annotations.maps.shape[2:], PLACES, vectors.device)
            vectors = torch.cat([vectors, places.to(vectors.dtype).expand(len(vectors), -1, -1)], -1)
        return self.projection(vectors.masked_fill(~valid, 0)).masked_fill(~valid, 0)


def mean_vector(vectors: Tensor, valid: Tensor) -> Tensor:
    """(B, C), the mean of vectors (B, L, C) that are zero in padding over the valid cells (B, h, w)."""
    return vectors.sum(1) / valid.flatten(1).sum(1, keepdim=True)


class Attention(nn.Module):
    """The base of all attention.

    Args:
        vectors: what is looked at.
        width: A.

    Attributes:
        channels: C of the contexts.
        width: A.
    """

    def __init__(self, vectors: AnnotationVectors, width: int) -> None:
        super().__init__()
        self.vectors, self.channels, self.width = vectors, vectors.channels, width
        self.keys = nn.Linear(self.channels, width)

    def prepare(self, annotations: Annotations) -> Memory:
        """What every look needs, made once a picture."""
        vectors = self.vectors(annotations)
        mean = mean_vector(vectors, annotations.valid)
        keys = self.keys_of(vectors, mean)
        # Under autocast keys are narrow: vectors become so here, not once more in every step.
        return Memory(vectors.to(keys.dtype), keys, mean, annotations.valid)

    def keys_of(self, vectors: Tensor, mean: Tensor) -> Tensor:
        """See `Memory.keys`; from vectors (B, L, C) and their mean (B, C)."""
        return self.keys(vectors)

    def forward(self, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """One look a sentence.

        Args:
            queries: (B, S, A).
            memory: of the pictures.

        Returns:
            Contexts (B, S, C), and weights (B, S, L) float32 that sum to 1 and are 0 in padding.
        """
        raise NotImplementedError


class SoftAttention(Attention):
    """The expected annotation vector (section 4.2), cells weighed by a network of one hidden layer (eq. 4 and 5)."""

    def __init__(self, vectors: AnnotationVectors, width: int) -> None:
        super().__init__(vectors, width)
        self.score = nn.Linear(width, 1, bias=False)  # a bias would change no weight

    def forward(self, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """See `Attention.forward`."""
        scores = self.score((memory.keys[:, None] + queries[:, :, None]).tanh()).squeeze(-1).float()
        weights = scores.masked_fill(~memory.valid.flatten(1)[:, None], -torch.inf).softmax(-1)
        return weights.to(memory.vectors.dtype) @ memory.vectors, weights


class RegionAttention(Attention):
    """The mean over a region in place of a cell: a spatial transformer (https://arxiv.org/abs/1506.02025) lays it out.

    Its localisation network is one hidden layer on the query and the mean annotation vector. At first the region is the
    whole picture; places outside count as the nearest ones inside, so that weights sum to 1 wherever it goes. The vectors
    are sampled bilinearly, as `spatial_transformer.sample` does, but through each cell's share in the samples: that is what
    is to be reported anyway, and one small matrix product a picture.

    Valid cells must be a rectangle from the top left, as `Captioner.annotate` says them.

    Args:
        vectors: what is looked at.
        width: A.
        transform: what a region is: `Affine()`, or the upright one of `Attention()`.
        points: places a side, N is its square.
    """

    def __init__(
        self, vectors: AnnotationVectors, width: int, *, transform: Transform | None = None, points: int = 4
    ) -> None:
        super().__init__(vectors, width)
        transform = transform or Affine()
        self.region = SpatialTransformer(ParameterLayer(width, transform), transform, (points, points))

    def keys_of(self, vectors: Tensor, mean: Tensor) -> Tensor:
        """One key a picture: (B, 1, A)."""
        return self.keys(mean)[:, None]

    def forward(self, queries: Tensor, memory: Memory) -> tuple[Tensor, Tensor]:
        """See `Attention.forward`."""
        places = self.places(queries, memory)
        across = _shares(places[..., 0], memory.valid.any(1))
        down = _shares(places[..., 1], memory.valid.any(2))
        weights = (down[..., :, None] * across[..., None, :]).mean(2).flatten(2)
        return weights.to(memory.vectors.dtype) @ memory.vectors, weights

    def places(self, queries: Tensor, memory: Memory) -> Tensor:
        """Where the region is sampled: (B, S, N, 2), (x, y) from -1 to 1 across the valid part of the map."""
        hidden = (memory.keys + queries).tanh()
        return self.region.grid(hidden.flatten(0, 1)).unflatten(0, hidden.shape[:2]).flatten(2, 3)


def _shares(places: Tensor, valid: Tensor) -> Tensor:
    """(B, S, N, n), the share of each row or column, n, in places (B, S, N) along that axis; valid (B, n).

    Of two neighbours, so that there is a slope at a cell's own centre too: regions start there where map and grid agree.
    """
    last = valid.sum(-1)[:, None, None].to(places.dtype) - 1  # not every device clamps floats by integers
    cells = ((places + 1) * (last + 1) - 1) / 2
    cells = cells.clamp(min=torch.zeros_like(last), max=last)
    lower = cells.detach().floor().minimum(last - 1).clamp(min=0)
    upper = (lower + 1).minimum(last)
    part = (cells - lower)[..., None]
    numbers = torch.arange(valid.shape[-1], device=places.device)
    return (1 - part) * (numbers == lower[..., None]) + part * (numbers == upper[..., None])
