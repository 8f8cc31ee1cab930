"""Detection data for Lightning: one path in, training, validation and test loaders out."""

from __future__ import annotations

from dataclasses import replace

from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from .augment import Augment
from .crops import ScaleCrop
from .detection import DetectionDataset
from .mixing import Mixing
from .picture_data import PictureData, Shapes
from .proposal_files import read_proposals
from .proposals import Proposer
from .propose import propose
from .readers import read_splits
from .table import DataError, Table

_AUGMENT, _SHAPES = Augment(), Shapes()


class DetectionData(PictureData):
    """Pictures with boxes, from the built-in shapes or a folder or file in any known format.

    Annotations are read when first needed (`categories`, `tables`, a loader), once; proposals when a split's loader is.

    Attributes:
        proposer: of the model that is trained on these pictures, where it has one; `sightline train` sets it.
    """

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
        super().__init__(path, batch_size, resize=(min_size, max_size, exact), num_workers=num_workers)
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

    def _read(self) -> dict[str, Table]:
        tables = self._read_whole()
        if self.largest is None:
            return tables
        kept = {id(table): table.largest(self.largest) for table in tables.values()}  # one table may be two splits
        return {name: kept[id(table)] for name, table in tables.items()}

    def _read_whole(self) -> dict[str, Table]:
        if self.path == "shapes":
            if self.train_split or self.val_split:
                raise DataError("the built-in shapes have fixed splits; leave train_split and val_split out")
            return self.shapes.tables(seed=self.seed, masks=self.masks is not None)
        return read_splits(self.path, train=self.train_split, val=self.val_split)

    @property
    def categories(self) -> list[str]:
        """The names of the classes; an object's label indexes this list."""
        return next(iter(self.tables.values())).categories

    @property
    def num_classes(self) -> int:
        """How many classes there are, without any background."""
        return len(self.categories)

    def _tell(self, stage: str | None) -> None:
        """Also says whether `mixing` will never happen."""
        super()._tell(stage)
        if stage == "fit" and self.plain(0):
            rank_zero_info(
                f"warning: nothing is mixed: the last {self.plain_epochs} epochs are plain (data.plain_epochs), and there are "
                f"{self.trainer.max_epochs} (trainer.max_epochs)"
            )

    def plain(self, epoch: int) -> bool:
        """Whether an epoch is one of the last, in which the `mixing` that there is does not happen."""
        first = self._first_plain()
        return self.mixing is not None and first is not None and epoch >= first

    def _first_plain(self) -> int | None:
        """The epoch from which on nothing is mixed; None where nobody knows which is the last."""
        epochs = self.trainer.max_epochs if self.trainer is not None else None
        return None if epochs is None or epochs < 0 else epochs - self.plain_epochs

    def _dataset(self, split: str, train: bool) -> DetectionDataset:
        return DetectionDataset(
            self.proposed(split),
            resize=self.resize,
            augment=self.augment if train else None,
            mixing=self.mixing if train else None,
            first_plain=self._first_plain(),
            masks=self.masks,
            seed=self.seed,
            cache=self.cache,
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
