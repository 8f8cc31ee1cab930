"""`sightline convert DATA --to FORMAT --out FOLDER`: a data set in another form, with its pictures.

    sightline convert VOC2007/ --to coco --out voc-as-coco/
    sightline convert coco/ --to yolo --out coco-as-yolo/ --split val --link
    sightline convert coco/ --to folders --out coco-crops/ --crops --min-side 16 --commonest 20
    sightline convert nuclei/ --to coco --out nuclei-as-coco/          # numbered masks become COCO's segmentations
    sightline convert coco/ --to masks --out coco-masks/               # a category for every pixel

What a format cannot say is left out: masks in VOC and YOLO, crowds in YOLO (in VOC they become difficult objects). Class
folders hold either pictures that are of one class as a whole, or, with --crops, one picture for every object. Masks are
pictures in images/ and PNGs of the categories' numbers in masks/, with categories.csv beside them; they are drawn from the
objects' outlines, or are those of a data set of label maps, which has no objects that another format could hold.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from sightline.datasets.coco import write_coco
from sightline.datasets.folders import FolderSource, ObjectCrops, class_paths, write_crops
from sightline.datasets.readers import Source, raise_if_fatal
from sightline.datasets.splits import without_unions
from sightline.datasets.table import DataError, Table, nearest
from sightline.datasets.voc import write_voc
from sightline.datasets.yolo import write_yolo
from sightline.tools.command_options import OptionsParser
from sightline.tools.convert_masks import require_parts, source_of, write_masks
from sightline.tools.main import run

FORMATS = ("coco", "voc", "yolo", "folders", "masks")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name, by default the process's. Returns the exit code."""
    arguments = _parser().parse_args(argv)
    tables = convert(
        arguments.data,
        arguments.to,
        arguments.out,
        split=arguments.split,
        link=arguments.link,
        categories=arguments.categories or arguments.commonest,
        crops=_crops(arguments),
    )
    for split, table in tables.items():
        print(f"{split}: {table.describe()}")
        print(table.problems.summary(), end="\n" if table.problems.counts else "")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = OptionsParser(prog="sightline convert", description="Writes a data set in another form.")
    parser.add_argument("data", metavar="DATA", help="a file or folder in any form that `sightline check` knows")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the form to write")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to; must be empty or not there yet")
    parser.add_argument("--split", help="only this split; by default all")
    parser.add_argument("--link", action="store_true", help="link to the pictures instead of copying them")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--categories", nargs="+", metavar="NAME", help="keep only objects of these categories")
    which.add_argument(
        "--commonest", type=int, metavar="N", help="keep only the N categories with most training objects"
    )
    crops = parser.add_argument_group("crops, with --to folders")
    crops.add_argument("--crops", action="store_true", help="write each object as a picture of its own")
    crops.add_argument(
        "--margin", type=float, metavar="SHARE", help="grow boxes by this share of their sides, each way"
    )
    crops.add_argument("--min-side", type=int, metavar="PIXELS", help="leave out objects whose shorter side is less")
    return parser


def _crops(arguments: argparse.Namespace) -> ObjectCrops | None:
    given = {name: getattr(arguments, name) for name in ("margin", "min_side") if getattr(arguments, name) is not None}
    if given and not arguments.crops:
        raise DataError(f"--{next(iter(given)).replace('_', '-')} is of crops; give --crops too")
    return ObjectCrops(**given) if arguments.crops else None


def convert(
    data: str | os.PathLike,
    to: str,
    out: str | os.PathLike,
    *,
    split: str | None = None,
    link: bool = False,
    categories: Sequence[str] | int | None = None,
    crops: ObjectCrops | None = None,
) -> dict[str, Table]:
    """Writes a data set's splits and pictures to a new folder; a set without splits becomes "train".

    Args:
        data: a file or folder in any known format.
        to: "coco", "voc", "yolo", "folders" or "masks".
        out: the folder to make.
        split: only this one.
        link: make symbolic links to the pictures instead of copies.
        categories: names of those to keep, or how many of the commonest: those with most objects, crowds not counted, in
            the training split (where there is none, in all). They keep their order, and pictures stay without objects.
        crops: with "folders", write each object as a picture; None writes whole pictures, which must be of one class.

    Returns:
        What was written, by split, with the pictures' new paths.

    Raises:
        DataError: the data set cannot be read or is wrong beyond repair, `out` has something in it, or what is asked for
            does not go with the format or the data.
    """
    out = Path(out)
    _require_possible(to, out, link, crops)
    source = source_of(data, masks=to == "masks")
    if split is not None and split not in source.splits:
        raise DataError(f"{data}: no split {split!r}; there are {', '.join(source.splits) or 'none'}")
    splits = [split] if split else without_unions(source.splits) or [None]
    tables = {name or "train": source.read(name) for name in splits}
    raise_if_fatal(*tables.values())
    if not any(table.categories for table in tables.values()):
        raise DataError(f"{data}: pictures without classes, of which there is nothing to convert")
    if to == "masks":
        require_parts(tables, out)
    if categories is not None:
        if any(table.label_maps is not None for table in tables.values()):
            raise DataError(f"{data}: every pixel of a label map is of some category, of which none can be left out")
        kept = _commonest(source, tables, categories) if isinstance(categories, int) else list(categories)
        tables = {name: _only(table, kept) for name, table in tables.items()}
    names = _names(path for table in tables.values() for path in table.paths)
    if crops:
        return _write_crops(tables, out, names, crops)
    if to == "folders":
        return _write_folders(tables, out, names, link)
    if to == "masks":
        return {
            name: write_masks(table, out, name, names, partial(_place, link=link)) for name, table in tables.items()
        }
    return {name: _write(table, to, out, name, names, link) for name, table in tables.items()}


