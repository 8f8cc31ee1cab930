"""Class folders, read and written: one folder a class, its pictures inside, as ImageNet is kept.

    ROOT/train/CLASS/*.jpg, ROOT/val/CLASS/*.jpg, ...     with splits (train; val, valid, validation or dev; test)
    ROOT/CLASS/*.jpg                                      without
    ROOT/*.jpg or ROOT/train/*.jpg, ...                   pictures without any class: no categories, no objects

A class that holds for a whole picture is an object whose box is the whole picture. Classes are sorted by name; those of
the training split are the data set's, since a network learns no others.

What is fatal: a class that the training split lacks, a picture that cannot be read. What is left out and counted: class
folders without pictures, pictures outside any class folder, a split without class folders beside splits with them. What
is only warned of: files that are no pictures, folders below a class's (their pictures count with the class), folders
beside the splits, a data set of a single class. Names that begin with a dot are passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .clean import TOLERANCE, UNKNOWN_CATEGORY, Objects, Pictures, clean_table, measure
from .detection import read_picture
from .images import is_picture, write_image
from .table import DataError, Problems, Table, nearest

_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "dev": "val", "test": "test"}
# Folders of other data sets' layouts, which would pass for classes.
_OTHERS = frozenset({"annotations", "images", "imagesets", "jpegimages", "labels", "masks"})


class FolderSource:
    """A data set of class folders, or of pictures without classes.

    Attributes:
        splits: the names `read` takes; empty where the set has no splits.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.folder = Path(path)
        self._folders = _split_folders(self.folder)
        if not self._folders:
            raise DataError(f"{path}: neither class folders (CLASS/*.jpg or train/CLASS/*.jpg) nor pictures")
        labelled = [split for split, folder in self._folders.items() if _class_folders(folder)]
        self._unlabelled = [split for split in self._folders if labelled and split not in labelled]
        if "train" in self._unlabelled:
            raise DataError(f"{self._folders['train']}: no class folders, but {self._folders[labelled[0]]} has some")
        self.splits = [split for split in self._folders if split and split not in self._unlabelled]

    def read(self, split: str | None = None) -> Table:
        """One split; None for a set without splits. Smaller faults are in the table's `problems`.

        Raises:
            DataError: no such split, or not one picture of a known class in it.
        """
        if (split or "") not in (self.splits or [""]):
            raise DataError(f"{self.folder}: no split {split!r}; there are {', '.join(self.splits) or 'none'}")
        listing, problems = self._listings[split or ""], Problems()
        self._report(split, listing, problems)
        rows = [(label, path) for label, name in enumerate(self.categories) for path in listing.classes.get(name, ())]
        paths = [path for _, path in rows] if self.categories else listing.loose
        if not paths:
            raise DataError(f"{self._folders[split or '']}: no picture of a known class\n{problems.summary()}")
        sizes, count = measure(paths, problems), len(rows)
        boxes = np.concatenate([np.zeros((count, 2)), sizes[:count, ::-1]], axis=1)
        labels = np.array([label for label, _ in rows], np.int64)
        objects = Objects(np.arange(count), boxes, labels, where=paths.__getitem__)
        # What it notes is put aside: that there are no objects, where there are no classes.
        table = clean_table(
            str(self._folders[split or ""]), self.categories, Pictures(paths, sizes), objects, Problems()
        )
        return replace(table, problems=problems)

    @cached_property
    def categories(self) -> list[str]:
        """The sorted names of the training split's classes, or of all splits' where none is for training."""
        listings = [self._listings["train"]] if "train" in self._listings else self._listings.values()
        return sorted({name for listing in listings for name in listing.classes})

    @cached_property
    def _listings(self) -> dict[str, _Listing]:
        return {split: _list(self._folders[split]) for split in self.splits or [""]}

    def _report(self, split: str | None, listing: _Listing, problems: Problems) -> None:
        for name in sorted(listing.classes.keys() - set(self.categories)):
            where = self._folders[split or ""] / name
            hint = nearest(name, self.categories)
            problems.add(UNKNOWN_CATEGORY, f"{where}: the training split has no such class{hint}", fatal=True)
        if not self.categories:
            return
        _add_each(problems, "picture outside any class folder (left out)", listing.loose)
        _add_each(problems, "class folder without pictures (left out)", listing.empty)
        for path in listing.nested:
            problems.warn("folder below a class's (its pictures count with the class)", path)
        for path in listing.strays:
            problems.warn("file is no picture (ignored)", path)
        if len(self.categories) == 1:
            problems.warn("only one class", f"{self._folders[split or '']}: {self.categories[0]!r}")
        if split == (self.splits or [None])[0]:
            self._report_beside(problems)

    def _report_beside(self, problems: Problems) -> None:
        """What lies beside the splits that are read."""
        _add_each(problems, "split without class folders (left out)", [str(self._folders[s]) for s in self._unlabelled])
        if self.splits:
            for folder in _subfolders(self.folder):
                if folder.name not in _SPLITS:
                    problems.warn("folder is no split (ignored)", str(folder))


