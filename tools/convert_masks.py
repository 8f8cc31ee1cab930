"""What `sightline convert --to masks` does: pictures in images/, a category for every pixel of them in masks/."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from sightline.datasets.caption_lines import SPLITS
from sightline.datasets.folders import FolderSource
from sightline.datasets.label_categories import write_categories
from sightline.datasets.label_files import write_label_map
from sightline.datasets.label_maps import find_masks
from sightline.datasets.label_objects import semantic_table
from sightline.datasets.readers import Source, find
from sightline.datasets.segmentation_dataset import annotated_map
from sightline.datasets.table import DataError, Table


def source_of(data: str | os.PathLike, *, masks: bool) -> Source:
    """The data set at a path: for `masks` its files of label maps, where it has such; else its objects.

    Raises:
        DataError: nothing known is there, or label maps alone where objects are wanted.
    """
    maps = find_masks(Path(data).expanduser())
    if masks and maps is not None:
        return maps
    try:
        source = find(data)
    except DataError:
        if maps is None:
            raise
        source = None
    if maps is not None and (source is None or isinstance(source, FolderSource)):
        raise DataError(f"{data}: label maps, which tell no objects apart; they can be written with --to masks alone")
    return source


def require_parts(splits: Iterable[str], out: Path) -> None:
    """Raises a DataError where a split has a name by which it would not be found again."""
    for split in splits:
        if split not in SPLITS:
            known = ", ".join(dict.fromkeys(SPLITS))
            raise DataError(
                f"{out}: folders of masks have the parts {known}, not {split!r}; choose others with --split"
            )


def write_masks(
    table: Table, out: Path, split: str, names: Mapping[str, str], place: Callable[[Path, Path], None]
) -> Table:
    """Writes one split; the categories stand in categories.csv.

    Args:
        table: pictures with label maps, or with objects whose outlines these are drawn from.
        out: the data set's folder.
        split: the part's name.
        names: the pictures' new file names, by path.
        place: brings a picture from one path to another.

    Returns:
        The pictures with their new paths.

    Raises:
        DataError: there are neither label maps nor outlines, or a map cannot be used.
    """
    if table.label_maps is None:
        table = semantic_table(table, split)
    pictures = [out / "images" / split / names[path] for path in table.paths]
    (out / "images" / split).mkdir(parents=True, exist_ok=True)
    for row, (path, picture) in enumerate(zip(table.paths, pictures, strict=True)):
        place(Path(path), picture)
        write_label_map(out / "masks" / split / f"{picture.stem}.png", annotated_map(table, row), table.colours)
    write_categories(out, table.categories, table.colours)
    return replace(table, paths=[str(picture) for picture in pictures])
