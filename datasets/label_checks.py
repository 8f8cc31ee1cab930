"""Everything wrong with label maps: what the readers find, and what only their pixels tell."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .label_columns import BAD_MASK, WRONG_SIZE
from .label_maps import find_masks, read_label_maps
from .readers import Source
from .segmentation_dataset import annotated_map
from .splits import without_unions
from .table import DataError, Problems, Table


def read_each(path: Path, problems: Problems) -> dict[str, Table]:
    """Every split that can be read, under its own name; what cannot is fatal. Maps are left to `check_pixels`."""
    try:
        source = find_masks(path)
        tables = read_label_maps(path) if source is None else _read_splits(source, problems)
    except DataError as error:
        problems.add("label maps cannot be read", str(error), fatal=True)
        return {}
    for table in tables.values():
        # Those whose headers are wrong are found again. Not later: objects' masks have problems of the same names.
        for kind in (BAD_MASK, WRONG_SIZE):
            table.problems.forget(kind)
    return tables


def _read_splits(source: Source, problems: Problems) -> dict[str, Table]:
    tables: dict[str, Table] = {}
    for split in without_unions(source.splits) or [None]:
        try:
            tables[split or ""] = source.read(split)
        except DataError as error:
            problems.add("split cannot be read", str(error), fatal=True)
    return tables


def check_pixels(tables: dict[str, Table], problems: Problems, *, progress: bool) -> None:
    """Decodes all maps of the splits and notes which cannot be used, are all void, or lack a category."""
    for split, table in tables.items():
        counts, where = np.zeros(len(table.categories), np.int64), f" in {split}" if split else ""
        for row, found in _counted(table, progress).items():
            if isinstance(found, DataError):
                problems.add(BAD_MASK, str(found), fatal=True)
                continue
            counts += found
            if not found.any():
                problems.warn(f"label map is all void{where}", table.paths[row])
        for label in np.flatnonzero(counts == 0):
            problems.warn(f"category without a pixel{where}", table.categories[label])


def _counted(table: Table, progress: bool) -> dict[int, np.ndarray | DataError]:
    """For each row its map's pixels of each category, or what is wrong with it."""

    def count(row: int) -> np.ndarray | DataError:
        try:
            return np.bincount(annotated_map(table, row).ravel() + 1, minlength=len(table.categories) + 1)[1:]
        except DataError as error:
            return error

    rows = np.flatnonzero(table.sizes.all(axis=1)).tolist()  # pictures that cannot be read have been noted
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool:
        found = pool.map(count, rows)
        return dict(zip(rows, tqdm(found, "decoding maps", len(rows), disable=not progress, leave=False), strict=True))
