"""Captioned pictures as a torch data set: batches of pictures, or of what a frozen backbone made of them, and sentences."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .batching import Key
from .caption_tokens import Tokens
from .detection import DetectionDataset
from .structures import Batch, Captions, Sample
from .table import DataError, Table
from .transforms import Resize


class CaptionDataset(DetectionDataset):
    """The pictures of a table with their sentences as numbers; see `DetectionDataset`, which brings the pictures.

    Which sentences follows, as all randomness, from (seed, epoch, index) alone. Batches hold no objects.

    Attributes:
        tokens: the sentences of all pictures.
        sentences: S, how many of each picture are in a batch.
    """

    def __init__(
        self,
        table: Table,
        *,
        encode: Callable[[str], list[int]],
        resize: Resize,
        longest: int = 30,
        sentences: int | None = 5,
        drawn: bool = False,
        maps: np.ndarray | None = None,
        augment: Callable[[Sample, np.random.Generator], Sample] | None = None,
        seed: int = 0,
        cache: bool = False,
    ) -> None:
        """
        Args:
            table: I pictures with `captions`, at least one each.
            encode: a sentence to the numbers of its words and of the end.
            resize: see `DetectionDataset`.
            longest: words after which a sentence is cut.
            sentences: of each picture in a batch, at most; None for all. Pictures with fewer are padded.
            drawn: of a picture with more, draw them at random, anew in every epoch; else the first are taken.
            maps: (I, C, h, w) float16, what a backbone makes of the pictures, given instead of them.
            augment: see `DetectionDataset`.
            seed: of all that is random.
            cache: see `DetectionDataset`.

        Raises:
            DataError: a picture has no sentence, or maps do not go with the pictures.
        """
        super().__init__(table, resize=resize, augment=augment, seed=seed, cache=cache and maps is None)
        if maps is not None and augment is not None:
            raise DataError("pictures cannot be changed after a backbone made maps of them: set --data.augment null")
        if maps is not None and len(maps) != len(table):
            raise DataError(f"maps of {len(maps)} pictures do not go with {len(table)} pictures")
        self.tokens, self.maps, self.drawn = Tokens(table, encode, longest), maps, drawn
        most = int(self.tokens.counts.max())
        self.sentences = most if sentences is None else min(sentences, most)

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch for keys that share a frame."""
        rows = np.array([key.index for key in keys])
        batch = super().__getitems__(keys) if self.maps is None else self._unread(rows)
        return replace(batch, targets=None, captions=self._captions(keys, rows), maps=self._maps_of(rows))

    def _unread(self, rows: np.ndarray) -> Batch:
        """A batch without its pictures' pixels."""
        images = torch.empty((len(rows), 3, 0, 0), dtype=torch.uint8)
        return Batch(images, torch.from_numpy(self.out_shapes[rows]), None, [self.info(row) for row in rows.tolist()])

    def _captions(self, keys: list[Key], rows: np.ndarray) -> Captions:
        return self.tokens.batch(rows, np.stack([self._chosen(key.epoch, key.index) for key in keys]))

    def _chosen(self, epoch: int, index: int) -> np.ndarray:
        """(S,), which sentences of a picture are in an epoch's batch; -1 where it has no more."""
        count, places = int(self.tokens.counts[index]), np.arange(self.sentences)
        if count <= self.sentences or not self.drawn:
            return np.where(places < count, places, -1)
        rng = np.random.Generator(np.random.Philox([self.seed, epoch, index, 1]))  # another than augmentation's
        return rng.permutation(count)[: self.sentences]

    def _maps_of(self, rows: np.ndarray) -> Tensor | None:
        return None if self.maps is None else torch.from_numpy(np.asarray(self.maps[rows]))

    def __getstate__(self) -> dict[str, Any]:
        """For workers that are not forked: maps on the disk are named, not copied."""
        maps = self.maps
        if isinstance(maps, np.memmap) and isinstance(maps.base, mmap.mmap):  # the whole file, and no part of it
            return self.__dict__ | {"maps": _File(str(maps.filename), maps.dtype.str, maps.offset, maps.shape)}
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        maps = state["maps"]
        self.__dict__.update(state | {"maps": maps.open() if isinstance(maps, _File) else maps})


class _File(NamedTuple):
    """An array in a file."""

    path: str
    dtype: str
    offset: int
    shape: tuple[int, ...]

    def open(self) -> np.memmap:
        return np.memmap(self.path, self.dtype, "r", self.offset, self.shape)
