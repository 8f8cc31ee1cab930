"""Pictures in one folder and masks of the same names in another, with or without splits.

    ROOT/images/*.jpg, ROOT/masks/*.png                    the masks' folder may also be labels/ or annotations/
    ROOT/train/images/*.jpg, ROOT/train/masks/*.png, ...   splits: train; val, valid, validation or dev; test
    ROOT/images/train/*.jpg, ROOT/masks/train/*.png, ...

Folders below these are walked through. A file of categories in ROOT or beside the masks, see `label_categories`, says what
numbers and colours stand for; without one, categories are numbered from what stands in the masks, which are all read.
"""

from __future__ import annotations

from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from .caption_lines import SPLITS
from .instance_files import tells_objects_apart
from .label_categories import find_legend
from .label_columns import by_stem, mask_table, pair
from .label_legend import Legend, found_legend
from .table import DataError, Table

PICTURES, MASKS = "images", ("masks", "labels", "annotations")


class _Folders(NamedTuple):
    pictures: Path
    masks: Path


class FolderMaps:
    """A data set of that layout.

    Attributes:
        splits: the names `read` takes; empty where the set has none.
    """

    def __init__(self, folder: str | PathLike) -> None:
        self.folder = Path(folder)
        self._folders = _split_folders(self.folder)
        self.splits = [split for split in self._folders if split]

    def read(self, split: str | None = None) -> Table:
        """One split; None for a set without splits.

        Raises:
            DataError: no such split, no picture of it has a mask, or the categories cannot be told. Smaller faults are in
                the table's `problems`.
        """
        if (split or "") not in self._folders:
            raise DataError(f"{self.folder}: no split {split!r}; there are {', '.join(self.splits) or 'none'}")
        folders = self._folders[split or ""]
        pictures, masks = by_stem(folders.pictures), by_stem(folders.masks)
        stems = sorted({*pictures, *masks})
        pairs = pair(stems, pictures, masks, dict.fromkeys(stems, str(folders.pictures)))
        if self._given is None and split == next(iter(self.splits), None):
            names = ", ".join(self._legend.categories[:8]) + ", …" * (len(self._legend.categories) > 8)
            pairs.problems.warn("no file names the categories (numbered from what is found)", f"{self.folder}: {names}")
        return mask_table(pairs, self._legend, str(folders.masks))

    @cached_property
    def _given(self) -> Legend | None:
        beside = [place for folders in self._folders.values() for place in (folders.masks.parent, folders.masks)]
        return find_legend(dict.fromkeys([self.folder, *beside]))

    @cached_property
    def _legend(self) -> Legend:
        if self._given is not None:
            return self._given
        files = [
            file for folders in self._folders.values() for paths in by_stem(folders.masks).values() for file in paths
        ]
        return found_legend(files, str(self.folder))


def is_folder_maps(folder: Path) -> bool:
    """Whether a folder is of this layout: some picture has a mask, and not one of 16 bits, which tells objects apart."""
    for folders in _split_folders(folder).values():
        pictures = by_stem(folders.pictures)
        for stem, masks in by_stem(folders.masks).items():
            if stem in pictures:
                return not tells_objects_apart(masks[0])
    return False


def _split_folders(root: Path) -> dict[str, _Folders]:
    """The folders of each split; under "" where there are no splits."""
    found: dict[str, _Folders] = {}
    for name, split in {**SPLITS, "": ""}.items():
        if not name and found:
            break
        places = {_Folders(root / name / PICTURES, root / name / masks) for masks in MASKS}
        places |= {_Folders(root / PICTURES / name, root / masks / name) for masks in MASKS}
        for one in sorted(places):
            if one.pictures.is_dir() and by_stem(one.masks) and found.setdefault(split, one) != one:
                both = f"{found[split].masks} and {one.masks}"
                raise DataError(f"{both} both hold masks{f' of the {split!r} split' * bool(split)}; keep one")
    return found
