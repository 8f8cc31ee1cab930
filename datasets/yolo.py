"""YOLO's text labels, read and written: a line `class cx cy w h` an object, in fractions of the picture.

Known layouts: a `data.yaml` (`names`; `train`, `val`, `test` as folder, list file, or several, relative to `path`), or
folders `images/` and `labels/`, with or without split folders in them, and the names in `classes.txt` or `obj.names`. A
picture's labels lie where the last `images` of its path reads `labels`, else beside it; without a file it is a picture
without objects.

A line of more than five numbers is a polygon: class x1 y1 x2 y2 x3 y3 ..., kept in pixels, and the box is what encloses
it. What is fatal: a line that is no such thing, a class that is not among the names, two pictures that share one label
file, a listed picture that is not there. What is repaired: see `clean`; also a picture listed twice (kept once).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import yaml

from .clean import UNKNOWN_CATEGORY, Objects, Pictures, clean_table, distinct_names, measure, read_lines
from .images import pictures_below
from .table import DataError, Problems, Table

_NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt", "labels/obj.names")
_SPLITS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}


def read_yolo(path: str | PathLike, split: str | None = None) -> Table:
    """One split of a YOLO data set as a table.

    Args:
        path: a data.yaml, or a folder that holds one or `images/` and `labels/`.
        split: "train", "val" or "test"; None where the set has no splits.

    Raises:
        DataError: no such layout, no names, broken yaml, no such split, no pictures. Smaller faults are in `problems`.
    """
    return YoloFolder(path).read(split)


class YoloFolder:
    """A YOLO data set.

    Attributes:
        splits: the names `read` takes; empty where the set has no splits.
        categories: C names.
    """

    def __init__(self, path: str | PathLike) -> None:
        path = Path(path)
        self.yaml = path if path.is_file() else find_yaml(path)
        self.folder = path if path.is_dir() else path.parent
        if self.yaml is not None:
            self.categories, self._sources = _read_yaml(self.yaml)
        else:
            self.categories, self._sources = _names(self.folder), _split_folders(self.folder)
        self.splits = [name for name in self._sources if name]

    def read(self, split: str | None = None) -> Table:
        """One split; as `read_yolo`."""
        if (split or "") not in self._sources:
            raise DataError(
                f"{self.yaml or self.folder}: no split {split!r}; there are {', '.join(self.splits) or 'none'}"
            )
        problems = Problems()
        paths = self._pictures(self._sources[split or ""], problems)
        labels = [label_file(path) for path in paths]
        _report_shared(paths, labels, problems)
        sizes = measure(paths, problems)
        rows = _Rows(labels, len(self.categories), problems)
        pictures = Pictures(paths, sizes)
        return clean_table(str(self.yaml or self.folder), self.categories, pictures, rows.objects(sizes), problems)

    @cached_property
    def orphans(self) -> list[Path]:
        """Label files in `labels/` folders that belong to no picture of any split."""
        used = {label_file(p) for source in self._sources.values() for p in self._pictures(source, Problems())}
        folders = {file.parent for file in used if file.parent.is_dir() and "labels" in file.parts}
        return sorted(
            file
            for folder in folders
            for file in folder.glob("[!.]*.txt")
            if file not in used and file.name != "classes.txt"
        )

    def _pictures(self, sources: list[Path], problems: Problems) -> list[str]:
        found: dict[str, None] = {}
        for source in sources:
            for where, path in _listed(source) if source.suffix == ".txt" else _inside(source):
                if path in found:
                    problems.add("picture listed twice (kept once)", f"{where}: {path}")
                found[path] = None
        return list(found)


def is_yolo(folder: Path) -> bool:
    """Whether a folder looks like a YOLO data set: a yaml with names, `labels/`, or names and no xml files."""
    if not only_names(folder):
        return True
    named = any((folder / name).is_file() for name in _NAME_FILES)
    return named and not any(next((folder / name).glob("*.xml"), None) for name in ("", "Annotations", "annotations"))


def only_names(folder: Path) -> bool:
    """Whether nothing but a file of names could make a folder a YOLO data set: other formats have one, too."""
    return find_yaml(folder) is None and not any((folder / name / "labels").is_dir() for name in ("", *_SPLITS))


def find_yaml(folder: Path) -> Path | None:
    """The folder's data.yaml or dataset.yaml, or else the only yaml file with `names` in it."""
    files = sorted(file for suffix in ("[!.]*.yaml", "[!.]*.yml") for file in folder.glob(suffix))
    for file in files:
        if file.stem in ("data", "dataset"):
            return file
    named = [file for file in files if re.search(r"^names\s*:", file.read_text("utf-8", "replace"), re.MULTILINE)]
    return named[0] if len(named) == 1 else None


