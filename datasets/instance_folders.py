"""Pictures with the masks of their objects in picture files, in two layouts, and without a category but one.

    ROOT/images/*.jpg, ROOT/masks/*.png                  a file for each picture, in which every object has its number
    ROOT/train/images/*.jpg, ROOT/train/masks/*.png, ... the same with splits: train; val, valid, validation or dev; test
    ROOT/ID/images/*.png, ROOT/ID/masks/*.png            a file for each object, not 0 where it is (Kaggle's Data Science Bowl)

The folder of numbers may also be called instances/; then they may have 8 bits. In masks/ numbers of 8 bits may as well be
categories, and are taken for objects only where those of some masks are 1, 2, …, n without a gap, n not always the same,
and no file beside them names several categories.

The category is "object", or the only line of a classes.txt in ROOT. Where there are no splits, every fifth picture by
name, from the first, is "test" and the others are "train"; fewer than five are not split.

What is fatal: a mask whose picture is missing, that cannot be read, is not of its picture's size or of a kind that loses
digits; two masks or pictures of one name. What is left out and counted: pictures without a mask, masks of no pixel. Legal:
a file in which there is no object, an object of one pixel or in several pieces.
"""

from __future__ import annotations

from functools import cached_property, partial
from os import PathLike
from pathlib import Path

import numpy as np

from .caption_lines import SPLITS
from .clean import read_lines
from .instance_files import read_ids, tells_objects_apart
from .instance_table import Drawn, Scene, instance_table, require_size
from .label_categories import find_legend
from .label_columns import NO_MASK, Pairs, by_stem, pair
from .mask_encoding import from_ids
from .run_lengths import RunLengths
from .table import DataError, Problems, Table

HELD_OUT = 5  # every so many pictures one is "test", where nobody says
_NUMBERS = ("instances", "masks")
_LOOKED_AT = 10  # masks, to tell numbers of objects from those of categories


class _Layout:
    """What both layouts share: splits, and the category.

    Attributes:
        splits: the names `read` takes; empty for fewer than five pictures that nobody split.
    """

    def __init__(self, folder: str | PathLike) -> None:
        self.folder = Path(folder)
        self.splits = ["train", "test"] if len(self._names) >= HELD_OUT else []

    def read(self, split: str | None = None) -> Table:
        """One split; None for a set without splits. Faults are in the table's `problems`.

        Raises:
            DataError: no such split, or no picture at all.
        """
        if (split is None) != (not self.splits) or (split and split not in self.splits):
            raise DataError(f"{self.folder}: no split {split!r}; there are {', '.join(self.splits) or 'none'}")
        problems = Problems()
        return instance_table(str(self.folder), self.categories, self._scenes(split, problems), problems)

    @property
    def categories(self) -> list[str]:
        """The one there is.

        Raises:
            DataError: classes.txt names several.
        """
        path = self.folder / "classes.txt"
        names = [name for name in read_lines(path) if name] if path.is_file() else ["object"]
        if len(names) != 1:
            raise DataError(
                f"{path}: numbers tell objects apart, not categories: name one, got {len(names)}; masks of categories have 8 bits"
            )
        return names

    @property
    def _names(self) -> list[str]:
        """What the pictures that nobody split are called, sorted."""
        raise NotImplementedError

    def _scenes(self, split: str | None, problems: Problems) -> list[Scene]:
        raise NotImplementedError

    def _chosen(self, split: str | None) -> list[str]:
        if split is None:
            return self._names
        return [name for row, name in enumerate(self._names) if (row % HELD_OUT == 0) == (split == "test")]


class InstanceMaps(_Layout):
    """A data set of one file of numbers for each picture."""

    def __init__(self, folder: str | PathLike) -> None:
        self._folders = _folders(Path(folder))
        super().__init__(folder)
        if "" not in self._folders:
            self.splits = list(self._folders)

    @cached_property
    def _names(self) -> list[str]:
        if "" not in self._folders:
            return []
        return sorted(by_stem(self._folders[""][0]).keys() | by_stem(self._folders[""][1]).keys())

    def _scenes(self, split: str | None, problems: Problems) -> list[Scene]:
        pictures, masks = map(by_stem, self._folders[split if split in self._folders else ""])
        stems = sorted({*pictures, *masks}) if split in self._folders else self._chosen(split)
        pairs: Pairs = pair(stems, pictures, masks, dict.fromkeys(stems, str(self.folder)))
        problems.merge(pairs.problems)
        return [Scene(one, partial(_numbered, mask)) for one, mask in zip(pairs.pictures, pairs.masks, strict=True)]


