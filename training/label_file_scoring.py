"""Scores of label maps in files, whoever made them: what `evaluate --predictions` calls for a folder of PNGs.

Letters: H, W pixels of original pictures.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.label_columns import by_stem
from ..datasets.label_files import VOID, read_mask
from ..datasets.structures import LabelMaps
from ..datasets.table import DataError, Table
from ..evaluation import SegmentationCollector
from .segmentation_scoring import ScoredLabelMaps, listed, true_labels


def score_label_files(
    predictions: str | os.PathLike,
    table: Table,
    *,
    boundary: bool = True,
    void_is_wrong: bool = False,
    progress: bool = True,
) -> ScoredLabelMaps:
    """Scores label maps in files against a table's.

    Args:
        predictions: a folder of PNGs that are called as the pictures are (a/b.jpg: b.png, or a/b.png where there are more
            of that name). Their pixels number the table's categories from 0; 255 is no category, which is wrong wherever
            there is a truth. Files for other pictures are not read.
        table: pictures with label maps.
        boundary, void_is_wrong, progress: as for `score_segmenter`.

    Raises:
        DataError: a picture has no prediction, two pictures have the same, or one is not of its picture's size, cannot be
            read or has a number that is no category.
    """
    files, started = _matched(Path(predictions), table), time.perf_counter()
    collector = SegmentationCollector(len(table.categories), boundary=boundary)

    def found(row: int) -> np.ndarray:
        return _predicted(files[row], table, row)

    for row in tqdm(range(len(table)), "score", unit="picture", disable=None if progress else True, leave=False):
        maps = (LabelMaps(torch.from_numpy(labels)[None]) for labels in (found(row), true_labels(table, row)))
        collector.update(*maps, [int(table.image_ids[row])])
    result = listed(collector, table, void_is_wrong=void_is_wrong)
    return ScoredLabelMaps(result, time.perf_counter() - started, table, found)


def _matched(folder: Path, table: Table) -> list[str]:
    """The prediction file of each picture, found by as much of its path as the folder has."""
    if not folder.is_dir():
        raise DataError(f"{folder}: is no folder; predictions are a folder of PNGs that are called as the pictures are")
    known = by_stem(folder)
    stems = [Path(path).with_suffix("").as_posix().split("/") for path in table.paths]
    tails = [["/".join(parts[start:]) for start in range(len(parts))] for parts in stems]
    keys = [next((tail for tail in each if tail in known), None) for each in tails]
    if None in keys:
        first, missing = table.paths[keys.index(None)], keys.count(None)
        raise DataError(
            f"{folder}: {missing} of {len(keys)} pictures have no prediction, such as {first}, whose would be "
            f"{Path(first).stem}.png; is it the same split?"
        )
    owners: dict[str, str] = {}
    for key, path in zip(keys, table.paths, strict=True):
        if len(known[key]) > 1 or key in owners:
            both = " and ".join(known[key] if len(known[key]) > 1 else (owners[key], path))
            raise DataError(
                f"{folder}: what is the prediction of what? {both} are of one name; name them apart by folders"
            )
        owners[key] = path
    return [known[key][0] for key in keys]


def _predicted(path: str, table: Table, row: int) -> np.ndarray:
    """(H, W) int16, the categories' numbers in the file for a picture, -1 for 255.

    Raises:
        DataError: it cannot be read, holds colours or a number that is no category, or is not of the picture's size.
    """
    values, most = read_mask(path).values, len(table.categories) - 1
    if values.ndim != 2:
        raise DataError(f"{path}: holds colours; predictions number the categories: save them as gray or palette PNG")
    labels = np.where(values == VOID, -1, values.astype(np.int16))
    if labels.max(initial=-1) > most:
        raise DataError(f"{path}: {labels.max()} is no category; predictions have 0 to {most}, and {VOID} for none")
    height, width = table.sizes[row].tolist()
    if labels.shape != (height, width):
        raise DataError(
            f"{table.paths[row]}: the picture is {height}x{width} pixels (height x width), its prediction {path} "
            f"{'x'.join(map(str, labels.shape))}; make it anew at the picture's size"
        )
    return labels
