"""Proposals made elsewhere, read into a table, and a table's written.

Three kinds of file are read:

- ours, an .npz: `names` (or `image_ids`) of I pictures, `boxes` (P, 4) xyxy in pixels, picture after picture, `offsets` (I + 1)
  of each picture's first, `scores` (P,), which may be missing where boxes are best first, and of regions `masks`, packed as
  in `proposals.Regions`;
- COCO's results, a json list of {image_id, bbox: [x, y, width, height], score}; categories are not looked at;
- the .mat of selective search (Uijlings et al. 2013), as Girshick gave it away with R-CNN and Fast R-CNN: `images`, a cell
  array of I names, and `boxes`, one of (P, 4) y1 x1 y2 x2, counted from 1 with both ends included, best first.

A name stands for the picture whose path ends in it, with or without the suffix: "000005", or "train/000005.jpg".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path, PurePath

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from .detection import has_file
from .images import IMAGE_SUFFIXES
from .masks import recrop
from .proposal_formats import KINDS, SUFFIXES, Listing, read_listing
from .proposals import Regions, pack, unpack
from .table import DataError, Table


def write_proposals(path: str | PathLike, table: Table) -> None:
    """Writes a table's proposals as an .npz, which `read_proposals` reads back equal; makes the folder if need be.

    Pictures are named by their paths from the folder on that holds them all, so the data may be moved.

    Raises:
        ValueError: the table has none.
    """
    if table.regions is None:
        raise ValueError("this table has no proposals to write; `datasets.propose` makes some")
    path, regions = Path(path), table.regions
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"boxes": regions.boxes, "scores": regions.scores, "offsets": regions.offsets}
    columns |= {} if regions.masks is None else {"masks": regions.masks}
    with path.open("wb") as file:  # given a name, numpy would put its own suffix behind it
        np.savez_compressed(file, names=np.array(_names(table.paths), np.str_), **columns)


def _names(paths: Sequence[str]) -> list[str]:
    """Paths from their common folder on, whose own name is the first part; built-in pictures' paths as they are."""
    folders = [PurePath(path).parent.parts for path in paths if has_file(path)]
    shared = 0
    while folders and all(len(parts) > shared and parts[shared] == folders[0][shared] for parts in folders):
        shared += 1
    first = max(0, shared - 1)
    return [PurePath(*PurePath(path).parts[first:]).as_posix() if has_file(path) else path for path in paths]


def read_proposals(path: str | PathLike, table: Table) -> Table:
    """The table with proposals made elsewhere in place of any it has, by descending score; equal ones stay in order.

    Boxes are clipped to their pictures; those without area, or that are no numbers, are dropped. This, and how many
    pictures have no proposals, is told in one line. Pictures that the table does not have are passed over.

    Args:
        path: a file of the kinds above, or a folder of them, of one split each, say.
        table: I pictures.

    Raises:
        DataError: a file is not there, of no known kind or broken; no picture of the table has proposals in it, or one has
            two lists of them.
    """
    path = Path(path)
    files = _files(path)
    listings = [read_listing(file) for file in files]
    rows = [_rows(file, part.pictures, table) for file, part in zip(files, listings, strict=True)]
    _require_each_once(path, np.concatenate(rows), listings, table)
    image = np.concatenate([np.repeat(own, np.diff(part.offsets)) for own, part in zip(rows, listings, strict=True)])
    boxes, scores = (np.concatenate([part[column] for part in listings])[image >= 0] for column in (1, 2))
    masks = _masks(path, listings)
    regions, repaired = _clean(table, image[image >= 0], boxes, scores, None if masks is None else masks[image >= 0])
    _tell(path, table, regions, repaired)
    return replace(table, regions=regions)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    shown = (file for file in path.iterdir() if not file.name.startswith("."))
    files = sorted(file for file in shown if file.suffix.lower() in SUFFIXES)
    if not files:
        raise DataError(f"{path}: no proposals in this folder; they come as {KINDS}")
    return files


def _rows(path: Path, pictures: Sequence[str] | Sequence[int], table: Table) -> np.ndarray:
    """Each picture's row in the table, -1 for those that it does not have."""
    exact = {name: row for row, name in enumerate(_names(table.paths))}  # as `write_proposals` calls them
    if pictures and all(picture in exact for picture in pictures):
        return np.array([exact[picture] for picture in pictures], np.int64)
    names = [_stem(picture) for picture in pictures if isinstance(picture, str)]
    by_name = _by_name(table.paths, {len(PurePath(name).parts) for name in names})
    for name in names:
        if len(by_name.get(name, ())) > 1:
            one, other, *_ = (table.paths[row] for row in by_name[name])
            raise DataError(f"{path}: {name!r} may be {one} or {other}; write names with the folders above them")
    if names:
        return np.array([by_name.get(name, [-1])[0] for name in names], np.int64)
    by_id = {image_id: row for row, image_id in enumerate(table.image_ids.tolist())}
    return np.array([by_id.get(picture, -1) for picture in pictures], np.int64)


