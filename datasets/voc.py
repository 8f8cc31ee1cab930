"""Pascal VOC's xml files (http://host.robots.ox.ac.uk/pascal/VOC), read and written.

Two layouts are known: the devkit's (`Annotations/*.xml`, `JPEGImages/`, lists in `ImageSets/Main/`) and labelling
tools' (xml files beside the pictures or in `annotations/`, no lists). Coordinates are taken as they are, xmin to xmax,
as torchvision and most tools do; the devkit counts pixels from 1 inclusively, so that its boxes would be (xmin - 1,
ymin - 1, xmax, ymax).

Categories are the lines of `classes.txt` where there is one, else the sorted names of all the folder's xml files, so
that all splits agree; VOC's twenty when at least ten of them and no other occur, for a part of VOC. What is fatal:
broken xml, a coordinate that is no number, a name that is missing or not among given categories, a listed file or a
picture that is not there. What is repaired: see `clean`; also a name listed twice (kept once).
"""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .clean import UNKNOWN_CATEGORY, Objects, Pictures, clean_table, distinct_names, measure, read_lines
from .images import is_picture
from .table import DataError, Problems, Table, nearest

CATEGORIES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog",
    "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def read_voc(folder: str | PathLike, split: str | None = None, *, categories: list[str] | None = None) -> Table:
    """One split of a VOC folder as a table.

    Args:
        folder: holds `Annotations/`, `annotations/`, or xml files beside pictures.
        split: a list's name in `ImageSets/Main/`; None takes every xml file.
        categories: the names there may be, in order; by default as said above.

    Raises:
        DataError: no xml files, no such list, an empty list. Smaller faults are in the table's `problems`.
    """
    return VocFolder(folder, categories).read(split)


class VocFolder:
    """A VOC data set; its xml files are parsed once, for all splits.

    Attributes:
        splits: the names `read` takes: the lists in `ImageSets/Main/`, without the per-class ones; empty without lists.
    """

    def __init__(self, folder: str | PathLike, categories: list[str] | None = None) -> None:
        self.folder, self._given = Path(folder), categories
        self.annotations = find_annotations(self.folder)
        if self.annotations is None:
            raise DataError(f"{folder}: no xml files in it or in its Annotations/")
        self.folder = self.annotations.parent if self.annotations.name.lower() == "annotations" else self.annotations
        self._lists = {path.stem: path for path in sorted((self.folder / "ImageSets" / "Main").glob("[!.]*.txt"))}
        self.splits = [name for name in self._lists if not re.search(r"_(train|val|trainval|test)$", name)]

    def read(self, split: str | None = None) -> Table:
        """One split, or every xml file; as `read_voc`."""
        problems = Problems()
        stems = sorted(self._files) if split is None else self._listed(split, problems)
        images = [image for image in (self._image(stem, problems) for stem in stems) if image is not None]
        where = self.annotations if split is None else self._lists[split]
        paths = [str(image.picture) for image in images]
        pictures = Pictures(paths, measure(paths, problems, stated=[image.size for image in images]))
        objects = _objects(images, self.categories, problems)
        return clean_table(str(where), self.categories, pictures, objects, problems)

    @cached_property
    def categories(self) -> list[str]:
        """Names as given, as in classes.txt, or over all xml files."""
        if self._given is not None:
            return list(self._given)
        if (self.folder / "classes.txt").is_file():
            return [name for name in read_lines(self.folder / "classes.txt") if name]
        names = {o.name for f in self._files.values() if isinstance(f, _File) for o in f.objects if o.name}
        return list(CATEGORIES) if names <= set(CATEGORIES) and len(names) >= 10 else sorted(names)

    @cached_property
    def _files(self) -> dict[str, _File | str]:
        """Stem to parsed file, or to what is wrong with it."""
        return {path.stem: _parse(path) for path in self.annotations.glob("[!.]*.xml")}

    @cached_property
    def _pictures(self) -> dict[str, Path]:
        """Stem, and full name, to picture."""
        folders = (self.folder / name for name in ("JPEGImages", "images", "Images", "."))
        folder = next((f for f in folders if f.is_dir() and _has_picture(f)), self.folder)
        found = sorted(path for path in folder.iterdir() if is_picture(path.name))
        return {path.stem: path for path in found} | {path.name: path for path in found}

    def _listed(self, split: str, problems: Problems) -> list[str]:
        if split not in self._lists:
            raise DataError(
                f"{self.folder}: no list ImageSets/Main/{split}.txt; there are {', '.join(self._lists) or 'none'}"
            )
        path = self._lists[split]
        stems: dict[str, None] = {}
        for number, line in enumerate(read_lines(path), 1):
            stem = line.split()[0] if line else None
            if stem in stems:
                problems.add("picture listed twice (kept once)", f"{path}:{number}: {stem}")
            elif stem:
                stems[stem] = None
        return list(stems)

    def _image(self, stem: str, problems: Problems) -> _Image | None:
        path = self.annotations / f"{stem}.xml"
        file = self._files.get(stem)
        if file is None:
            problems.add("annotation file is missing", str(path), fatal=True)
            return None
        if isinstance(file, str):
            problems.add("annotation file is broken", file, fatal=True)
            return None
        picture = self._pictures.get(stem) or self._pictures.get(Path(file.filename.replace("\\", "/")).name)
        if picture is None:
            problems.add("picture is missing", f"{path}: no {stem}.jpg, .png, ... and no {file.filename!r}", fatal=True)
            return None
        return _Image(path, picture, file.size, file.objects)


