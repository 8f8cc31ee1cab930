"""A layer of a transformer decoder (Vaswani et al. 2017, https://arxiv.org/abs/1706.03762, section 3).

Normalisation comes before each part (Xiong et al. 2020, https://arxiv.org/abs/2002.04745). Attention weights are not dropped
out, so that those reported are those used.

Letters: B pictures, S sentences of a picture, T words, L cells, W width, N layers, H heads, d = W / H.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Cells(NamedTuple):
    """What is looked at in every step."""

    keys: Tensor  # (B, N, H, L, d)
    values: Tensor  # (B, N, H, L, d)
    valid: Tensor  # (B, L) bool

    def of(self, layer: int) -> Cells:
        """What one layer looks at: keys and values (B, H, L, d)."""
        return Cells(self.keys[:, layer], self.values[:, layer], self.valid)


class Heard(NamedTuple):
    """What words ask of words, and what answers them, each (B, S, H, T, d)."""

    queries: Tensor
    keys: Tensor
    values: Tensor

    def after(self, keys: Tensor, values: Tensor) -> Heard:
        """With the keys and values of earlier words, which are heard too."""
        return Heard(self.queries, torch.cat([keys, self.keys], 3), torch.cat([values, self.values], 3))


class Layer(nn.Module):
    """Each word hears the words before it, looks at the cells, and thinks for itself; every part is added to what was."""

    def __init__(self, width: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__()
        self.hears, self.looks = Attention(width, heads), Attention(width, heads)
        self.thinks = nn.Sequential(
            nn.Linear(width, feedforward), nn.GELU(), nn.Dropout(dropout), nn.Linear(feedforward, width)
        )
        self.norm_hears, self.norm_looks, self.norm_thinks = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def heard(self, x: Tensor) -> Heard:
        """Words (B, S, T, W) as they ask, and as they are heard."""
        x = self.norm_hears(x)
        return Heard(self.hears.queries(x), *self.hears.keys_values(x))

    def forward(self, x: Tensor, heard: Heard, cells: Cells) -> tuple[Tensor, Tensor]:
        """Words (B, S, T, W) after the layer, and their queries (B, H, S * T, d) to the cells.

        Args:
            x: before the layer.
            heard: queries of these T words, and keys and values of as many, or of all up to a single one.
            cells: of this layer alone, (B, H, L, d).
        """
        words = self.hears(*(part.flatten(0, 1) for part in heard), causal=x.shape[2] > 1)
        x = x + self.dropout(words.view_as(x))
        looking = self.looks.queries(self.norm_looks(x).flatten(1, 2))
        seen = self.looks(looking, cells.keys, cells.values, seen=cells.valid[:, None, None])
        x = x + self.dropout(seen.view_as(x))
        return x + self.dropout(self.thinks(self.norm_thinks(x))), looking


class Attention(nn.Module):
    """Attention of several heads (section 3.2.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def queries(self, x: Tensor) -> Tensor:
        """(..., T, W) to (..., H, T, d)."""
        return self.query(x).unflatten(-1, (self.heads, -1)).transpose(-2, -3)

    def keys_values(self, x: Tensor) -> tuple[Tensor, ...]:
        """(..., L, W) to twice (..., H, L, d)."""
        return tuple(
            part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in self.key_value(x).chunk(2, dim=-1)
        )

    def forward(
        self, queries: Tensor, keys: Tensor, values: Tensor, *, seen: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """What queries (B, H, T, d) find in (B, H, L, d), as (B, T, W); `seen` is bool and broadcasts to (B, H, T, L)."""
        found = F.scaled_dot_product_attention(queries, keys, values, seen, is_causal=causal)
        return self.out(found.transpose(1, 2).flatten(2))
