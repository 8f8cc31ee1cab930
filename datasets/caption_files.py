"""Captioned pictures, read: COCO's captions json, the token files of Flickr8k and Flickr30k, CSV.

    tables = read_captioned("flickr8k/")      # {"train": Table, "val": Table, "test": Table}, with captions, no boxes
    tables = read_captioned("coco/")          # captions_train2017.json and captions_val2017.json, there or in annotations/
    tables = read_captioned("captions.csv")   # picture, sentence, and if need be a column "split"

Pictures may lie anywhere in the data set's folder. Those of a set without splits are held out by a hash of their names.

What is fatal: a picture that is not there or cannot be read, a picture in two splits, a line of another form. What is
left out and counted: empty sentences, pictures without a sentence, sentences of pictures that the split lists or the
json's images do not name. What is only warned of: a sentence twice for one picture, one name for several files.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from os import PathLike
from pathlib import Path

from .caption_coco import read_coco_captions
from .caption_lines import SPLITS, read_csv, read_list, read_tokens, split_named
from .caption_sentences import Sentences, captioned_table, leave_out
from .clean import Pictures, measure
from .coco import split_of
from .images import IMAGE_SUFFIXES
from .readers import raise_if_fatal
from .splits import roles, split_by_hash, warn_test_as_val
from .table import DataError, Problems, Table

_FORMS = """captions_*.json of COCO's form, there or in annotations/
    a token file (*.token.txt or *.token), there or one folder below
    CSV of picture and sentence (*.csv, *.tsv or captions.txt)"""


def read_captioned(path: str | PathLike, *, seed: int = 0, val_fraction: float = 0.2) -> dict[str, Table]:
    """All that a training needs of captioned pictures: "train", "val" and, where there is one, "test".

    Args:
        path: a folder, or one file, which is read as a set without splits (unless a CSV has a column of them).
        seed: of the choice by hash, where no split is for validation.
        val_fraction: of the choice by hash; 0 to 1, exclusive.

    Returns:
        Tables with `captions`, at least one sentence a picture, and without categories or objects. "val" and "test" are
        the same table where "test" stands for both.

    Raises:
        DataError: of no known form, no split for training, or wrong beyond repair.
    """
    path = Path(path).expanduser()
    tables = _read(path)
    raise_if_fatal(*tables.values())
    _require_disjoint(tables)
    chosen = roles(list(tables), str(path))
    found = {role: tables[name] for role, name in chosen.items()}
    if "val" not in found:
        return split_by_hash(found["train"], val_fraction, seed) | {r: t for r, t in found.items() if r == "test"}
    if chosen["val"] == "test":
        warn_test_as_val(found["val"], str(path))
    return found


def _read(path: Path) -> dict[str, Table]:
    """A table for each split that the data set has; one under "train" where it has none."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    for patterns, read in (
        (("captions_*.json", "annotations/captions_*.json"), _read_coco),
        (("*.token.txt", "*.token", "*/*.token.txt", "*/*.token"), _read_token_file),
        (("*.csv", "*.tsv", "captions.txt"), _read_csv_files),
    ):
        if path.is_file():
            files = [path] if any(path.match(pattern.removeprefix("*/")) for pattern in patterns) else []
        else:
            files = sorted({file for pattern in patterns for file in path.glob(pattern) if file.is_file()})
        if files:
            return read(path if path.is_dir() else path.parent, files)
    if path.suffix.lower() == ".json":
        return _read_coco(path.parent, [path])
    raise DataError(f"{path}: no captions recognised. Known are\n    {_FORMS}")


def _require_disjoint(tables: dict[str, Table]) -> None:
    owner: dict[str, str] = {}
    for split, table in tables.items():
        for path in table.paths:
            if owner.setdefault(path, split) != split:
                raise DataError(f"{path}: is in two splits, {owner[path]!r} and {split!r}; keep it in one")


# -- COCO --


def _read_coco(_: Path, files: list[Path]) -> dict[str, Table]:
    names = _distinct(files, split_of)
    return {split if len(files) > 1 else "train": read_coco_captions(file) for split, file in names.items()}


# -- Text --


def _read_token_file(folder: Path, files: list[Path]) -> dict[str, Table]:
    if len(files) > 1:
        raise DataError(f"{folder}: {files[0].name} and {files[1].name} are both token files; give the path of one")
    sentences = read_tokens(files[0])
    lists = sorted({file for place in (folder, files[0].parent) for file in place.glob("*.txt") if split_named(file)})
    above = folder == files[0].parent and folder.name.lower().endswith("_text")  # pictures lie beside Flickr8k_text/
    pictures = _Index(folder.parent if above else folder)
    if not lists:
        return {"train": _text_table(files[0], list(sentences.of), sentences, pictures)}
    splits = {split: read_list(file) for split, file in _distinct(lists, split_named).items()}
    return _listed(files[0], splits, sentences, pictures)


