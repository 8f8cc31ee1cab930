"""From what a reader found to a `Table`: every bad box dropped or clipped, and counted, by one rule for all formats."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .images import Header, read_header
from .table import DataError, Problems, Table

TOLERANCE = 0.01  # pixels a box may stick out unmentioned: files round their coordinates to two decimals
HEADERS = 2000  # pictures of which the header is read although the file states their size; all, should one disagree
NO_BOX = "box without width or height (dropped)"
NOT_FINITE = "coordinate is NaN or infinite (dropped)"
OUTSIDE = "box wholly outside its picture (dropped)"
UNKNOWN_CATEGORY = "category is not among the data set's"
CLIPPED = "box partly outside its picture (clipped)"
UNREADABLE = "picture cannot be read"
WRONG_SIZE = "size in the annotations is not the picture's (the picture's is used)"


@dataclass
class Objects:
    """Objects as a reader found them, in file order; `where(k)` names the file and line of object k.

    Attributes:
        image: (K,) int64, rows of the images.
        boxes: (K, 4) float64, xyxy in pixels, anything at all.
        labels: (K,) int64, 0..C-1.
        where: from an object's row to its file and line.
        area: (K,) float64, the masks'; NaN or not positive where the box's is to be taken. None: all are.
        crowd, difficult: (K,) bool; None means all false.
        segmentations: K of COCO's polygons or RLEs, or None.
        landmarks: (K, P, 2) float64, (x, y) in pixels, NaN where a point is not known; None where there are none.
        landmark_names: P names; None where there are none.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    where: Callable[[int], str]
    area: np.ndarray | None = None
    crowd: np.ndarray | None = None
    difficult: np.ndarray | None = None
    segmentations: list | None = None
    landmarks: np.ndarray | None = None
    landmark_names: list[str] | None = None


@dataclass
class Pictures:
    """The images of a split: I files, their (I, 2) sizes by `measure`, and the file's own ids (by default 1..I)."""

    paths: list[str]
    sizes: np.ndarray
    ids: Sequence[int] | None = None


def clean_table(
    name: str,
    categories: list[str],
    pictures: Pictures,
    objects: Objects,
    problems: Problems,
    *,
    category_ids: list[int] | None = None,
) -> Table:
    """The `Table` of one split: objects sorted by image, clipped, of positive size; what was wrong joins `problems`.

    Raises:
        DataError: there is no picture at all; `name` is the file or folder to blame.
    """
    if not pictures.paths:
        raise DataError(f"{name}: the data set is empty, it lists no picture{_first_error(problems)}")
    boxes, keep = _repaired(objects, pictures.sizes, problems)
    if not keep.any():
        reason = "every box was dropped: are they in the right unit?" if len(keep) else "no picture has any object"
        problems.add(f"no objects left ({reason})", name, fatal=True)
    rows = np.flatnonzero(keep)
    rows = rows[np.argsort(objects.image[rows], kind="stable")]
    boxes, none = boxes[rows], np.zeros(len(rows), bool)
    segmentations = objects.segmentations and [objects.segmentations[row] for row in rows]
    count = len(pictures.paths)
    return Table(
        categories=list(categories),
        paths=pictures.paths,
        image_ids=np.arange(1, count + 1) if pictures.ids is None else np.asarray(pictures.ids, np.int64),
        sizes=pictures.sizes,
        image=objects.image[rows],
        boxes=boxes,
        labels=objects.labels[rows],
        area=_areas(boxes, None if objects.area is None else objects.area[rows]),
        crowd=none if objects.crowd is None else objects.crowd[rows],
        difficult=none.copy() if objects.difficult is None else objects.difficult[rows],
        category_ids=np.arange(1, len(categories) + 1) if category_ids is None else np.asarray(category_ids, np.int64),
        segmentations=segmentations if segmentations and any(segmentations) else None,
        landmarks=None if objects.landmarks is None else objects.landmarks[rows].astype(np.float32),
        landmark_names=objects.landmark_names,
        problems=problems,
    )


