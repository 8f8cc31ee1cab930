"""A data set from its path alone: the format is recognised, the splits are found, and what cannot be repaired stops.

tables = read_splits("coco/")                                  # {"train": Table, "val": Table, ...}
tables = read_splits("VOC2007/", train="trainval", val="test")
table = read("instances_val2017.json")
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Protocol

from .coco import CocoFolder, find_jsons
from .deeppcb import DeepPcbFolder, find_lists
from .folders import FolderSource, is_class_folders, is_unlabelled
from .instance_folders import InstanceFiles, InstanceMaps, is_instance_files, is_instance_maps
from .instance_voc import VocInstances, is_voc_instances
from .mnist import MnistFolder, is_mnist
from .splits import roles, split_by_hash, warn_test_as_val
from .table import DataError, Table, nearest
from .voc import VocFolder, VocSplits, find_annotations, find_split_folders
from .yolo import YoloFolder, is_yolo, only_names

_LAYOUTS = """COCO: a json with images, annotations and categories, or a folder of instances_*.json
    Pascal VOC: a folder with Annotations/*.xml and JPEGImages/, or xml files beside pictures
    YOLO: a data.yaml, or a folder with images/, labels/ and classes.txt
    DeepPCB: a folder with PCBData/trainval.txt
    masks of objects: images/ and masks/ with numbered objects; ID/images/ and ID/masks/ with a file for each object; Pascal
    VOC's JPEGImages/ and SegmentationObject/
    MNIST: a folder with its four idx files
    class folders: train/CLASS/*.jpg, or CLASS/*.jpg; or pictures alone, to learn from without labels"""


class Source(Protocol):
    """A data set on disk, recognised but not yet read.

    Attributes:
        splits: the names of its splits; empty where it has none.
    """

    splits: list[str]

    def read(self, split: str | None = None) -> Table:
        """One split; None for a set without splits. Faults, fatal ones too, are in the table's problems."""
        ...


def read(path: str | PathLike, split: str | None = None) -> Table:
    """One split of a data set.

    Args:
        path: a file or folder in any known format.
        split: the data set's own name for it, or "train", "val" or "test" in the sense of `read_splits`. None takes a
            data set that has at most one split whole.

    Raises:
        DataError: of no known format, no such split, several splits and none chosen, or wrong beyond repair.
    """
    source = find(path)
    if split is not None and split not in source.splits:
        tables = read_splits(path)
        if split not in tables:
            known = [*source.splits, *tables]
            raise DataError(f"{path}: no split {split!r}; there are {', '.join(known)}{nearest(split, known)}")
        return tables[split]
    if split is None and len(source.splits) > 1:
        raise DataError(f"{path} has the splits {', '.join(source.splits)}: choose one")
    table = source.read(split or (source.splits[0] if source.splits else None))
    raise_if_fatal(table)
    return table


def read_splits(
    path: str | PathLike, *, train: str | None = None, val: str | None = None, seed: int = 0, val_fraction: float = 0.2
) -> dict[str, Table]:
    """All that a training needs of a data set: "train", "val" and, where there is one, "test".

    What is trained on is the split "train", else "trainval". What validates is "val"; where there is none, or where it
    is a part of what is trained on, "test" (noted as a warning); where there is no "test" either, about `val_fraction`
    of the pictures, chosen by hash of the file name, so that the choice stays the same when pictures are added.

    Args:
        path: a file or folder in any known format.
        train, val: the data set's own names for these splits, e.g. train="trainval", val="test".
        seed: of the choice by hash.
        val_fraction: of the choice by hash; 0 to 1, exclusive.

    Returns:
        Tables that share one list of categories. "val" and "test" are the same table where "test" stands for both.

    Raises:
        DataError: of no known format, no such split, categories that differ, or wrong beyond repair.
    """
    return tables_of(find(path), path, train=train, val=val, seed=seed, val_fraction=val_fraction)


def tables_of(
    source: Source,
    path: str | PathLike,
    *,
    train: str | None = None,
    val: str | None = None,
    seed: int = 0,
    val_fraction: float = 0.2,
) -> dict[str, Table]:
    """`read_splits` of a data set at `path` that has been recognised."""
    if not source.splits:
        if train or val:
            raise DataError(f"{path}: no split {train or val!r}; the data set has no splits")
        chosen: dict[str, str | None] = {"train": None}
    else:
        chosen = dict(roles(source.splits, str(path), train=train, val=val))
    read_once = {name: source.read(name) for name in dict.fromkeys(chosen.values())}
    raise_if_fatal(*read_once.values())
    _require_same_categories(path, read_once)
    tables = {role: read_once[name] for role, name in chosen.items()}
    if "val" not in tables:
        tables = split_by_hash(tables["train"], val_fraction, seed) | {r: t for r, t in tables.items() if r == "test"}
    elif chosen["val"] == "test" and val is None:
        warn_test_as_val(tables["val"], str(path))
    return tables


def raise_if_fatal(*tables: Table) -> None:
    """Raises a DataError that lists everything wrong with the tables if any of it is beyond repair."""
    if any(table.problems.fatal for table in tables):
        summaries = [table.problems.summary() for table in tables]
        raise DataError("the data set cannot be used as it is\n" + "\n".join(text for text in summaries if text))


def find(path: str | PathLike) -> Source:
    """The data set at a path: in that folder, or in the only one of its subfolders that holds any.

    Raises:
        DataError: nothing known is there, or more than one thing.
    """
    path = Path(path).expanduser()
    if path.is_file():
        return _find_file(path)
    if not path.is_dir():
        raise DataError(f"{path}: no such file or folder{_near(path)}")
    found = _candidates(path)
    if not found:
        folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        found = [candidate for folder in folders for candidate in _candidates(folder)]
    if not found and (is_class_folders(path) or is_unlabelled(path)):  # last, for any annotated set has pictures too
        found = [(FolderSource, path)]
    if not found:
        shown = sorted(child.name + "/" * child.is_dir() for child in path.iterdir())
        entries = ", ".join(shown[:8]) + (f", … ({len(shown)} entries)" if len(shown) > 8 else "")
        raise DataError(
            f"{path}: no data set recognised. Known are\n    {_LAYOUTS}\nbut here is {entries or 'nothing'}"
            f"{_sentences_at(path)}"
        )
    if len(found) > 1:
        listed = ", ".join(f"{kind.__name__.removesuffix('Folder')} ({where})" for kind, where in found)
        raise DataError(f"{path}: more than one data set is here: {listed}; give the path of one")
    kind, where = found[0]
    return kind(where)


def _candidates(folder: Path) -> list[tuple[type, Path]]:
    """What a folder may be, without reading annotations."""
    if find_lists(folder):
        return [(DeepPcbFolder, folder)]
    if is_mnist(folder):
        return [(MnistFolder, folder)]
    if folder.name == "SegmentationObject" and is_voc_instances(folder):
        return [(VocInstances, folder)]
    found: list[tuple[type, Path]] = []
    masks = [(kind, folder) for kind, fits in _MASKS if fits(folder)]
    if is_yolo(folder) and not (masks and only_names(folder)):
        found.append((YoloFolder, folder))
    if find_annotations(folder):
        found.append((VocFolder, folder))
    elif find_split_folders(folder):
        found.append((VocSplits, folder))
    if find_jsons(folder):
        found.append((CocoFolder, folder))
    return found or masks  # annotations in text say more


_MASKS = ((InstanceMaps, is_instance_maps), (InstanceFiles, is_instance_files), (VocInstances, is_voc_instances))


def _find_file(path: Path) -> Source:
    suffix = path.suffix.lower()
    if suffix == ".json":
        return CocoFolder(path)
    if suffix in (".yaml", ".yml"):
        return YoloFolder(path)
    raise DataError(
        f"{path}: a data set's file is COCO's .json or YOLO's .yaml, not {suffix or 'one without suffix'}"
        f"{_sentences_at(path)}"
    )


def _sentences_at(path: Path) -> str:
    """A hint where the pictures have sentences, of which detectors and classifiers learn nothing."""
    from .caption_files import is_captioned  # it reads by this module

    return "\nThese are pictures with sentences, from which captioners learn" if is_captioned(path) else ""


def _near(path: Path) -> str:
    if str(path) == "shapes":
        return "; the built-in shapes are drawn when they are needed, and have no files"
    return nearest(path.name, [child.name for child in path.parent.iterdir()]) if path.parent.is_dir() else ""


def _require_same_categories(path: str | PathLike, tables: dict[str | None, Table]) -> None:
    (first, one), *others = tables.items()
    for name, other in others:
        if other.categories != one.categories:
            only = sorted(set(one.categories) ^ set(other.categories))
            shown = ", ".join(only[:8]) if only else "their order"
            raise DataError(f"{path}: the categories of {first} and {name} differ: {shown}; make them the same in both")
