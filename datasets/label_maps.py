"""Pictures with a category for every pixel, from a path alone: CamVid, Pascal VOC, folders of masks, or objects' outlines.

    tables = read_label_maps("camvid/")          # {"train": Table, "val": Table, "test": Table}, with label maps, no objects
    tables = read_label_maps("VOC2012/")
    tables = read_label_maps("mydata/")          # images/ and masks/
    tables = read_label_maps("coco/")            # drawn from polygons and run lengths

What is fatal: a mask of another size than its picture or of a kind that holds no categories (JPEG, 16 bits), a mask whose
picture is not there, two masks or pictures of one name, an unreadable picture. What is left out and counted: pictures
without a mask. Masks are decoded when asked for: a pixel of no category, or a file cut short, is found then, or by
`label_checks`.
"""

from __future__ import annotations

from os import PathLike
from pathlib import Path

from .label_camvid import CamvidMaps, is_camvid
from .label_folders import FolderMaps, is_folder_maps
from .label_objects import semantic_table
from .label_voc import VocMaps, is_voc_maps
from .readers import Source, read_splits, tables_of
from .table import DataError, Table

FORMS = """CamVid: a folder with train/ and trainannot/, val/ and valannot/
    Pascal VOC: a folder with JPEGImages/ and SegmentationClass/
    folders: images/ and masks/, labels/ or annotations/ with masks (8 bits, or colours) of the same names; with or without
        train/, val/ and test/ above or below
    objects with outlines, as in COCO's json: the label maps are drawn from them"""
_KINDS = ((CamvidMaps, is_camvid), (VocMaps, is_voc_maps), (FolderMaps, is_folder_maps))


def read_label_maps(
    path: str | PathLike, *, train: str | None = None, val: str | None = None, seed: int = 0, val_fraction: float = 0.2
) -> dict[str, Table]:
    """All that a training needs: "train", "val" and, where there is one, "test", as `readers.read_splits` chooses them.

    Args:
        path: a folder of masks, or any data set of objects with outlines.
        train, val: the data set's own names for these splits, e.g. train="trainval".
        seed: of the choice by hash, where no split is for validation.
        val_fraction: of the choice by hash; 0 to 1, exclusive.

    Returns:
        Tables with `label_maps` and without objects, which share one list of categories. "val" and "test" are the same table
        where "test" stands for both.

    Raises:
        DataError: of no known form, no such split, or wrong beyond repair.
    """
    path, choice = Path(path).expanduser(), {"train": train, "val": val, "seed": seed, "val_fraction": val_fraction}
    source = find_masks(path)
    if source is not None:
        return tables_of(source, path, **choice)
    try:
        tables = read_splits(path, **choice)
        drawn = {
            id(table): semantic_table(table, str(path)) for table in tables.values()
        }  # one table may be two splits
    except DataError as error:
        raise DataError(f"{error}\nLabel maps are known as\n    {FORMS}") from None
    return {split: drawn[id(table)] for split, table in tables.items()}


def holds_masks(path: Path) -> bool:
    """Whether there are masks of categories in files, in one data set or several."""
    try:
        return find_masks(path) is not None
    except DataError:
        return True


def find_masks(path: Path) -> Source | None:
    """The data set of mask files in a folder, or in the only one of its subfolders that holds any; None where there is none.

    Raises:
        DataError: several are there.
    """
    if not path.is_dir():
        return None
    found = _candidates(path)
    if not found:
        folders = sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))
        found = [candidate for folder in folders for candidate in _candidates(folder)]
    if len(found) > 1:
        listed = ", ".join(f"{kind.__name__.removesuffix('Maps')} ({where})" for kind, where in found)
        raise DataError(f"{path}: more than one data set of masks is here: {listed}; give the path of one")
    return found[0][0](found[0][1]) if found else None


def _candidates(folder: Path) -> list[tuple[type, Path]]:
    return [(kind, folder) for kind, fits in _KINDS if fits(folder)]
