"""What all data for Lightning share: tables of splits in, training, validation and test loaders out."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from .batching import frame_multiple, frame_sizes
from .detection import DetectionDataset, Loader, loader_for
from .shapes import MAX_OBJECTS, shapes_table
from .table import DataError, Table
from .transforms import Resize, resize_shape


@dataclass(frozen=True)
class Shapes:
    """How many built-in pictures to draw, for `path: shapes`.

    Attributes:
        train_images: pictures to train on.
        val_images: pictures to validate on; as many others to test on.
        size: their height and width in pixels.
        objects: the most that a picture shows, 1 to 5.
    """

    train_images: int = 2000
    val_images: int = 200
    size: int = 128
    objects: int = MAX_OBJECTS

    def tables(self, *, seed: int, masks: bool = False) -> dict[str, Table]:
        """Their annotations by split, with the objects' outlines if asked for."""
        counts = {"train": self.train_images, "val": self.val_images, "test": self.val_images}
        options = {"size": self.size, "seed": seed, "masks": masks, "most": self.objects}
        return {split: shapes_table(split, number, **options) for split, number in counts.items()}


class PictureData(LightningDataModule):
    """Pictures for Lightning. A subclass says how annotations are read (`_read`) and what becomes of them (`_dataset`).

    Annotations are read when first needed (`tables`, a loader), once.

    Args:
        path: the data set; "shapes" draws pictures instead.
        batch_size: pictures in a batch, of each process.
        resize: what pictures are brought to, see `transforms.resize_shape`.
        num_workers: processes that load pictures; None chooses by the machine's cores.

    Raises:
        DataError: sizes that no picture can have.
    """

    # With fewer validation pictures than processes some process has none; that is no error.
    allow_zero_length_dataloader_with_multiple_devices = True

    def __init__(self, path: str, batch_size: int, *, resize: Resize, num_workers: int | None) -> None:
        super().__init__()
        (min_size, max_size), exact = resize[:2], len(resize) == 3 and resize[2]
        if min_size < 1 or max_size < 1 or (max_size < min_size and not exact):
            raise DataError(f"need 1 <= min_size <= max_size, got min_size {min_size} and max_size {max_size}")
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        if num_workers is not None and num_workers < 0:
            raise DataError(f"num_workers must be 0 or more, or null, got {num_workers}")
        self.path, self.batch_size = path, batch_size
        self.resize: Resize = (min_size, max_size, True) if exact else (min_size, max_size)
        self.num_workers = default_workers() if num_workers is None else num_workers
        self._told = False

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The annotations by split: "train", "val" and, where there is one, "test".

        Raises:
            DataError: they cannot be read or repaired; the message lists everything that is wrong.
        """
        return self._read()

    def _read(self) -> dict[str, Table]:
        raise NotImplementedError

    def _dataset(self, split: str, train: bool) -> DetectionDataset:
        """A split as samples, for training (changed at random) or evaluation."""
        raise NotImplementedError

    def setup(self, stage: str | None = None) -> None:
        """Says once what was read and repaired."""
        if not self._told:
            self._told = True
            self._tell(stage)

    def _tell(self, stage: str | None) -> None:
        for split, table in self.tables.items():
            rank_zero_info(f"{split}: {table.describe()}")
        for table in {id(table): table for table in self.tables.values()}.values():
            if table.problems.counts:
                rank_zero_info(table.problems.summary())

    def train_dataloader(self) -> Loader:
        """Shuffled, changed at random, every batch full; with Lightning's `overfit_batches` fixed and unchanged."""
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0
        return self._loader("train", train=not fixed)

    def val_dataloader(self) -> Loader:
        """Every picture of "val" exactly once over all processes."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Every picture of "test" exactly once over all processes, or of "val" where there is no "test"."""
        return self._loader("test" if "test" in self.tables else "val")

    def _loader(self, split: str, train: bool = False) -> Loader:
        if split not in self.tables:
            raise DataError(f'{self.path} has no split "{split}", only {", ".join(self.tables)}')
        dataset = self._dataset(split, train)
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        return loader_for(
            dataset,
            self.batch_size,
            train=train,
            frames=self.frames if dataset.out_shapes is dataset.shapes else None,
            num_workers=self.num_workers,
            rank=rank,
            world_size=world_size,
        )

    def plain(self, epoch: int) -> bool:
        """Whether an epoch is one of the last, without the strong changes to pictures that those before it had."""
        return False

    def proposed(self, split: str) -> Table:
        """A split's table, with proposals if somebody proposes."""
        return self.tables[split]

    @cached_property
    def frames(self) -> np.ndarray:
        """(F, 2): the sizes that batches are padded to, shared by the splits, so that a network is compiled for few."""
        sizes = np.concatenate([table.sizes for table in self.tables.values()])
        shapes = np.array([resize_shape(*size, *self.resize) for size in sizes.tolist()])
        return frame_sizes(shapes, multiple=frame_multiple(self.resize))


def default_workers() -> int:
    """Processes to load with: nearly all of a GPU's share of the cores; few where the cores also train."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        return max(1, min(16, cores // torch.cuda.device_count() - 1))
    return min(2, cores // 4)