def _repaired(objects: Objects, sizes: np.ndarray, problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """Boxes clipped to their pictures, (K, 4) float32, and which of them are left, (K,) bool."""
    finite = np.isfinite(objects.boxes).all(axis=1)
    boxes = np.where(finite[:, None], objects.boxes, 0)
    limits = sizes[objects.image][:, [1, 0, 1, 0]]
    clipped = np.clip(boxes, 0, limits)
    positive = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
    # Measured after rounding to float32, so that no sliver survives here and is empty later.
    inside = (clipped.astype(np.float32)[:, 2:] > clipped.astype(np.float32)[:, :2]).all(axis=1)
    moved = np.abs(clipped - boxes).max(axis=1, initial=0) > TOLERANCE
    kinds = (
        (NOT_FINITE, ~finite),
        (NO_BOX, finite & ~positive),
        (OUTSIDE, finite & positive & ~inside),
        (CLIPPED, finite & positive & inside & moved),
    )
    for kind, mask in kinds:
        problems.add_rows(kind, np.flatnonzero(mask), lambda k: f"{objects.where(k)}: {_show(objects.boxes[k])}")
    return clipped.astype(np.float32), finite & positive & inside


def _show(box: np.ndarray) -> str:
    return "x0 {:g}, y0 {:g}, x1 {:g}, y1 {:g}".format(*box)


def _areas(boxes: np.ndarray, stated: np.ndarray | None) -> np.ndarray:
    width, height = (boxes[:, 2:].astype(np.float64) - boxes[:, :2]).T
    if stated is None:
        return width * height
    return np.where(np.isfinite(stated) & (stated > 0), stated, width * height)


def measure(paths: list[str], problems: Problems, *, stated: Sequence[tuple[int, int]] | None = None) -> np.ndarray:
    """(I, 2) int64, each picture's (height, width) after EXIF rotation.

    A missing or unreadable picture is fatal. A header costs 0.1 ms and a seek, so for the many pictures of a large set
    the sizes that the annotations state are believed after a sample: `HEADERS` of them, evenly spaced, must agree.

    Args:
        stated: I sizes from the annotations; (0, 0) where they state none. Where picture and annotations disagree the
            picture wins, unless its EXIF rotation is the reason: then the boxes lie in another frame, which is fatal.
    """
    sizes = np.array(stated or [(0, 0)] * len(paths), np.int64).reshape(-1, 2)
    there = _there(paths, problems)
    known = there & (sizes > 0).all(axis=1)
    sample = np.flatnonzero(known)
    sample = sample[:: max(1, -(-len(sample) // HEADERS))]
    headers = _headers(paths, np.union1d(sample, np.flatnonzero(there & ~known)), problems)
    if any(headers[row].size != tuple(sizes[row]) for row in sample if row in headers):
        headers |= _headers(paths, np.setdiff1d(np.flatnonzero(known), sample), problems)
    for row, header in headers.items():
        if known[row] and header.size != tuple(sizes[row]):
            _report_size(paths[row], tuple(sizes[row].tolist()), header, problems)
        sizes[row] = header.size
    return sizes


def _there(paths: list[str], problems: Problems) -> np.ndarray:
    """(I,) bool, whether each file exists, found by listing each folder once; those that do not are fatal."""
    folders = {folder: _names(folder) for folder in {os.path.dirname(path) for path in paths}}
    there = np.array([os.path.basename(path) in folders[os.path.dirname(path)] for path in paths], bool)
    problems.add_rows("picture is missing", np.flatnonzero(~there), lambda row: paths[row], fatal=True)
    return there


def _names(folder: str) -> set[str]:
    try:
        return set(os.listdir(folder or "."))
    except OSError:
        return set()


def _headers(paths: list[str], rows: np.ndarray, problems: Problems) -> dict[int, Header]:
    """The headers of these rows' pictures, without those that cannot be read, which are fatal."""

    def read(row: int) -> tuple[int, Header | DataError]:
        try:
            return row, read_header(paths[row])
        except DataError as error:
            return row, error

    with ThreadPoolExecutor(8) as pool:
        found = dict(pool.map(read, rows.tolist()))
    for header in found.values():
        if isinstance(header, DataError):
            problems.add(UNREADABLE, str(header), fatal=True)
    return {row: header for row, header in found.items() if isinstance(header, Header)}


def _report_size(path: str, stated: tuple[int, int], header: Header, problems: Problems) -> None:
    where = f"{path}: stated {stated[1]}x{stated[0]}, is {header.size[1]}x{header.size[0]}"
    if header.turned and stated == header.size[::-1]:
        kind = "boxes were drawn before the picture's EXIF rotation (save the picture upright, or without the EXIF tag)"
        problems.add(kind, where, fatal=True)
    else:
        problems.add(WRONG_SIZE, where)


def _first_error(problems: Problems) -> str:
    return f"; first error: {next(iter(problems.fatal.values()))[0]}" if problems.fatal else ""


def distinct_names(paths: list[str]) -> list[str]:
    """The file names of pictures whose annotations are to be named by their stems; a stem twice is a DataError."""
    owner: dict[str, str] = {}
    for path in paths:
        other = owner.setdefault(os.path.splitext(os.path.basename(path))[0], path)
        if other != path:
            raise DataError(f"{other} and {path}: pictures of one name need different ones in this format")
    return [os.path.basename(path) for path in paths]


def read_lines(path: Path) -> list[str]:
    """The lines of a list file, without the white space around them; empty ones stay, so that numbers are right."""
    try:
        return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError) as error:  # ValueError: bytes that are no UTF-8
        raise DataError(f"{path}: cannot be read, {error}") from error