def is_class_folders(folder: Path) -> bool:
    """Whether a folder looks like class folders, by the first picture of each; to be asked after the other formats."""
    return any(_class_folders(path) for path in _split_folders(folder).values())


def is_unlabelled(folder: Path) -> bool:
    """Whether a folder holds pictures without classes, itself or in split folders."""
    folders = _split_folders(folder).values()
    return bool(folders) and not any(_class_folders(path) for path in folders)


def _split_folders(folder: Path) -> dict[str, Path]:
    """Split to folder; the folder itself under "" where there are no splits; empty where this is something else."""
    children = _subfolders(folder)
    splits = [child for child in children if child.name in _SPLITS and _has_picture(child, depth=2)]
    inside = [grandchild for split in splits for grandchild in _subfolders(split)]
    if any(child.name.lower() in _OTHERS for child in (*children, *inside)):
        return {}
    others = any(child.name not in _SPLITS and _has_picture(child) for child in children)
    if splits and (not others or any(_class_folders(split) for split in splits)):
        return _named(splits)
    if len(splits) > 1:  # pictures in train/ and val/ beside other pictures, as label maps have it
        return {}
    return {"": folder} if others or _has_picture(folder) else {}


def _named(folders: list[Path]) -> dict[str, Path]:
    named: dict[str, Path] = {}
    for folder in sorted(folders, key=lambda path: list(_SPLITS).index(path.name)):
        other = named.setdefault(_SPLITS[folder.name], folder)
        if other is not folder:
            raise DataError(f"{other} and {folder} are both the {_SPLITS[folder.name]} split; keep one")
    return named


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _class_folders(folder: Path) -> list[Path]:
    return [child for child in _subfolders(folder) if _has_picture(child, depth=1)]


def _has_picture(folder: Path, depth: int = 0) -> bool:
    """Whether a picture lies in a folder, or at most `depth` folders further down."""
    with os.scandir(folder) as entries:  # left early, it would stay open
        if any(is_picture(entry.name) and entry.is_file() for entry in entries):
            return True
    return depth > 0 and any(_has_picture(child, depth - 1) for child in _subfolders(folder))


@dataclass
class _Listing:
    """The files of one split, by path.

    Attributes:
        classes: class to its pictures.
        loose: pictures outside any class folder.
        strays: files in class folders that are no pictures.
        empty: class folders without pictures.
        nested: folders with pictures below a class's.
    """

    classes: dict[str, list[str]] = field(default_factory=dict)
    loose: list[str] = field(default_factory=list)
    strays: list[str] = field(default_factory=list)
    empty: list[str] = field(default_factory=list)
    nested: list[str] = field(default_factory=list)


def _list(folder: Path) -> _Listing:
    listing = _Listing(loose=[str(path) for path in sorted(folder.iterdir()) if is_picture(path.name)])
    for child in _subfolders(folder):
        pictures, others = [], []
        for path, folders, files in os.walk(child):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            here = [name for name in sorted(files) if is_picture(name)]
            pictures += [os.path.join(path, name) for name in here]
            others += [os.path.join(path, n) for n in sorted(files) if not (is_picture(n) or n.startswith("."))]
            if here and path != str(child):
                listing.nested.append(path)
        if pictures:
            listing.classes[child.name] = pictures
            listing.strays += others
        else:
            listing.empty.append(str(child))
    return listing


def _add_each(problems: Problems, kind: str, where: Iterable[str]) -> None:
    for place in where:
        problems.add(kind, place)


