"""Captioned pictures, read: COCO's captions json, Karpathy's splits, the token files of Flickr8k and Flickr30k, CSV.

    tables = read_captioned("flickr8k/")      # {"train": Table, "val": Table, "test": Table}, with captions, no boxes
    tables = read_captioned("coco/")          # captions_train2017.json and captions_val2017.json, there or in annotations/
    tables = read_captioned("dataset.json")   # Karpathy's splits; the folder of pictures lies around it
    tables = read_captioned("captions.csv")   # picture, sentence, and if need be a column "split"

Pictures may lie anywhere in the data set's folder. Those of a set without splits are held out by a hash of their names.

What is fatal: a picture that is not there or cannot be read, a picture in two splits, a line of another form. What is
left out and counted: empty sentences, pictures without a sentence, sentences of pictures that the split lists or the
json's images do not name. What is only warned of: a sentence twice for one picture, a CSV's sentence of several lines,
one name for several files.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from .caption_coco import read_coco_captions
from .caption_karpathy import is_karpathy, read_karpathy
from .caption_lines import read_csv, read_list, read_tokens, split_named
from .caption_pictures import Index, by_split, text_table
from .caption_sentences import Sentences, leave_out
from .coco import split_of
from .readers import find, raise_if_fatal
from .splits import roles, split_by_hash, warn_test_as_val
from .table import DataError, Problems, Table

FORMS = """captions_*.json of COCO's form, there or in annotations/
    Karpathy's splits (dataset_*.json or dataset.json), there or in annotations/
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
    tables = read_each(path)
    raise_if_fatal(*tables.values())
    chosen = roles(list(tables), str(path))
    found = {role: tables[name] for role, name in chosen.items()}
    if "val" not in found:
        return split_by_hash(found["train"], val_fraction, seed) | {r: t for r, t in found.items() if r == "test"}
    if chosen["val"] == "test":
        warn_test_as_val(found["val"], str(path))
    return found