def _numbered(path: str, size: tuple[int, int], problems: Problems) -> Drawn:
    picture = read_ids(path)
    require_size(path, picture.shape, size)
    ids, masks = from_ids(picture)
    return Drawn(masks, np.zeros(len(ids), np.int64), [f"{path}: object {number}" for number in ids.tolist()])


def is_instance_maps(folder: Path) -> bool:
    """Whether a folder is of the first layout, going by some of its masks and by whether a file names several categories."""
    folders = _folders(folder).values()
    named = bool(folders) and _names_categories(folder)
    return any(_number_objects(pictures, masks, named=named) for pictures, masks in folders)


def _names_categories(folder: Path) -> bool:
    try:
        legend = find_legend([folder])
    except DataError:
        return True
    return legend is not None and len(legend.categories) > 1


def _folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """The folders of pictures and of masks of each split; under "" where there are no splits."""
    found = {}
    for name, split in {**SPLITS, "": ""}.items():
        masks = next((root / name / one for one in _NUMBERS if (root / name / one).is_dir()), None)
        if masks is not None and (root / name / "images").is_dir() and (name or not found):
            found.setdefault(split, (root / name / "images", masks))
    return found


def _number_objects(pictures: Path, masks: Path, *, named: bool) -> bool:
    stems = by_stem(masks)
    files = [stems[stem][0] for stem in sorted(stems.keys() & by_stem(pictures).keys())]
    if not files or masks.name == "instances":
        return bool(files)
    some = files[:: max(1, len(files) // _LOOKED_AT)]
    if named:  # one mask of 16 bits among others is a slip
        return all(map(tells_objects_apart, some))
    if any(map(tells_objects_apart, some)):
        return True
    try:
        numbers = [np.unique(read_ids(file)) for file in some]
    except DataError:
        return False
    counts = {int(one[-1]) for one in numbers if len(one)}
    return len(counts) > 1 and all(len(one[one > 0]) == one[-1] for one in numbers if len(one))


class InstanceFiles(_Layout):
    """A data set of one file for each object."""

    @cached_property
    def _names(self) -> list[str]:
        return sorted(child.name for child in self.folder.iterdir() if (child / "images").is_dir())

    def _scenes(self, split: str | None, problems: Problems) -> list[Scene]:
        scenes = []
        for name in self._chosen(split):
            pictures = _files(self.folder / name / "images")
            masks = _files(self.folder / name / "masks")
            if len(pictures) != 1:
                where = f"{self.folder / name / 'images'}: {len(pictures)} pictures"
                problems.add("folder of one picture holds none or several", where, fatal=True)
            elif not masks:
                problems.add(NO_MASK, pictures[0])
            else:
                scenes.append(Scene(pictures[0], partial(_each, masks)))
        return scenes


def _each(paths: list[str], size: tuple[int, int], problems: Problems) -> Drawn:
    masks = []
    for path in paths:
        picture = read_ids(path) != 0
        require_size(path, picture.shape, size)
        ids, drawn = from_ids(picture)
        none = RunLengths(np.zeros(0, np.int64), np.zeros(2, np.int64), np.array([picture.shape]))
        masks.append(drawn if len(ids) else none)
    return Drawn(RunLengths.concatenate(masks), np.zeros(len(paths), np.int64), paths)


def is_instance_files(folder: Path) -> bool:
    """Whether a folder is of the second layout, going by the first of its folders that holds pictures."""
    if (folder / "images").is_dir():
        return False
    children = (child for child in sorted(folder.iterdir()) if (child / "images").is_dir())
    first = next(children, None)
    if first is None or first.name in SPLITS or not (first / "masks").is_dir():
        return False
    return len(_files(first / "images")) == 1


def _files(folder: Path) -> list[str]:
    return [path for paths in by_stem(folder).values() for path in paths] if folder.is_dir() else []
