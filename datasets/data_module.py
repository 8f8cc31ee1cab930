"""Detection data for Lightning: one path in, training, validation and test loaders out."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from .augment import Augment
from .batching import frame_multiple, frame_sizes
from .crops import ScaleCrop
from .detection import DetectionDataset, Loader, loader_for
from .mixing import Mixing
from .proposal_files import read_proposals
from .proposals import Proposer
from .propose import propose
from .readers import read_splits
from .shapes import shapes_table
from .table import DataError, Table
from .transforms import Resize, resize_shape


@dataclass(frozen=True)
class Shapes:
    """How many built-in pictures to draw, for `path: shapes`.

    Attributes:
        train_images: pictures to train on.
        val_images: pictures to validate on; as many others to test on.
        size: their height and width in pixels.
    """

    train_images: int = 2000
    val_images: int = 200
    size: int = 128


_AUGMENT, _SHAPES = Augment(), Shapes()


class DetectionData(LightningDataModule):
    """Pictures with boxes, from the built-in shapes or a folder or file in any known format.

    Annotations are read when first needed (`categories`, `tables`, a loader), once; proposals when a split's loader is.

    Attributes:
        proposer: of the model that is trained on these pictures, where it has one; `sightline train` sets it.
    """

    # With fewer validation pictures than processes some process has none; that is no error.
    allow_zero_length_dataloader_with_multiple_devices = True

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
        augment: Augment | None = _AUGMENT,
        crop: ScaleCrop | None = None,
        mixing: Mixing | None = None,
        plain_epochs: int = 15,
        masks: int | None = None,
        seed: int = 0,
        cache: bool = False,
        largest: int | None = None,
        shapes: Shapes = _SHAPES,
        proposals: str | None = None,
        proposal_cache: str | None = None,
    ) -> None:
        """
        Args:
            path: the data set, a folder or file that `sightline check` understands; "shapes" draws pictures instead.
            batch_size: pictures in a batch, of each process.
            train_split: what the data set calls the part to train on, e.g. "trainval"; null finds it.
            val_split: what it calls the part to validate on, e.g. "test"; null finds it or sets pictures aside.
            min_size: length in pixels that the short side of a picture is brought to ...
            max_size: ... unless the long side would grow beyond this.
            exact: bring every picture to min_size x max_size (height x width) instead, whatever its shape.
            num_workers: processes that load pictures; 0 loads in the main process, null chooses by the machine's cores.
            augment: random changes to training pictures; null for none.
            crop: cut training pictures to one size at random scales and places, as classifiers are trained, instead of
                `augment`.
            mixing: mosaic, mixup, copy-paste and more instead of `augment`, up to the last epochs; null for none.
            plain_epochs: how many epochs at the end train without `mixing`, on pictures changed by `augment` alone. They
                are counted back from the trainer's max_epochs; without that there are none.
            masks: give every object its mask, of so many cells along each side of its box; null for boxes only.
            seed: of the order of pictures, of their random changes, and of the built-in pictures.
            cache: keep all decoded, resized pictures in shared memory; for small sets.
            largest: keep only so many of the largest objects of every picture, and leave out pictures without any: for
                models that give a fixed number of answers; null keeps all.
            shapes: what to draw when `path` is "shapes".
            proposals: boxes made elsewhere, for detectors that do not propose themselves: a file, or a folder of one for each
                split, that `datasets.proposal_files` reads; null lets the model's proposer make them.
            proposal_cache: the folder where that proposer's boxes are kept; null keeps them beside the data, or in
                $SIGHTLINE_CACHE.
        """
        super().__init__()
        if min_size < 1 or max_size < 1 or (max_size < min_size and not exact):
            raise DataError(f"need 1 <= min_size <= max_size, got min_size {min_size} and max_size {max_size}")
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}")
        self.path, self.batch_size = path, batch_size
        self.resize: Resize = (min_size, max_size, True) if exact else (min_size, max_size)
        self.num_workers = default_workers() if num_workers is None else num_workers
        self.augment, self.seed, self.cache, self.shapes = crop or augment, seed, cache, shapes
        if crop is not None and exact and tuple(crop.size) != (min_size, max_size):
            raise DataError(
                f"training pictures would be cut to {crop.size[0]}x{crop.size[1]} (data.crop.size) and all others brought to "
                f"{min_size}x{max_size}: set --data.crop.size [{min_size},{max_size}], and --data.crop.scale to go with it"
            )
        longest = max(getattr(augment, "short_sides", None) or [0])
        if crop is None and longest > min_size:
            raise DataError(
                f"training pictures of min_size {min_size} cannot be shrunk to a short side of {longest} pixels "
                f"(data.augment.short_sides): set --data.min_size {longest}, and --data.max_size to go with it"
            )
        if mixing is not None and (crop is not None or proposals is not None):
            other = "crop" if crop is not None else "proposals"
            raise DataError(f"data.mixing and data.{other} do not go together: set one of them to null")
        if plain_epochs < 0:
            raise DataError(f"plain_epochs must be at least 0, got {plain_epochs}")
        if masks is not None and masks < 1:
            raise DataError(f"masks must be at least 1 cell along a box's side, or null, got {masks}")
        self.mixing, self.plain_epochs, self.masks = mixing, plain_epochs, masks
        if largest is not None and largest < 1:
            raise DataError(f"largest must be at least 1 object a picture, got {largest}")
        self.largest = largest
        self.train_split, self.val_split = train_split, val_split
        self.proposer: Proposer | None = None
        self.proposals, self.proposal_cache = proposals, proposal_cache
        self._told = False

    @cached_property
    def tables(self) -> dict[str, Table]:
        """The annotations by split: "train", "val" and, where there is one, "test".

        Raises:
            DataError: they cannot be read or repaired; the message lists everything that is wrong.
        """
        tables = self._read()
        if self.largest is None:
            return tables
        kept = {id(table): table.largest(self.largest) for table in tables.values()}  # one table may be two splits
        return {name: kept[id(table)] for name, table in tables.items()}

    def _read(self) -> dict[str, Table]:
        if self.path == "shapes":
            if self.train_split or self.val_split:
                raise DataError("the built-in shapes have fixed splits; leave train_split and val_split out")
            counts = {"train": self.shapes.train_images, "val": self.shapes.val_images, "test": self.shapes.val_images}
            options = {"size": self.shapes.size, "seed": self.seed, "masks": self.masks is not None}
            return {split: shapes_table(split, n, **options) for split, n in counts.items()}
        return read_splits(self.path, train=self.train_split, val=self.val_split)

    @property
    def categories(self) -> list[str]:
        """The names of the classes; an object's label indexes this list."""
        return next(iter(self.tables.values())).categories

    @property
    def num_classes(self) -> int:
        """How many classes there are, without any background."""
        return len(self.categories)

    def setup(self, stage: str | None = None) -> None:
        """Says once what was read and repaired, and whether `mixing` will never happen."""
        if self._told:
            return
        self._told = True
        for split, table in self.tables.items():
            rank_zero_info(f"{split}: {table.describe()}")
        for table in {id(table): table for table in self.tables.values()}.values():
            if table.problems.counts:
                rank_zero_info(table.problems.summary())
        if stage == "fit" and self.plain(0):
            rank_zero_info(
                f"warning: nothing is mixed: the last {self.plain_epochs} epochs are plain (data.plain_epochs), and there are "
                f"{self.trainer.max_epochs} (trainer.max_epochs)"
            )

    def train_dataloader(self) -> Loader:
        """Shuffled, changed at random, every batch full; with Lightning's `overfit_batches` fixed and unchanged."""
        fixed = self.trainer is not None and self.trainer.overfit_batches > 0
        return self._loader("train", train=not fixed)

    def plain(self, epoch: int) -> bool:
        """Whether an epoch is one of the last, in which the `mixing` that there is does not happen."""
        first = self._first_plain()
        return self.mixing is not None and first is not None and epoch >= first

    def _first_plain(self) -> int | None:
        """The epoch from which on nothing is mixed; None where nobody knows which is the last."""
        epochs = self.trainer.max_epochs if self.trainer is not None else None
        return None if epochs is None or epochs < 0 else epochs - self.plain_epochs

    def val_dataloader(self) -> Loader:
        """Every picture of "val" exactly once over all processes."""
        return self._loader("val")

    def test_dataloader(self) -> Loader:
        """Every picture of "test" exactly once over all processes, or of "val" where there is no "test"."""
        return self._loader("test" if "test" in self.tables else "val")

    def _loader(self, split: str, train: bool = False) -> Loader:
        if split not in self.tables:
            raise DataError(f'{self.path} has no split "{split}", only {", ".join(self.tables)}')
        dataset = DetectionDataset(
            self.proposed(split),
            resize=self.resize,
            augment=self.augment if train else None,
            mixing=self.mixing if train else None,
            first_plain=self._first_plain(),
            masks=self.masks,
            seed=self.seed,
            cache=self.cache,
        )
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

    def proposed(self, split: str) -> Table:
        """A split's table, with proposals if somebody proposes: made when first asked for. All processes of a training do so.

        Raises:
            DataError: as `read_proposals` and `propose` do.
        """
        table = self.tables[split]
        if table.regions is None and self.proposals is not None:
            table = read_proposals(self.proposals, table)
            limit = None if self.proposer is None else self.proposer.limit
            self.tables[split] = table if limit is None else replace(table, regions=table.regions.best(limit))
        elif table.regions is None and self.proposer is not None:
            self.tables[split] = propose(
                table,
                self.proposer,
                cache=self.proposal_cache,
                num_workers=self.num_workers,
                progress=rank_zero_only.rank == 0,
            )
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