def label_file(picture: str | PathLike) -> Path:
    """Where a picture's labels are: the last folder `images` of its path becomes `labels`, and the suffix .txt."""
    parts = list(Path(picture).with_suffix(".txt").parts)
    for place in range(len(parts) - 2, -1, -1):
        if parts[place] == "images":
            parts[place] = "labels"
            break
    return Path(*parts)


def _load_yaml(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except yaml.YAMLError as error:  # a tag that would run code ends here too
        line = f":{error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""
        raise DataError(f"{path}{line}: broken yaml, {getattr(error, 'problem', None) or error}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read, {error}") from error
    return document if isinstance(document, dict) else {}


def _read_yaml(path: Path) -> tuple[list[str], dict[str, list[Path]]]:
    document = _load_yaml(path)
    names = document.get("names")
    if isinstance(names, dict) and set(names) == set(range(len(names))):
        names = [names[label] for label in range(len(names))]
    if not isinstance(names, list) or not names or not all(isinstance(name, (str, int)) for name in names):
        raise DataError(f"{path}: names must be a list, or a mapping from 0, 1, 2, ... to names; got {names!r}")
    if document.get("nc", len(names)) != len(names):
        raise DataError(f"{path}: nc is {document['nc']!r}, but there are {len(names)} names")
    base = path.parent / str(document.get("path") or "")
    sources = {}
    for key, split in _SPLITS.items():
        value = document.get(key)
        values = value if isinstance(value, list) else [value] if value else []
        if values:
            sources[split] = [_resolve(path, base, str(entry)) for entry in values]
    if not sources:
        raise DataError(f"{path}: names no pictures; give train: and val: as folders of pictures")
    return [str(name) for name in names], sources


def _resolve(yaml_path: Path, base: Path, entry: str) -> Path:
    """A folder or list file that the yaml names: below `path`, below the yaml, or there without leading `../`."""
    bare = entry
    while bare.startswith("../"):
        bare = bare[3:]
    tried = list(dict.fromkeys((base / entry, yaml_path.parent / entry, yaml_path.parent / bare)))
    for path in tried:
        if path.exists():
            return path
    raise DataError(f"{yaml_path}: {entry!r} is not there; looked for {', '.join(map(str, tried))}")


def _names(folder: Path) -> list[str]:
    for name in _NAME_FILES:
        if (folder / name).is_file():
            return [line for line in read_lines(folder / name) if line]
    raise DataError(f"{folder}: no class names; write them to classes.txt, one a line, or to names: in a data.yaml")


def _split_folders(folder: Path) -> dict[str, list[Path]]:
    """Split to picture folders: `images/train`, `train/images`, or no splits at all (key "")."""
    found = {}
    for name, split in _SPLITS.items():
        for path in (folder / "images" / name, folder / name / "images"):
            if path.is_dir():
                found[split] = [path]
    return found or {"": [folder / "images" if (folder / "images").is_dir() else folder]}


def _inside(folder: Path) -> Iterable[tuple[str, str]]:
    if folder.is_file():
        return [(str(folder), str(folder))]
    return [(str(folder), path) for path in sorted(pictures_below(folder))]


def _listed(path: Path) -> Iterable[tuple[str, str]]:
    """(where, picture) of a list file; names are relative to the list's folder."""
    for number, line in enumerate(read_lines(path), 1):
        if line:
            yield f"{path}:{number}", str(path.parent / line)


def _report_shared(paths: list[str], labels: list[Path], problems: Problems) -> None:
    owner: dict[Path, str] = {}
    for path, label in zip(paths, labels, strict=True):
        if label in owner:
            problems.add("two pictures share one label file", f"{label}: {owner[label]} and {path}", fatal=True)
        owner[label] = path


class _Row(NamedTuple):
    image: int
    line: int
    label: int
    values: list[float]  # cx, cy, w, h, or x1, y1, x2, y2, ...; fractions


class _Rows:
    """The lines of all label files that can be read as objects."""

    def __init__(self, files: list[Path], num_classes: int, problems: Problems) -> None:
        self.files, self.num_classes, self.problems = files, num_classes, problems
        self.rows = [row for image, file in enumerate(files) if file.is_file() for row in self._read(image, file)]

    def objects(self, sizes: np.ndarray) -> Objects:
        """In pixels, given the pictures' (I, 2) sizes."""
        boxes, area = np.zeros((len(self.rows), 4)), np.full(len(self.rows), np.nan)
        polygons: list = [None] * len(self.rows)
        for k, row in enumerate(self.rows):
            height, width = sizes[row.image]
            if len(row.values) == 4:
                cx, cy, w, h = row.values
                boxes[k] = (cx - w / 2) * width, (cy - h / 2) * height, (cx + w / 2) * width, (cy + h / 2) * height
                continue
            points = np.array(row.values).reshape(-1, 2) * (width, height)
            boxes[k] = *points.min(axis=0), *points.max(axis=0)
            points = points.clip(0, (width, height))
            polygons[k], area[k] = [points.ravel().tolist()], _shoelace(points)
        return Objects(
            image=np.array([row.image for row in self.rows], np.int64),
            boxes=boxes,
            labels=np.array([row.label for row in self.rows], np.int64),
            where=lambda k: f"{self.files[self.rows[k].image]}:{self.rows[k].line}",
            area=area,
            segmentations=polygons if any(polygons) else None,
        )

    def _read(self, image: int, file: Path) -> Iterable[_Row]:
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            self.problems.add("label file cannot be read", f"{file}: {error}", fatal=True)
            return
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                label, *values = (float(text) for text in line.split())
            except ValueError:
                self.problems.add("line is not all numbers", f"{file}:{number}: {line!r}", fatal=True)
                continue
            if len(values) != 4 and (len(values) < 6 or len(values) % 2):
                hint = " (the sixth looks like a score; labels have none)" if len(values) == 5 else ""
                where = f"{file}:{number}: {len(values) + 1} numbers{hint}"
                self.problems.add("line is neither `class cx cy w h` nor a polygon", where, fatal=True)
            elif label not in range(self.num_classes):
                where = f"{file}:{number}: class {line.split()[0]}, expected 0 to {self.num_classes - 1}"
                self.problems.add(UNKNOWN_CATEGORY, where, fatal=True)
            else:
                yield _Row(image, number, int(label), values)


def _shoelace(points: np.ndarray) -> float:
    """The area of a polygon of (N, 2) points."""
    x, y = points.T
    return float(abs(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def write_yolo(table: Table, folder: str | PathLike, split: str) -> None:
    """Writes `labels/<split>/*.txt` and adds the split to `data.yaml`; the pictures belong in `images/<split>/`.

    YOLO knows neither crowds nor difficult objects: crowds are left out, for a trainer would take each for one object;
    the difficult flag is lost. Masks are left out.

    Raises:
        DataError: two pictures have the same stem, so that one's objects would be written over the other's.
    """
    folder = Path(folder)
    names = distinct_names(table.paths)
    labels = folder / "labels" / split
    labels.mkdir(parents=True, exist_ok=True)
    offsets = table.offsets
    for row, name in enumerate(names):
        height, width = table.sizes[row]
        rows = [k for k in range(offsets[row], offsets[row + 1]) if not table.crowd[k]]
        x0, y0, x1, y1 = table.boxes[rows].astype(np.float64).T / np.array([[width], [height], [width], [height]])
        columns = np.stack([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0], axis=1)
        lines = [
            f"{label} " + " ".join(f"{value:.9g}" for value in values) + "\n"
            for label, values in zip(table.labels[rows], columns, strict=True)
        ]
        (labels / f"{Path(name).stem}.txt").write_text("".join(lines), encoding="utf-8")
    _add_split(folder / "data.yaml", table.categories, split)


def _add_split(path: Path, categories: list[str], split: str) -> None:
    document = _load_yaml(path) if path.exists() else {}
    document |= {"names": dict(enumerate(categories)), split: f"images/{split}"}
    path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