def class_paths(table: Table, names: Sequence[str], folder: str | PathLike) -> list[Path | None]:
    """Where each picture of image-level data belongs among class folders: `folder/CLASS/name`.

    Args:
        table: pictures with at most one object each, whose box is the whole picture.
        names: I file names.

    Returns:
        I paths; None for a picture without an object, which has no class.

    Raises:
        DataError: an object is not its whole picture, or a category cannot be a folder's name.
    """
    _require_folder_names(table.categories)
    whole = np.pad(table.sizes[table.image][:, ::-1], ((0, 0), (2, 0)))  # (0, 0, width, height)
    differs = (np.abs(table.boxes - whole) > TOLERANCE).any(axis=1)
    for k in np.flatnonzero(differs | (np.diff(table.image, prepend=-1) == 0)):
        box = ", ".join(f"{value:g}" for value in table.boxes[k])
        raise DataError(
            f"{table.paths[table.image[k]]}: its object ({box}) is not the only one and as large as the picture, as a "
            "class of the whole picture would be; write the objects' crops instead (--crops)"
        )
    paths: list[Path | None] = [None] * len(table)
    for row, label in zip(table.image, table.labels, strict=True):
        paths[row] = Path(folder) / table.categories[label] / names[row]
    return paths


@dataclass(frozen=True)
class ObjectCrops:
    """Which objects are cut out of their pictures, and how much around them.

    Attributes:
        margin: share of its width and height that a box grows by on each side, within the picture.
        min_side: objects whose shorter side is below this many pixels are left out.
    """

    margin: float = 0.0
    min_side: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.margin <= 10 or self.min_side < 1:
            raise DataError(f"need 0 <= margin <= 10 and min_side >= 1, got {self.margin} and {self.min_side}")


def write_crops(table: Table, names: Sequence[str], folder: str | PathLike, crops: ObjectCrops) -> Problems:
    """Writes each object as a picture, `folder/CLASS/NAME_k.png`, where it is the k-th (from 0) of its picture.

    PNG, because a second JPEG compression, on another grid of blocks, would spoil small objects: the pixels are the
    picture's own. Boxes are rounded outward. Crowds, which are no single object, are left out.

    Args:
        table: any annotations.
        names: I stems, all different.
        folder: where the class folders go.
        crops: which objects, and how much around them.

    Returns:
        What was left out, counted.

    Raises:
        DataError: a category cannot be a folder's name, or a picture cannot be read.
    """
    _require_folder_names(table.categories)
    small = (table.boxes[:, 2:] - table.boxes[:, :2]).min(axis=1, initial=np.inf) < crops.min_side
    keep, offsets, windows = ~(small | table.crowd), table.offsets, _windows(table, crops.margin)

    def write(row: int) -> None:
        objects = [k for k in range(offsets[row], offsets[row + 1]) if keep[k]]
        image = read_picture(table.paths[row]) if objects else None
        for k in objects:
            x0, y0, x1, y1 = windows[k]
            path = Path(folder) / table.categories[table.labels[k]] / f"{names[row]}_{k - offsets[row]}.png"
            write_image(path, np.ascontiguousarray(image[y0:y1, x0:x1]))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        list(tqdm(pool.map(write, range(len(table))), "cropping", len(table), unit="picture", leave=False))
    problems = Problems()
    where = {k: f"{table.paths[table.image[k]]}: object {k - offsets[table.image[k]]}" for k in np.flatnonzero(~keep)}
    problems.add_rows("crowd is no single object (left out)", np.flatnonzero(table.crowd), where.__getitem__)
    kind = f"object's shorter side is under {crops.min_side} pixels (left out)"
    problems.add_rows(kind, np.flatnonzero(small & ~table.crowd), where.__getitem__)
    return problems


def _windows(table: Table, margin: float) -> np.ndarray:
    """(K, 4) int64: boxes grown by the margin, rounded outward, within their pictures."""
    boxes = table.boxes.astype(np.float64)
    grown = margin * np.tile(boxes[:, 2:] - boxes[:, :2], 2)
    limits = table.sizes[table.image][:, [1, 0, 1, 0]]
    corners = [np.floor(boxes[:, :2] - grown[:, :2]), np.ceil(boxes[:, 2:] + grown[:, 2:])]
    return np.clip(np.concatenate(corners, axis=1).astype(np.int64), 0, limits)


def _require_folder_names(categories: list[str]) -> None:
    for name in categories:
        hostile = name != name.strip() or name.startswith(".") or any(letter in '/\\:*?"<>|\0' for letter in name)
        if not name or hostile or name.lower() in _OTHERS:
            raise DataError(f"category {name!r} cannot be the name of a class folder; rename it in the data set")
