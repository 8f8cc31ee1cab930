"""What a network makes of every picture of a data set, in half precision, in a file that is filled picture by picture.

Such numbers live in a file that is mapped into memory, never in memory as a whole; float16 is half the disk of float32, and a
rounding of 2^-11 of a number's size, as that of autocast to half precision. An interrupted run goes on with the pictures that
are missing.

Letters: I pictures, B of a batch, R rows of all pictures.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from torch import Tensor
from tqdm import tqdm

from ..datasets.detection import Loader
from ..datasets.structures import Batch
from ..datasets.table import DataError, Table


class HalfFile:
    """Rows of float16, some for each picture, in a file that gets its name once all are there; beside it, which are done.

    Args:
        path: of the finished file, a `.npy`; its folder is made.
        table: I pictures.
        offsets: (I + 1,), picture i's rows are offsets[i] to offsets[i + 1].
        shape: of one row.
        relief: how the file could be smaller, or what does without it: "take fewer proposals a picture".

    Raises:
        DataError: the disk has no room.
    """

    def __init__(self, path: Path, table: Table, offsets: np.ndarray, shape: tuple[int, ...], *, relief: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.table, self.offsets = path, table, offsets
        self.partial, self.marks = path.with_suffix(".partial"), path.with_suffix(".done")
        if not (self.partial.exists() and self.marks.exists()):
            self._begin((int(offsets[-1]), *shape), relief)
        self.rows = np.lib.format.open_memmap(self.partial, mode="r+")
        self.done = np.lib.format.open_memmap(self.marks, mode="r+")

    def _begin(self, shape: tuple[int, ...], relief: str) -> None:
        folder = self.path.parent
        needed, free = 2 * int(np.prod(shape)), shutil.disk_usage(folder).free
        if needed > free:
            raise DataError(
                f"the features of {len(self.table)} pictures take {needed / 1e9:.1f} GB and {folder} has {free / 1e9:.1f} GB "
                f"free: name another folder, or {relief}"
            )
        np.lib.format.open_memmap(self.partial, mode="w+", dtype=np.float16, shape=shape)
        np.lib.format.open_memmap(self.marks, mode="w+", dtype=np.bool_, shape=(len(self.table),))

    def complete(
        self, loader_of: Callable[[np.ndarray], Loader], compute: Callable[[Batch], Tensor], *, progress: bool
    ) -> None:
        """Computes what is missing, then gives the file its name.

        Args:
            loader_of: makes the loader of some of the pictures, given by their rows in the table.
            compute: a batch to (B, K, ...) on the CPU, K rows of each picture or more, of which the first are kept.
            progress: show a bar.

        Raises:
            DataError: a picture cannot be read, or a number is too large for half precision.
        """
        missing = np.flatnonzero(~self.done & (np.diff(self.offsets) > 0))
        places = {int(self.table.image_ids[row]): int(row) for row in missing}
        batches = loader_of(missing) if len(missing) else []
        for batch in tqdm(batches, "features", unit="batch", disable=None if progress else True, leave=False):
            self._put([places[info.id] for info in batch.infos], compute(batch).numpy())
        self.rows.flush()
        if self.partial.exists():  # another process may have been faster
            self.partial.replace(self.path)
        self.marks.unlink(missing_ok=True)

    def _put(self, pictures: list[int], values: np.ndarray) -> None:
        for picture, rows in zip(pictures, values, strict=True):
            start, end = self.offsets[picture], self.offsets[picture + 1]
            with np.errstate(over="ignore"):
                self.rows[start:end] = rows[: end - start]
            if not np.isfinite(self.rows[start:end]).all():
                raise DataError(
                    f"{self.table.paths[picture]}: the network's features are not finite in half precision (largest "
                    f"{np.abs(rows).max():.3g}): its weights or its normalisation are not what it was trained with"
                )
        self.rows.flush()  # before the mark, so that what is marked is there
        self.done[pictures] = True