def _require_possible(to: str, out: Path, link: bool, crops: ObjectCrops | None) -> None:
    if to not in FORMATS:
        raise DataError(f"cannot write {to!r}; known are {', '.join(FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: already there and not empty; choose another folder")
    if crops and to != "folders":
        raise DataError(f"crops go into class folders: --to folders, not {to}")
    if crops and link:
        raise DataError("crops are new pictures, to which nothing can be linked; leave --link out")


def _commonest(source: Source, tables: dict[str, Table], count: int) -> list[str]:
    train = next((name for name in ("train", "trainval") if name in source.splits), None)
    counted = [tables.get(train) or source.read(train)] if train else list(tables.values())
    names = counted[0].categories
    objects = sum(np.bincount(table.labels[~table.crowd], minlength=len(names)) for table in counted)
    if not 1 <= count <= (objects > 0).sum():
        raise DataError(f"cannot keep the {count} commonest categories: {(objects > 0).sum()} have objects")
    return [names[label] for label in sorted(np.argsort(-objects, kind="stable")[:count])]


def _only(table: Table, categories: list[str]) -> Table:
    """The same pictures with the objects of these categories alone, which keep their order in the table."""
    for name in categories:
        if name not in table.categories:
            raise DataError(f"no category {name!r} in the data set{nearest(name, table.categories)}")
    kept = np.array([label for label, name in enumerate(table.categories) if name in categories])
    table = table.select_objects(np.flatnonzero(np.isin(table.labels, kept)))
    return replace(
        table,
        categories=[table.categories[label] for label in kept],
        category_ids=table.category_ids[kept],
        labels=np.searchsorted(kept, table.labels),
    )


def _write(table: Table, to: str, out: Path, split: str, names: dict[str, str], link: bool) -> Table:
    folder = {"coco": out / "images", "voc": out / "JPEGImages", "yolo": out / "images" / split}[to]
    folder.mkdir(parents=True, exist_ok=True)
    new_names = [names[path] for path in table.paths]
    for path, name in zip(table.paths, new_names, strict=True):
        _place(Path(path), folder / name, link)
    written = replace(table, paths=[str(folder / name) for name in new_names])
    if to == "coco":
        write_coco(written, out / f"instances_{split}.json")
    elif to == "voc":
        write_voc(written, out, split)
    else:
        write_yolo(written, out, split)
    return written


def _write_crops(tables: dict[str, Table], out: Path, names: dict[str, str], crops: ObjectCrops) -> dict[str, Table]:
    for split, table in tables.items():
        stems = [Path(names[path]).stem for path in table.paths]
        table.problems.merge(write_crops(table, stems, out / split, crops))
    return _read_back(tables, out)


def _write_folders(tables: dict[str, Table], out: Path, names: dict[str, str], link: bool) -> dict[str, Table]:
    places = [
        (Path(path), place)
        for split, table in tables.items()
        for path, place in zip(
            table.paths, class_paths(table, [names[path] for path in table.paths], out / split), strict=True
        )
        if place is not None
    ]
    for path, place in places:
        place.parent.mkdir(parents=True, exist_ok=True)
        _place(path, place, link)
    return _read_back(tables, out)


def _read_back(tables: dict[str, Table], out: Path) -> dict[str, Table]:
    """Class folders as they now are, with what was said of their source."""
    for split, table in tables.items():
        if not (out / split).is_dir():
            raise DataError(f"{split}: no object is left to write\n{table.problems.summary()}".rstrip())
    source = FolderSource(out)
    written = {split: source.read(split) for split in tables}
    for split, table in written.items():
        tables[split].problems.merge(table.problems)
        table.problems = tables[split].problems
    raise_if_fatal(*written.values())
    return written


def _names(paths: Iterable[str]) -> dict[str, str]:
    """A file name for each path, all stems different: its own, behind its folder's where another has taken it."""
    names: dict[str, str] = {}
    taken: set[str] = set()
    for path in map(Path, dict.fromkeys(paths)):
        tries = [path.stem, f"{path.parent.name}_{path.stem}"]
        stem = next((stem for stem in tries if stem not in taken), f"{tries[1]}_{len(taken)}")
        taken.add(stem)
        names[str(path)] = stem + path.suffix
    return names


def _place(path: Path, target: Path, link: bool) -> None:
    if target.exists():  # a picture of two splits
        return
    if link:
        target.symlink_to(path.absolute())
    else:
        shutil.copyfile(path, target)


if __name__ == "__main__":
    sys.exit(run("convert", sys.argv[1:]))
