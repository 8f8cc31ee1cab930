"""Everything wrong with a data set: what the readers find, and what only decoded pictures tell."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from os import PathLike
from pathlib import Path

import numpy as np
from tqdm import tqdm

from .caption_files import FORMS, is_captioned, read_each
from .clean import UNREADABLE, WRONG_SIZE
from .folders import FolderSource
from .images import decode_image
from .label_checks import check_pixels
from .label_checks import read_each as read_each_mask
from .label_maps import FORMS as MAP_FORMS
from .label_maps import holds_masks
from .mask_encoding import SegmentationError, from_coco
from .readers import Source, find
from .splits import without_unions
from .table import DataError, Problems, Table
from .yolo import YoloFolder

_OTHERS = (
    f"\nnor are here label maps, known as\n    {MAP_FORMS}\nnor are here pictures with sentences, known as\n    {FORMS}"
)
TINY = 2  # pixels; a box with a shorter side is more often a slip of the mouse than an object


def check(path: str | PathLike, *, progress: bool = True) -> Problems:
    """Reads a data set, decodes every picture of it, and says what is wrong. One with boxes, sentences and masks of
    categories, or two of these, is read as all that it is.

    Fatal: whatever stops a training. Repaired: what training drops or clips. Warnings: the same picture in two splits
    or twice in one, boxes under 2 pixels, the same object twice, categories without objects, pictures without objects,
    label files without pictures, outlines that cannot be used, are missing or cover nothing (boxes can be learnt without
    them), label maps that are all void, categories without a pixel. Nothing is written and no error is raised for bad data.

    Args:
        path: a file or folder in any known format.
        progress: show a bar while decoding.
    """
    problems, path = Problems(), Path(path).expanduser()
    captioned, masked = is_captioned(path), holds_masks(path)
    try:
        source = _find(path, captioned, masked)
    except DataError as error:
        problems.add("data set cannot be read", str(error), fatal=True)
        return problems
    tables = {} if source is None else _read_all(source, problems)
    described = _read_captions(path, problems) if captioned else {}
    labelled = read_each_mask(path, problems) if masked else {}
    for table in (*tables.values(), *described.values(), *labelled.values()):
        problems.merge(table.problems)
    _require_same_categories(tables, str(path), problems)
    digests = _decode([*tables.values(), *described.values(), *labelled.values()], problems, progress)
    check_pixels(labelled, problems, progress=progress)
    for splits in (tables, described, labelled):
        _warn_of_copies(splits, digests, problems)
    for split, table in tables.items():
        _warn_of_objects(table, f" in {split}" if split else "", problems)
        _warn_of_outlines(table, f" in {split}" if split else "", problems)
    for orphan in source.orphans if isinstance(source, YoloFolder) else []:
        problems.warn("label file without a picture (ignored)", str(orphan))
    return problems


def _find(path: Path, captioned: bool, masked: bool) -> Source | None:
    """The data set without its sentences and label maps; None where it is nothing but pictures with such."""
    if captioned and path.is_file():
        return None
    try:
        source = find(path)
    except DataError as error:
        if captioned or masked:
            return None
        raise DataError(f"{error}{_OTHERS if path.is_dir() else ''}") from None
    if masked and isinstance(source, YoloFolder) and next(path.rglob("labels/**/*.txt"), None) is None:
        return None  # what lies in labels/ is masks
    return None if (captioned or masked) and isinstance(source, FolderSource) else source


def _read_captions(path: Path, problems: Problems) -> dict[str, Table]:
    """Every split's pictures with sentences."""
    try:
        return read_each(path)
    except DataError as error:
        problems.add("sentences cannot be read", str(error), fatal=True)
        return {}


def _read_all(source: Source, problems: Problems) -> dict[str, Table]:
    """Every split that can be read."""
    tables = {}
    for split in without_unions(source.splits) or [None]:
        try:
            tables[split or ""] = source.read(split)
        except DataError as error:
            problems.add("split cannot be read", str(error), fatal=True)
    return tables


def _require_same_categories(tables: dict[str, Table], where: str, problems: Problems) -> None:
    for (first, one), (second, other) in combinations(tables.items(), 2):
        if one.categories != other.categories:
            differing = ", ".join(sorted(set(one.categories) ^ set(other.categories))[:8]) or "their order"
            problems.add("categories of two splits differ", f"{where}: {first} and {second}: {differing}", fatal=True)