class VocSplits:
    """VOC folders `train`, `valid` or `val`, and `test` side by side, each with its xml files (Roboflow's way).

    Attributes:
        splits: the names `read` takes.
    """

    def __init__(self, folder: str | PathLike) -> None:
        folders = find_split_folders(Path(folder))
        self.splits = list(folders)
        names = {name for path in folders.values() for name in VocFolder(path).categories}
        self._sources = {split: VocFolder(path, sorted(names)) for split, path in folders.items()}

    def read(self, split: str | None = None) -> Table:
        """One split."""
        if split not in self._sources:
            raise DataError(f"no split {split!r}; there are {', '.join(self.splits)}")
        return self._sources[split].read()


class _Object(NamedTuple):
    name: str
    box: tuple[str, ...]  # the four texts
    difficult: bool


class _File(NamedTuple):
    filename: str
    size: tuple[int, int]
    objects: list[_Object]


class _Image(NamedTuple):
    annotation: Path
    picture: Path
    size: tuple[int, int]
    objects: list[_Object]


def find_annotations(folder: Path) -> Path | None:
    """The folder of xml files, given it or the data set's folder; None where there is none."""
    for candidate in (folder / "Annotations", folder / "annotations", folder):
        if candidate.is_dir() and next(candidate.glob("[!.]*.xml"), None):
            return candidate
    return None


def find_split_folders(folder: Path) -> dict[str, Path]:
    """Split to folder, where `train` and others each hold xml files."""
    names = {"train": "train", "val": "val", "valid": "val", "test": "test"}
    return {split: folder / name for name, split in names.items() if find_annotations(folder / name)}


def _has_picture(folder: Path) -> bool:
    return any(is_picture(path.name) for path in folder.iterdir())


def _parse(path: Path) -> _File | str:
    """What an xml file says, still as text; or what is wrong with it."""
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        return f"{path}:{error.position[0]}: broken xml, {error}"
    except (OSError, ValueError, LookupError) as error:  # LookupError: an encoding that Python does not know
        return f"{path}: cannot be read, {error}"
    if root.tag != "annotation":
        return f"{path}: not Pascal VOC's form: the root is <{root.tag}>, not <annotation>"
    objects = [
        _Object(
            (node.findtext("name") or "").strip(),
            tuple((node.findtext(f"bndbox/{corner}") or "").strip() for corner in _CORNERS),
            (node.findtext("difficult") or "").strip() in ("1", "true", "True"),
        )
        for node in root.findall("object")
    ]
    size = _whole(root.findtext("size/height")), _whole(root.findtext("size/width"))
    return _File((root.findtext("filename") or "").strip(), size, objects)


