"""Pascal VOC's masks of objects (http://host.robots.ox.ac.uk/pascal/VOC): `JPEGImages/`, PNGs in `SegmentationObject/`, in
which objects are numbered and 255 is void, and lists in `ImageSets/Segmentation/`.

An object's category is that of most of its pixels in `SegmentationClass/`, VOC's twenty or those of a `classes.txt`. Without
these masks all are of one category, "object". Without lists all masks are one split. A folder that has boxes in
`Annotations/`, too, is read for these: give its `SegmentationObject/` for the masks.

What is fatal: a listed picture or a mask of it that is missing, unreadable or not of the picture's size, a category's number
that has no name. What is left out and counted: objects that are void or background throughout in `SegmentationClass/`.
"""

from __future__ import annotations

from functools import cached_property, partial
from os import PathLike
from pathlib import Path

import numpy as np

from .clean import UNKNOWN_CATEGORY, read_lines
from .instance_files import read_ids
from .instance_table import Drawn, Scene, instance_table, require_size
from .label_columns import by_stem, pair
from .label_files import VOID
from .mask_encoding import from_ids
from .table import DataError, Problems, Table
from .voc import CATEGORIES


class VocInstances:
    """A data set of that layout, given its folder or its `SegmentationObject/`.

    Attributes:
        splits: the names `read` takes: the lists of which any picture has a mask; empty without lists.
    """

    def __init__(self, folder: str | PathLike) -> None:
        folder = Path(folder)
        self.folder = folder.parent if folder.name == "SegmentationObject" else folder
        lists = sorted((self.folder / "ImageSets" / "Segmentation").glob("[!.]*.txt"))
        self._lists = {path.stem: path for path in lists if any(stem in self._masks for stem in _stems(path))}
        self.splits = list(self._lists)

    def read(self, split: str | None = None) -> Table:
        """One split, or all masks where there are no lists. Faults are in the table's `problems`.

        Raises:
            DataError: no such split, or no picture of it.
        """
        if (split is None) != (not self.splits) or (split and split not in self.splits):
            raise DataError(f"{self.folder}: no split {split!r}; there are {', '.join(self.splits) or 'none'}")
        path = self._lists[split] if split else self.folder / "SegmentationObject"
        stems = list(_stems(path) if split else self._masks)
        pairs = pair(stems, by_stem(self.folder / "JPEGImages"), self._masks, dict.fromkeys(stems, str(path)))
        classes = by_stem(self.folder / "SegmentationClass") if self._has_classes else None
        scenes = [
            Scene(picture, partial(_drawn, mask, None if classes is None else classes.get(Path(mask).stem, [""])[0],
                                   len(self.categories)))
            for picture, mask in zip(pairs.pictures, pairs.masks, strict=True)
        ]  # fmt: skip
        return instance_table(str(path), self.categories, scenes, pairs.problems)

    @cached_property
    def categories(self) -> list[str]:
        """C names."""
        if (self.folder / "classes.txt").is_file():
            return [name for name in read_lines(self.folder / "classes.txt") if name]
        return list(CATEGORIES) if self._has_classes else ["object"]

    @property
    def _has_classes(self) -> bool:
        return (self.folder / "SegmentationClass").is_dir()

    @cached_property
    def _masks(self) -> dict[str, list[str]]:
        return by_stem(self.folder / "SegmentationObject")


def is_voc_instances(folder: Path) -> bool:
    """Whether a folder is of this layout, or the `SegmentationObject/` of one."""
    root = folder.parent if folder.name == "SegmentationObject" else folder
    return all((root / name).is_dir() for name in ("JPEGImages", "SegmentationObject"))


def _stems(path: Path) -> dict[str, None]:
    return dict.fromkeys(line.split()[0] for line in read_lines(path) if line)


def _drawn(path: str, class_path: str | None, count: int, size: tuple[int, int], problems: Problems) -> Drawn:
    """The objects of a mask file, with their categories where there is a file of these, `count` in all."""
    numbers = read_ids(path)
    require_size(path, numbers.shape, size)
    ids, masks = from_ids(np.where(numbers == VOID, 0, numbers))
    where = [f"{path}: object {number}" for number in ids.tolist()]
    if class_path is None:
        return Drawn(masks, np.zeros(len(ids), np.int64), where)
    if not class_path:
        raise DataError(f"{path}: there is no mask of that name in SegmentationClass/, which says what its objects are")
    classes = read_ids(class_path)
    require_size(class_path, classes.shape, size)
    if classes.max(initial=0) > VOID:
        raise DataError(
            f"{class_path}: colours, or numbers beyond {VOID}: save the categories' numbers as palette or gray PNG"
        )
    labels = _commonest(np.searchsorted(ids, numbers), np.isin(numbers, ids) & (classes != VOID), classes, len(ids)) - 1
    for k in np.flatnonzero(labels >= count):
        raise DataError(f"{where[k]}: {UNKNOWN_CATEGORY}: number {labels[k] + 1} in {class_path}, there are {count}")
    problems.add_rows("object without a category (dropped)", np.flatnonzero(labels < 0), where.__getitem__)
    keep = np.flatnonzero(labels >= 0)
    return Drawn(masks.select(keep), labels[keep], [where[k] for k in keep])


def _commonest(rows: np.ndarray, counted: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """(N,) the number of the category that most counted pixels of each of N objects are of; 0 for none."""
    votes = np.zeros((count, VOID + 1), np.int64)
    np.add.at(votes, (rows[counted], classes[counted]), 1)
    votes[:, 0] = 0
    return votes.argmax(axis=1)