def _by_name(paths: Sequence[str], depths: set[int]) -> dict[str, list[int]]:
    """The rows of the pictures whose paths end so, for ends of so many parts; built-in pictures' by their whole paths."""
    rows: dict[str, list[int]] = {}
    for row, path in enumerate(paths):
        parts = PurePath(_stem(path)).parts
        for end in {PurePath(*parts[-depth:]).as_posix() for depth in depths} if has_file(path) else {path}:
            rows.setdefault(end, []).append(row)
    return rows


def _stem(name: str) -> str:
    """A picture's path without its suffix, if that is a picture's; a built-in picture's as it is."""
    path = PurePath(name)
    if not has_file(name):
        return name
    return (path.with_suffix("") if path.suffix.lower() in IMAGE_SUFFIXES else path).as_posix()


def _require_each_once(path: Path, rows: np.ndarray, listings: Sequence[Listing], table: Table) -> None:
    known, counts = np.unique(rows[rows >= 0], return_counts=True)
    if (counts > 1).any():
        raise DataError(f"{path}: it has two lists of proposals for {table.paths[known[counts.argmax()]]}; keep one")
    if not len(known) and len(table):
        theirs = [repr(picture) for listing in listings for picture in listing.pictures[:1]]
        raise DataError(
            f"{path}: none of its {len(rows)} pictures is one of this split's {len(table)}; there they are called "
            f"{', '.join(theirs) or 'nothing'}, here {table.paths[0]} (id {table.image_ids[0]}): is it another split's? A name "
            "must be the end of a path"
        )


def _masks(path: Path, listings: Sequence[Listing]) -> np.ndarray | None:
    """Those of all files; None where none has some."""
    every = [listing.masks for listing in listings]
    if all(masks is None for masks in every):
        return None
    if any(masks is None for masks in every) or len({masks.shape[1] for masks in every}) > 1:
        raise DataError(f"{path}: some of its files have masks, and others none or of another size; make them alike")
    return np.concatenate(every)


def _clean(
    table: Table, image: np.ndarray, boxes: np.ndarray, scores: np.ndarray, masks: np.ndarray | None
) -> tuple[Regions, dict[str, int]]:
    """Proposals (P,) of the pictures `image` in any order, clipped, sorted, without the bad ones; and what was repaired.

    The mask of a box that is clipped is cut with it.
    """
    clipped = boxes.clip(0, np.tile(table.sizes[image, ::-1], 2)).astype(np.float32)
    finite = np.isfinite(boxes).all(1) & np.isfinite(scores)
    beyond = (np.abs(clipped - boxes)[finite] > 0.01).any(1)  # less is rounding
    usable = np.flatnonzero(finite & (clipped[:, 2:] > clipped[:, :2]).all(1))
    order = usable[np.lexsort((-scores[usable], image[usable]))]
    offsets = np.searchsorted(image[order], np.arange(len(table) + 1))
    repaired = {
        "beyond their picture (clipped)": int(beyond.sum()),
        "without area, or no numbers (dropped)": len(image) - len(order),
    }
    if masks is not None:
        masks = masks[order]
        cut = (clipped != boxes.astype(np.float32))[order].any(1)
        masks[cut] = _cut(masks[cut], boxes[order][cut], clipped[order][cut])
    return Regions(clipped[order], scores[order].astype(np.float32), offsets, masks), repaired


def _cut(masks: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Packed masks within boxes `new`, of those within boxes `old`."""
    old, new = (torch.from_numpy(boxes.astype(np.float32)) for boxes in (old, new))
    return pack((recrop(torch.from_numpy(unpack(masks)).float(), old, new) >= 0.5).numpy())


def _tell(path: Path, table: Table, regions: Regions, repaired: dict[str, int]) -> None:
    """One line on what was not as it should be.

    Raises:
        DataError: no picture has proposals.
    """
    empty = np.flatnonzero(np.diff(regions.offsets) == 0)
    if len(empty) and len(empty) == len(table):
        raise DataError(f"{path}: not one of its boxes has an area within its picture; they must be in its pixels")
    parts = [f"{count} {what}" for what, count in repaired.items() if count]
    if len(empty):
        parts.append(f"{len(empty)} of {len(table)} pictures have none, {table.paths[empty[0]]} for one")
    if parts:
        rank_zero_info(f"{path}: {len(regions.boxes)} proposals; {'; '.join(parts)}")