def _listed(path: Path, splits: dict[str, dict[str, str]], sentences: Sentences, pictures: _Index) -> dict[str, Table]:
    """The tables of split lists; what is wrong with the sentences is told with the first of them."""
    tables, owner = {}, {}
    for split, listed in splits.items():
        problems, chosen = Problems(), []
        for name, where in listed.items():
            name = name if name in sentences.of or f"{name}.jpg" not in sentences.of else f"{name}.jpg"
            if owner.setdefault(name, split) != split:
                problems.add("picture is in two splits", f"{where}: {name}, in {owner[name]} too", fatal=True)
            elif name in sentences.of:
                chosen.append(name)
            else:
                leave_out(problems, [f"{where}: {name}"])
        own = replace(sentences, where=sentences.where | {n: w for n, w in listed.items() if n in sentences.of})
        tables[split] = _text_table(path, chosen, replace(own, problems=problems), pictures)
    for name in [name for name in sentences.of if name not in owner]:
        sentences.problems.add("picture that no split list names (left out)", f"{sentences.where[name]}: {name}")
    next(iter(tables.values())).problems.merge(sentences.problems)
    return tables


def _read_csv_files(folder: Path, files: list[Path]) -> dict[str, Table]:
    """One file, with a column of splits or without; or a file for each split."""
    pictures = _Index(folder)
    if len(files) == 1:
        return _by_column(files[0], pictures)
    if any(split_named(file) is None for file in files):
        raise DataError(f"{folder}: which of {', '.join(file.name for file in files)} holds captions? give its path")
    read = {split: (file, read_csv(file)) for split, file in _distinct(files, split_named).items()}
    return {split: _text_table(file, list(found.of), found, pictures) for split, (file, found) in read.items()}


def _by_column(path: Path, pictures: _Index) -> dict[str, Table]:
    """The tables of the splits that a file's column names; "train" where there is no such column."""
    sentences, tables = read_csv(path), {}
    for split in dict.fromkeys(SPLITS.values()):
        if names := [name for name in sentences.of if sentences.split.get(name, "train") == split]:
            tables[split] = _text_table(path, names, sentences, pictures)
            sentences = replace(sentences, problems=Problems())  # told once, with the first split
    if not tables:
        raise DataError(f"{path}: not one sentence in it\n{sentences.problems.summary()}")
    return tables


def _text_table(path: Path, names: list[str], sentences: Sentences, pictures: _Index) -> Table:
    """The table of these pictures, in this order."""
    problems, paths, kept = sentences.problems, [], []
    for name in names:
        found = pictures.find(name, problems)
        if found is None:
            problems.add("picture is missing", f"{sentences.where[name]}: {name}", fatal=True)
        else:
            paths.append(found)
            kept.append(sentences.of[name])
    return captioned_table(path, Pictures(paths, measure(paths, problems)), kept, problems)


class _Index:
    """Where the pictures of a data set lie: at the path that a name is, or else anywhere below its folder.

    Names are compared with their letters composed (NFC): macOS takes them apart in folders, text seldom does.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, name: str, problems: Problems) -> str | None:
        """The file of a name, which may have folders before it; None where there is none."""
        name = name.replace("\\", "/")
        if os.path.isfile(exact := os.path.join(self.folder, name)):
            return exact
        name = unicodedata.normalize("NFC", name)
        found = self._by_name.get(name.rpartition("/")[2], [])
        if len(found) > 1:
            found = [path for path in found if path.replace("\\", "/").endswith(f"/{name}")]
            if len(found) > 1:
                problems.warn("one name for several files (the first is taken)", ", ".join(found[:3]))
        return found[0] if found else None

    @cached_property
    def _by_name(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for place, folders, files in os.walk(self.folder):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for file in sorted(files):
                if os.path.splitext(file)[1].lower() in IMAGE_SUFFIXES:
                    found.setdefault(unicodedata.normalize("NFC", file), []).append(os.path.join(place, file))
        return found


def _distinct(files: list[Path], split: Callable[[Path], str | None]) -> dict[str, Path]:
    """The file of each split."""
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(str(split(file)), file)
        if other is not file:
            raise DataError(f"{other} and {file} are both the {split(file)!r} split; keep one")
    return found