def read_each(path: Path) -> dict[str, Table]:
    """A table for each split that the data set has; one under "train" where it has none. Faults are in their problems.

    Raises:
        DataError: of no known form, or of two.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    found = _forms(path)
    if not found:
        raise DataError(f"{path}: no captions recognised. Known are\n    {FORMS}{_others_at(path)}")
    if len(found) > 1:
        listed = " and ".join(str(form.files[0]) for form in found)
        raise DataError(f"{path}: captions of two forms are here, {listed}; give the path of one")
    tables = found[0].read(path if path.is_dir() else path.parent, found[0].files)
    _note_common_pictures(tables)
    return tables


def _others_at(path: Path) -> str:
    """A hint where something else than sentences is said of the pictures."""
    try:
        kind = type(find(path)).__name__
    except DataError:
        return ""
    return (
        ""
        if kind == "FolderSource"
        else "\nThese are pictures with objects or classes, from which detectors and classifiers learn"
    )


def is_captioned(path: Path) -> bool:
    """Whether these are captioned pictures; a json or CSV whose name does not say so is looked into."""
    return path.exists() and any(_holds_sentences(file) for form in _forms(path) for file in form.files)


def _holds_sentences(path: Path) -> bool:
    if "caption" in path.stem.lower() or ".token" in path.name:
        return True
    try:
        if path.suffix.lower() == ".json":
            return is_karpathy(path) or (b'"caption"' in (data := path.read_bytes()) and b'"bbox"' not in data)
        lengths = [len(text.split()) for group in read_csv(path).of.values() for text in group]
    except (DataError, OSError):
        return False
    return sum(lengths) > 2 * len(lengths)  # what is said of pictures in one word or two is a label


class _Form(NamedTuple):
    """Files of one form, and what reads them."""

    files: list[Path]
    read: Callable[[Path, list[Path]], dict[str, Table]]


def _forms(path: Path) -> list[_Form]:
    """What is there. CSV is looked for only where nothing else is: such files may hold anything."""
    if path.suffix.lower() == ".json" and path.is_file():
        return [_Form([path], _read_karpathy if is_karpathy(path) else _read_coco)]
    found = [
        _Form(_matching(path, "captions_*.json", "annotations/captions_*.json"), _read_coco),
        _Form([file for file in _matching(path, *_KARPATHY) if is_karpathy(file)], _read_karpathy),
        _Form(_matching(path, "*.token.txt", "*.token", "*/*.token.txt", "*/*.token"), _read_token_file),
    ]
    others = _Form(_matching(path, "*.csv", "*.tsv", "captions.txt"), _read_csv_files)
    return [form for form in found if form.files] or [others] * bool(others.files)


_KARPATHY = ("dataset.json", "dataset_*.json", "annotations/dataset.json", "annotations/dataset_*.json")


def _matching(path: Path, *patterns: str) -> list[Path]:
    """The path itself if it is a file of such a name, or the files of a folder that are."""
    if path.is_file():
        return [path] if any(path.match(pattern.rpartition("/")[2]) for pattern in patterns) else []
    found = {file for pattern in patterns for file in path.glob(pattern) if file.is_file()}
    return sorted(file for file in found if not file.name.startswith("."))


def _note_common_pictures(tables: dict[str, Table]) -> None:
    owner: dict[str, str] = {}
    for split, table in tables.items():
        for path in table.paths:
            if owner.setdefault(path, split) != split:
                both = f"{path}: is in two splits, {owner[path]!r} and {split!r}; keep it in one"
                table.problems.add("picture is in two splits", both, fatal=True)


# -- COCO --


def _read_coco(_: Path, files: list[Path]) -> dict[str, Table]:
    names = _distinct(files, split_of)
    return {split if len(files) > 1 else "train": read_coco_captions(file) for split, file in names.items()}


# -- Karpathy's splits --


def _read_karpathy(folder: Path, files: list[Path]) -> dict[str, Table]:
    if len(files) > 1:
        raise DataError(f"{folder}: {files[0].name} and {files[1].name} both hold splits; give the path of one")
    above = folder.name == "annotations"
    return by_split(files[0], read_karpathy(files[0]), Index(folder.parent if above else folder))


# -- Text --


def _read_token_file(folder: Path, files: list[Path]) -> dict[str, Table]:
    if len(files) > 1:
        raise DataError(f"{folder}: {files[0].name} and {files[1].name} are both token files; give the path of one")
    sentences = read_tokens(files[0])
    lists = sorted({file for place in (folder, files[0].parent) for file in place.glob("*.txt") if split_named(file)})
    above = folder == files[0].parent and folder.name.lower().endswith("_text")  # pictures lie beside Flickr8k_text/
    pictures = Index(folder.parent if above else folder)
    if not lists:
        return {"train": text_table(files[0], list(sentences.of), sentences, pictures)}
    splits = {split: read_list(file) for split, file in _distinct(lists, split_named).items()}
    return _listed(files[0], splits, sentences, pictures)


def _listed(path: Path, splits: dict[str, dict[str, str]], sentences: Sentences, pictures: Index) -> dict[str, Table]:
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
        tables[split] = text_table(path, chosen, replace(own, problems=problems), pictures)
    for name in [name for name in sentences.of if name not in owner]:
        sentences.problems.add("picture that no split list names (left out)", f"{sentences.where[name]}: {name}")
    next(iter(tables.values())).problems.merge(sentences.problems)
    return tables


def _read_csv_files(folder: Path, files: list[Path]) -> dict[str, Table]:
    """One file, with a column of splits or without; or a file for each split."""
    pictures = Index(folder)
    if len(files) == 1:
        return by_split(files[0], read_csv(files[0]), pictures)
    if any(split_named(file) is None for file in files):
        raise DataError(f"{folder}: which of {', '.join(file.name for file in files)} holds captions? give its path")
    read = {split: (file, read_csv(file)) for split, file in _distinct(files, split_named).items()}
    return {split: text_table(file, list(found.of), found, pictures) for split, (file, found) in read.items()}


def _distinct(files: list[Path], split: Callable[[Path], str | None]) -> dict[str, Path]:
    """The file of each split."""
    found: dict[str, Path] = {}
    for file in files:
        other = found.setdefault(str(split(file)), file)
        if other is not file:
            raise DataError(f"{other} and {file} are both the {split(file)!r} split; keep one")
    return found
