"""Pictures with a category for every pixel, for Lightning: one path in, training, validation and test loaders out."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from .label_files import Colour
from .label_maps import read_label_maps
from .label_objects import semantic_table
from .picture_data import PictureData, Shapes
from .segmentation_augment import SegmentationAugment
from .segmentation_dataset import SegmentationDataset, annotated_map
from .table import DataError, Table

_AUGMENT, _SHAPES = SegmentationAugment(), Shapes()


class SegmentationData(PictureData):
    """Pictures with label maps, from the built-in shapes or a folder or file that `read_label_maps` understands."""

    def __init__(
        self,
        path: str = "shapes",
        batch_size: int = 16,
        *,
        train_split: str | None = None,
        val_split: str | None = None,
        min_size: int = 128,
        max_size: int = 256,
        exact: bool = False,
        num_workers: int | None = None,
        augment: SegmentationAugment | None = _AUGMENT,
        seed: int = 0,
        cache: bool = False,
        shapes: Shapes = _SHAPES,
    ) -> None:
        """
        Args:
            path: the data set, a folder or file that `sightline check` understands: CamVid, Pascal VOC, folders images/ and
                masks/, COCO's json; "shapes" draws pictures instead.
            batch_size: pictures in a batch, of each process.
            train_split: what the data set calls the part to train on, e.g. "trainval"; null finds it.
            val_split: what it calls the part to validate on, e.g. "test"; null finds it or sets pictures aside.
            min_size: length in pixels that the short side of a picture is brought to ...
            max_size: ... unless the long side would grow beyond this.
            exact: bring every picture to min_size x max_size (height x width) instead, whatever its shape.
            num_workers: processes that load pictures; 0 loads in the main process, null chooses by the machine's cores.
            augment: random changes to training pictures; null for none.
            seed: of the order of pictures, of their random changes, and of the built-in pictures.
            cache: keep all decoded pictures and label maps in shared memory; for small sets.
            shapes: what to draw when `path` is "shapes".
        """
        super().__init__(path, batch_size, resize=(min_size, max_size, exact), num_workers=num_workers)
        self.augment, self.seed, self.cache, self.shapes = augment, seed, cache, shapes
        self.train_split, self.val_split = train_split, val_split

    def _read(self) -> dict[str, Table]:
        if self.path != "shapes":
            return read_label_maps(self.path, train=self.train_split, val=self.val_split)
        if self.train_split or self.val_split:
            raise DataError("the built-in shapes have fixed splits; leave train_split and val_split out")
        tables = self.shapes.tables(seed=self.seed, masks=True)
        return {split: semantic_table(table, f"shapes, {split}") for split, table in tables.items()}

    @property
    def categories(self) -> list[str]:
        """The names of the categories, the background among them where there is one; a label indexes this list."""
        return self._any.categories

    @property
    def colours(self) -> list[Colour] | None:
        """The colours in which the data draw the categories; None where they say nothing."""
        return self._any.colours

    @property
    def num_classes(self) -> int:
        """How many categories there are, with any background."""
        return len(self.categories)

    @property
    def _any(self) -> Table:
        return next(iter(self.tables.values()))

    def pixel_counts(self) -> tuple[np.ndarray, np.ndarray]:
        """How much there is of each category in the training pictures, whose maps are all read; void counts nowhere.

        Median-frequency weights are the median of counts / present, divided by counts / present (Eigen and Fergus 2015,
        https://arxiv.org/abs/1411.4734, section 6.3.2).

        Returns:
            counts: (C,) int64, pixels of each category.
            present: (C,) int64, all pixels but void of the pictures in which it appears.

        Raises:
            DataError: a map cannot be read.
        """
        return count_pixels(self.tables["train"])

    def _dataset(self, split: str, train: bool) -> SegmentationDataset:
        return SegmentationDataset(
            self.tables[split],
            resize=self.resize,
            augment=self.augment if train else None,
            seed=self.seed,
            cache=self.cache,
        )


def count_pixels(table: Table) -> tuple[np.ndarray, np.ndarray]:
    """See `SegmentationData.pixel_counts`."""
    number = len(table.categories)

    def count(row: int) -> np.ndarray:
        return np.bincount(annotated_map(table, row).ravel() + 1, minlength=number + 1)[1:]

    counts, present = np.zeros(number, np.int64), np.zeros(number, np.int64)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for one in pool.map(count, range(len(table))):
            counts += one
            present += np.where(one > 0, one.sum(), 0)
    return counts, present
