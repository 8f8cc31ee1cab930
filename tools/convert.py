"""`sightline convert DATA --to FORMAT --out FOLDER`: a data set in another form, with its pictures.

    sightline convert VOC2007/ --to coco --out voc-as-coco/
    sightline convert coco/ --to yolo --out coco-as-yolo/ --split val --link

What a format cannot say is left out: masks in VOC and YOLO, crowds in YOLO (in VOC they become difficult objects).
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from sightline.datasets.coco import write_coco
from sightline.datasets.readers import find, raise_if_fatal
from sightline.datasets.splits import without_unions
from sightline.datasets.table import DataError, Table
from sightline.datasets.voc import write_voc
from sightline.datasets.yolo import write_yolo

FORMATS = ("coco", "voc", "yolo")


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name, by default the process's. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="sightline convert", description="Writes a data set in another form.")
    parser.add_argument("data", metavar="DATA", help="a file or folder in COCO, Pascal VOC, YOLO or DeepPCB form")
    parser.add_argument("--to", required=True, choices=FORMATS, help="the form to write")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="where to; must be empty or not there yet")
    parser.add_argument("--split", help="only this split; by default all")
    parser.add_argument("--link", action="store_true", help="link to the pictures instead of copying them")
    arguments = parser.parse_args(argv)
    try:
        tables = convert(arguments.data, arguments.to, arguments.out, split=arguments.split, link=arguments.link)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for split, table in tables.items():
        print(f"{split}: {table.describe()}")
        print(table.problems.summary(), end="\n" if table.problems.counts else "")
    return 0


def convert(
    data: str | os.PathLike, to: str, out: str | os.PathLike, *, split: str | None = None, link: bool = False
) -> dict[str, Table]:
    """Writes a data set's splits and pictures to a new folder; a set without splits becomes "train".

    Args:
        data: a file or folder in any known format.
        to: "coco", "voc" or "yolo".
        out: the folder to make.
        split: only this one.
        link: make symbolic links to the pictures instead of copies.

    Returns:
        What was written, by split, with the pictures' new paths.

    Raises:
        DataError: the data set cannot be read or is wrong beyond repair, or `out` has something in it.
    """
    out = Path(out)
    if to not in FORMATS:
        raise DataError(f"cannot write {to!r}; known are {', '.join(FORMATS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: already there and not empty; choose another folder")
    source = find(data)
    if split is not None and split not in source.splits:
        raise DataError(f"{data}: no split {split!r}; there are {', '.join(source.splits) or 'none'}")
    splits = [split] if split else without_unions(source.splits) or [None]
    tables = {name or "train": source.read(name) for name in splits}
    raise_if_fatal(*tables.values())
    names = _names(path for table in tables.values() for path in table.paths)
    return {name: _write(table, to, out, name, names, link) for name, table in tables.items()}


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
    sys.exit(main())
