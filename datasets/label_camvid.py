"""CamVid as the SegNet tutorial keeps it (Badrinarayanan et al., https://arxiv.org/abs/1511.00561): a folder of pictures and
one of masks for each split, `train/` and `trainannot/`, `val/` and `valannot/`, `test/` and `testannot/`.

Masks are numbered 0 to 10, and 11 is void. A file of categories in the folder, see `label_categories`, names others.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from .label_categories import find_legend
from .label_columns import by_stem, mask_table, pair
from .label_legend import Legend
from .table import DataError, Table

CATEGORIES = (
    "sky", "building", "pole", "road", "pavement", "tree", "sign", "fence", "car", "pedestrian", "bicyclist",
)  # fmt: skip
COLOURS = (
    (128, 128, 128), (128, 0, 0), (192, 192, 128), (128, 64, 128), (60, 40, 222), (128, 128, 0), (192, 128, 128),
    (64, 64, 128), (64, 0, 128), (64, 64, 0), (0, 128, 192),
)  # fmt: skip
_SPLITS = ("train", "val", "test", "trainval")


class CamvidMaps:
    """A data set of that layout.

    Attributes:
        splits: the names `read` takes.
    """

    def __init__(self, folder: str | PathLike) -> None:
        self.folder = Path(folder)
        self.splits = [split for split in _SPLITS if is_camvid(self.folder, split)]
        numbered = Legend.of([*CATEGORIES, "void"], [*COLOURS, (0, 0, 0)], coded=False)
        self._legend = find_legend([self.folder]) or numbered

    def read(self, split: str | None = None) -> Table:
        """One split.

        Raises:
            DataError: no such split, or no picture of it has a mask. Smaller faults are in the table's `problems`.
        """
        if split not in self.splits:
            raise DataError(f"{self.folder}: no split {split!r}; there are {', '.join(self.splits)}")
        pictures, masks = (by_stem(self.folder / name) for name in (split, f"{split}annot"))
        stems = sorted({*pictures, *masks})
        where = dict.fromkeys(stems, str(self.folder / split))
        return mask_table(pair(stems, pictures, masks, where), self._legend, str(self.folder / split))


def is_camvid(folder: Path, split: str = "train") -> bool:
    """Whether a folder has this split, a folder of pictures and one of masks."""
    return (folder / split).is_dir() and (folder / f"{split}annot").is_dir()