def _whole(text: str | None) -> int:
    """0, which stands for unknown, where the text is no whole number."""
    return int(text) if text and text.strip().isdecimal() else 0


def _objects(images: list[_Image], categories: list[str], problems: Problems) -> Objects:
    labels = {name: label for label, name in enumerate(categories)}
    rows = [(i, j, o) for i, image in enumerate(images) for j, o in enumerate(image.objects)]

    def where(k: int) -> str:
        i, j, _ = rows[k]
        return _where(images[i].annotation, j)

    boxes, usable = np.zeros((len(rows), 4)), np.zeros(len(rows), bool)
    for k, (_, _, found) in enumerate(rows):
        try:
            boxes[k], usable[k] = [float(text) for text in found.box], found.name in labels
        except ValueError:
            box = ", ".join(f"{corner} {text!r}" for corner, text in zip(_CORNERS, found.box, strict=True))
            problems.add("bndbox is not four numbers", f"{where(k)}: {box}", fatal=True)
            continue
        if not usable[k]:
            problems.add(UNKNOWN_CATEGORY, f"{where(k)}: {found.name!r}{nearest(found.name, categories)}", fatal=True)
    keep = np.flatnonzero(usable)
    return Objects(
        image=np.array([rows[k][0] for k in keep], np.int64),
        boxes=boxes[keep],
        labels=np.array([labels[rows[k][2].name] for k in keep], np.int64),
        where=lambda k: where(keep[k]),
        difficult=np.array([rows[k][2].difficult for k in keep], bool),
    )


def _where(path: Path, number: int) -> str:
    """File and line of an object, which the parser does not keep: found again by counting tags."""
    text = path.read_bytes()
    starts = [found.start() for found in re.finditer(rb"<object[\s>]", text)]
    line = text[: starts[number]].count(b"\n") + 1 if number < len(starts) else "?"
    return f"{path}:{line}: object {number + 1}"


def write_voc(table: Table, folder: str | PathLike, split: str) -> None:
    """Writes `Annotations/*.xml`, `ImageSets/Main/<split>.txt` and `classes.txt`; the pictures belong in `JPEGImages/`.

    VOC knows neither masks nor crowds: masks are left out, and a crowd becomes a difficult object.

    Raises:
        DataError: two pictures have the same stem, so that one's objects would be written over the other's.
    """
    folder = Path(folder)
    names = distinct_names(table.paths)
    lists = folder / "ImageSets" / "Main"
    for path in (folder / "Annotations", lists):
        path.mkdir(parents=True, exist_ok=True)
    offsets = table.offsets
    for row, name in enumerate(names):
        root = _annotation(table, row, range(offsets[row], offsets[row + 1]), name)
        ET.indent(root)
        ET.ElementTree(root).write(folder / "Annotations" / f"{Path(name).stem}.xml", encoding="utf-8")
    (lists / f"{split}.txt").write_text("".join(f"{Path(name).stem}\n" for name in names), encoding="utf-8")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in table.categories), encoding="utf-8")


def _annotation(table: Table, row: int, objects: range, name: str) -> ET.Element:
    root = ET.Element("annotation")
    _fill(root, {"filename": name})
    height, width = table.sizes[row]
    _fill(ET.SubElement(root, "size"), {"width": width, "height": height, "depth": 3})
    for k in objects:
        node = ET.SubElement(root, "object")
        difficult = int(table.difficult[k] or table.crowd[k])
        _fill(node, {"name": table.categories[table.labels[k]], "difficult": difficult})
        corners = [np.format_float_positional(value, trim="-") for value in table.boxes[k]]
        _fill(ET.SubElement(node, "bndbox"), dict(zip(_CORNERS, corners, strict=True)))
    return root


def _fill(node: ET.Element, texts: dict[str, object]) -> None:
    for tag, text in texts.items():
        ET.SubElement(node, tag).text = str(text)
