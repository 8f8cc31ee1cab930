"""Captioned pictures for Lightning: one path in, training, validation and test loaders out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from .augment import Augment
from .caption_dataset import CaptionDataset
from .caption_files import read_captioned
from .picture_data import PictureData, Shapes
from .table import DataError, Table

_SHAPES = Shapes()
VALIDATED = 5  # sentences a picture whose loss is taken in validation: as many as COCO and Flickr were given


class CaptionData(PictureData):
    """Pictures with sentences, from the built-in shapes or a folder or file that `read_captioned` understands.

    Attributes:
        encode: a sentence to the numbers of its words and of the end, `Vocabulary.encode` of the model's; `sightline train`
            sets it before it makes loaders.
        maps: split to (I, C, h, w) float16, what a frozen backbone makes of its pictures, which are then not read; or None.
        min_count, cache_maps: see below; for whoever makes the vocabulary, and the maps.
    """

    def __init__(
        self,
        path: str = "shapes",
        batch_size: int = 32,
        *,
        min_size: int = 224,
        max_size: int = 224,
        exact: bool = True,
        num_workers: int | None = None,
        augment: Augment | None = None,
        sentences: int | None = 5,
        longest: int = 30,
        min_count: int = 5,
        seed: int = 0,
        cache: bool = False,
        cache_maps: bool = False,
        shapes: Shapes = _SHAPES,
    ) -> None:
        """
        Args:
            path: the data set, a folder or file that `sightline check` understands: COCO's captions json, Karpathy's splits,
                token files of Flickr8k and Flickr30k, CSV; "shapes" draws pictures instead.
            batch_size: pictures in a batch, of each process; each comes with its sentences.
            min_size: length in pixels that the short side of a picture is brought to ...
            max_size: ... unless the long side would grow beyond this.
            exact: bring every picture to min_size x max_size (height x width) instead, whatever its shape.
            num_workers: processes that load pictures; 0 loads in the main process, null chooses by the machine's cores.
            augment: random changes to training pictures; null for none. A mirrored picture makes "left" of what its
                sentences call "right".
            sentences: of each training picture in a batch, drawn anew in every epoch where it has more; null for all.
            longest: words of a sentence; those behind are cut off in training and validation losses.
            min_count: a word belongs to the vocabulary if it stands so often in the training sentences.
            seed: of the order of pictures, of their random changes, of the draw of sentences, and of the built-in pictures.
            cache: keep all decoded, resized pictures in shared memory; for small sets.
            cache_maps: keep on disk what a frozen backbone makes of the pictures, and train on that; it takes far less time.
            shapes: what to draw when `path` is "shapes".
        """
        super().__init__(path, batch_size, resize=(min_size, max_size, exact), num_workers=num_workers)
        for name, value in (("sentences", sentences), ("longest", longest), ("min_count", min_count)):
            if value is not None and value < 1:
                raise DataError(f"{name} must be at least 1, got {value}")
        if path == "shapes" and augment is not None and _moves(augment):
            raise DataError(
                "the sentences about the built-in shapes tell left from right and small from large: set --data.augment null, "
                "or --data.augment.flip 0 and --data.augment.scale [1,1]"
            )
        self.augment, self.seed, self.cache, self.shapes = augment, seed, cache, shapes
        self.cache_maps = cache_maps
        self.sentences, self.longest, self.min_count = sentences, longest, min_count
        self.encode: Callable[[str], list[int]] | None = None
        self.maps: dict[str, np.ndarray] | None = None

    def _read(self) -> dict[str, Table]:
        if self.path == "shapes":
            return {split: _without_objects(table) for split, table in self.shapes.tables(seed=self.seed).items()}
        return read_captioned(self.path)

    def texts(self, split: str) -> list[str]:
        """All sentences of a split, of which a vocabulary can be made."""
        return [sentence for group in self.tables[split].captions for sentence in group]

    def _dataset(self, split: str, train: bool) -> CaptionDataset:
        if self.encode is None:
            raise DataError(
                "sentences cannot be numbered: set `encode` to a vocabulary's (data.encode = model.vocabulary.encode)"
            )
        dataset = CaptionDataset(
            self.tables[split],
            encode=self.encode,
            resize=self.resize,
            longest=self.longest,
            sentences=self.sentences if train else VALIDATED,
            drawn=train,
            maps=self._maps_of(split),
            augment=self.augment if train else None,
            seed=self.seed,
            cache=self.cache,
        )
        if dataset.tokens.cut:
            every = int(dataset.tokens.counts.sum())
            rank_zero_info(
                f"{split}: {dataset.tokens.cut} of {every} sentences are longer than {self.longest} words and cut there "
                "(data.longest)"
            )
        return dataset

    def _maps_of(self, split: str) -> np.ndarray | None:
        """The maps of a split's pictures, where maps are given."""
        if self.maps is None:
            return None
        if len(self.resize) == 2:
            raise DataError("maps made beforehand are of pictures of one size: set --data.exact true")
        if split not in self.maps:
            raise DataError(f'no maps of split "{split}" were made, only of {", ".join(self.maps) or "none"}')
        return self.maps[split]


def _moves(augment: Augment) -> bool:
    """Whether it may mirror pictures, or change the size of what is in them."""
    return bool(augment.flip or augment.vertical_flip or augment.short_sides) or tuple(augment.scale) != (1, 1)


def _without_objects(table: Table) -> Table:
    """A table whose pictures have sentences and nothing else."""
    none = np.zeros(0, np.int64)
    return replace(table.select_objects(none), categories=[], category_ids=none, landmarks=None, landmark_names=None)