def _decode(tables: list[Table], problems: Problems, progress: bool) -> dict[str, bytes]:
    """Path to the hash of the file's bytes, of every picture that can be decoded; the others are fatal."""
    problems.forget(UNREADABLE)  # those whose header is broken are found again
    sizes = {p: tuple(s) for t in tables for p, s in zip(t.paths, t.sizes.tolist(), strict=True)}
    sizes = {path: size for path, size in sizes.items() if os.path.exists(path)}  # missing ones have been reported
    with ThreadPoolExecutor(min(16, (os.cpu_count() or 1) + 2)) as pool:
        found = pool.map(_look, sizes)
        bar = tqdm(found, "decoding", len(sizes), unit="picture", disable=not progress, leave=False)
        results = dict(zip(sizes, bar, strict=True))
    for path, result in results.items():
        if isinstance(result, DataError):
            problems.add(UNREADABLE, str(result), fatal=True)
        elif result[0] != sizes[path]:
            (height, width), (true_height, true_width) = sizes[path], result[0]
            problems.add(WRONG_SIZE, f"{path}: stated {width}x{height}, is {true_width}x{true_height}", fatal=True)
    return {path: result[1] for path, result in results.items() if not isinstance(result, DataError)}


def _look(path: str) -> tuple[tuple[int, int], bytes] | DataError:
    """A picture's (height, width) once decoded and the hash of its file, or what is wrong with it."""
    try:
        data = Path(path).read_bytes()
        return decode_image(data, path).shape[:2], hashlib.blake2b(data, digest_size=16).digest()
    except DataError as error:
        return error
    except OSError as error:
        return DataError(f"{path}: cannot be read ({error.strerror})")


def _warn_of_copies(tables: dict[str, Table], digests: dict[str, bytes], problems: Problems) -> None:
    by_split = {}
    for split, table in tables.items():
        seen: dict[bytes, str] = {}
        for path in table.paths:
            digest = digests.get(path)
            if digest in seen:
                problems.warn(f"same picture twice{' in ' + split if split else ''}", f"{path} and {seen[digest]}")
            elif digest:
                seen[digest] = path
        by_split[split] = seen
    for (first, one), (second, other) in combinations(by_split.items(), 2):
        for digest in one.keys() & other.keys():
            problems.warn(f"same picture in {first} and {second}", f"{one[digest]} and {other[digest]}")


def _warn_of_objects(table: Table, where: str, problems: Problems) -> None:
    counts = np.bincount(table.labels, minlength=len(table.categories))
    for label in np.flatnonzero(counts == 0):
        problems.warn(f"category without objects{where}", table.categories[label])
    for row in np.flatnonzero(np.diff(table.offsets) == 0):
        problems.warn(f"picture without objects{where} (a legal negative)", table.paths[row])
    sides = (table.boxes[:, 2:] - table.boxes[:, :2]).min(axis=1, initial=np.inf)
    for k in np.flatnonzero(sides < TINY):
        problems.warn(f"box under {TINY} pixels{where}", _describe(table, k))
    columns = np.column_stack([table.image, table.labels, table.boxes, table.crowd])
    _, first = np.unique(columns, axis=0, return_index=True)
    for k in np.setdiff1d(np.arange(len(columns)), first):
        problems.warn(f"same object twice{where}", _describe(table, k))


def _warn_of_outlines(table: Table, where: str, problems: Problems) -> None:
    if table.segmentations is None:
        return
    known = np.flatnonzero(table.sizes[table.image].all(axis=1))  # pictures that cannot be read have been noted
    for k, area in zip(known.tolist(), _outlined(table, known), strict=True):
        if isinstance(area, SegmentationError):
            problems.warn(
                f"outline cannot be used{where} (no training of masks can start)", f"{_describe(table, k)}: {area}"
            )
        elif not table.segmentations[k]:
            problems.warn(f"object without an outline{where} (its box is its mask)", _describe(table, k))
        elif not area:
            problems.warn(f"outline without a pixel{where}", _describe(table, k))


def _outlined(table: Table, rows: np.ndarray) -> list[int | SegmentationError]:
    """How many pixels the outline of each object of these rows covers, or what is wrong with it, found by halving."""
    try:
        return from_coco([table.segmentations[k] for k in rows], table.sizes[table.image[rows]]).areas.tolist()
    except SegmentationError as error:
        if len(rows) == 1:
            return [error]
        return [one for half in np.array_split(rows, 2) for one in _outlined(table, half)]


def _describe(table: Table, k: int) -> str:
    x0, y0, x1, y1 = table.boxes[k]
    return f"{table.paths[table.image[k]]}: {table.categories[table.labels[k]]} ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
