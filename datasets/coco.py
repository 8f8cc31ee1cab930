"""COCO's detection json (https://cocodataset.org/#format-data), read and written.

Categories are ordered by id and the file's ids are kept, in `Table.category_ids`. A segmentation stays as the file has
it. Keypoints become landmarks, with the file's coordinates, where all categories that name any name the same; those of
visibility 0 are unknown, and whether a known one is visible or hidden is not kept.

What is fatal: an image id, category id or file name used twice or missing, a box that is not four numbers, a category
that the file does not declare, a picture that is not there. What is repaired: see `clean`; also an annotation whose
image the file does not list (dropped), an annotation id used twice (the table keeps no annotation ids, and writes new
ones), keypoints of the wrong number (unknown).
"""

from __future__ import annotations

import gc
import json
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from .clean import UNKNOWN_CATEGORY, Objects, Pictures, clean_table, measure
from .table import DataError, Problems, Table

_OTHER_TASKS = ("captions_", "person_keypoints_", "stuff_", "panoptic_", "image_info_")


def read_coco(json_path: str | PathLike, image_folder: str | PathLike | None = None) -> Table:
    """One COCO json as a table.

    Args:
        json_path: an `instances_*.json` or any file of that form.
        image_folder: where its pictures lie; by default found around the json (beside it, `images/`, `train2017/`).

    Raises:
        DataError: no json, of another form, without images, or no pictures around it. Smaller faults are in `problems`.
    """
    path = Path(json_path)
    with no_garbage_collection():
        return _read(path, _load(path), image_folder)


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """The collector walks millions of fresh json objects again and again and finds nothing to free."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _read(path: Path, document: dict[str, list[dict]], image_folder: str | PathLike | None) -> Table:
    problems = Problems()
    images, annotations = document["images"], document["annotations"]
    ids, names = image_columns(path, images, problems)
    folder = Path(image_folder) if image_folder is not None else find_images(path, names)
    category_ids, categories = _categories(path, document["categories"], problems)
    paths = [os.path.join(folder, name) for name in names]
    sizes = measure(paths, problems, stated=[stated_size(image) for image in images])
    names = _landmark_names(path, document["categories"], problems)
    objects = _objects(path, annotations, ids, category_ids, names, problems)
    pictures = Pictures(paths, sizes, ids)
    return clean_table(str(path), categories, pictures, objects, problems, category_ids=category_ids)


def write_coco(table: Table, path: str | PathLike) -> None:
    """Writes a table as COCO json, which reads back equal; makes the folder where it is missing.

    File names are relative to the json where the pictures lie below its folder, else absolute.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [
        {"id": id_, "file_name": _relative(picture, path.parent), "height": height, "width": width}
        for id_, picture, (height, width) in zip(
            table.image_ids.tolist(), table.paths, table.sizes.tolist(), strict=True
        )
    ]
    keypoints = {} if table.landmark_names is None else {"keypoints": table.landmark_names, "skeleton": []}
    categories = [
        {"id": id_, "name": name} | keypoints
        for id_, name in zip(table.category_ids.tolist(), table.categories, strict=True)
    ]
    document = {
        "info": {},
        "licenses": [],
        "images": images,
        "annotations": _annotations(table),
        "categories": categories,
    }
    path.write_text(json.dumps(document), encoding="utf-8")


class CocoFolder:
    """A COCO data set: one json, or a folder of them, one for each split.

    Attributes:
        splits: the names `read` takes, from the json's names (`instances_train2017.json` is "train"); empty for one
            json.
    """

    def __init__(self, path: str | PathLike) -> None:
        path = Path(path)
        jsons = [path] if path.is_file() else find_jsons(path)
        if not jsons:
            raise DataError(f"{path}: no json of COCO's detection form in it or in its annotations/")
        self._jsons: dict[str, Path] = {}
        for json_path in jsons:
            other = self._jsons.setdefault(split_of(json_path), json_path)
            if other is not json_path:
                raise DataError(f"{path}: {other.name} and {json_path.name} are both {split_of(other)!r}; give one")
        self.splits = [] if path.is_file() else list(self._jsons)

    def read(self, split: str | None = None) -> Table:
        """One split, or the only json; as `read_coco`."""
        if split is None and len(self._jsons) == 1:
            return read_coco(next(iter(self._jsons.values())))
        if split not in self._jsons:
            raise DataError(f"no split {split!r}; there are {', '.join(self._jsons)}")
        return read_coco(self._jsons[split])


def find_jsons(folder: Path) -> list[Path]:
    """The detection jsons in a folder, in its `annotations/`, or one in each of its split folders (Roboflow's way).

    Where any is named `instances_*`, only such count; of the rest, those whose beginning or end speaks of images.
    """
    for pattern in ("*.json", "annotations/*.json", "*/_annotations.coco.json"):
        found = [path for path in sorted(folder.glob(pattern)) if not path.name.startswith(_OTHER_TASKS)]
        named = [path for path in found if path.name.startswith("instances_")]
        found = named or [path for path in found if _looks_right(path)]
        if found:
            return found
    return []


def _looks_right(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1 << 16)
        file.seek(max(0, path.stat().st_size - (1 << 16)))
        text = start + file.read()
    return sum(key in text for key in (b'"images"', b'"annotations"', b'"categories"')) >= 2


def split_of(path: Path) -> str:
    """The split that a json's name, else its folder's name, speaks of ("train2017" is train); else its stem."""
    for text in (path.stem, path.parent.name):
        found = re.search(r"(?<![a-z])(trainval|minival|train|validation|valid|val|test)(?![a-z])", text.lower())
        if found:
            return {"validation": "val", "valid": "val"}.get(found[1], found[1])
    return path.stem


def _load(path: Path) -> dict[str, list[dict[str, Any]]]:
    """The json, known to be an object with lists of objects under the three keys that matter."""
    document = read_json(path)
    for key in ("images", "annotations", "categories"):
        rows = document.get(key) if isinstance(document, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(
                f"{path}: not COCO's detection form: no list of objects under {key!r}{_other_form(document)}"
            )
    if document["annotations"] and all("caption" in row for row in document["annotations"][:10]):
        raise DataError(f"{path}: holds captions, not boxes; give the instances_*.json beside it")
    return document


def read_json(path: Path) -> Any:
    """What a json holds.

    Raises:
        DataError: it cannot be read, or is no json.
    """
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:  # JSONDecodeError, which says line and column, or bytes that are no UTF-8
        raise DataError(f"{path}: broken json, {error}") from error


def _other_form(document: Any) -> str:
    if not isinstance(document, dict):
        return f"; the file holds a {type(document).__name__}"
    if document.get("annotations") and "caption" in str(document["annotations"])[:500]:
        return " (it holds captions; give the instances_*.json beside it)"
    return f"; it holds {', '.join(map(repr, list(document)[:8])) or 'nothing'}"


def image_columns(path: Path, images: list[dict], problems: Problems) -> tuple[list[int], list[str]]:
    """Ids and file names, as many as images; what is missing or doubled is fatal."""
    ids = [row.get("id") for row in images]
    names = [row.get("file_name") for row in images]
    for row, (id_, name) in enumerate(zip(ids, names, strict=True)):
        if not is_whole(id_):
            problems.add("image id is not a whole number", f"{path}: images[{row}]: {id_!r}", fatal=True)
            ids[row] = -1 - row
        if not isinstance(name, str):
            problems.add("image file_name is not a string", f"{path}: images[{row}]: {name!r}", fatal=True)
            names[row] = f"images[{row}]"
    for row in _doubled(ids):
        problems.add("image id used twice", f"{path}: images[{row}]: {ids[row]}", fatal=True)
    for row in _doubled(names):
        problems.add("image file_name used twice", f"{path}: images[{row}]: {names[row]!r}", fatal=True)
    return ids, [name.replace("\\", "/") for name in names]


def is_whole(value: Any) -> bool:
    """Whether it is a whole number that numpy can hold."""
    return isinstance(value, int) and abs(value) < 2**63


def _doubled(values: list) -> list[int]:
    """Rows whose value stood in an earlier row; None stands for no value."""
    seen: set = set()
    return [row for row, value in enumerate(values) if value is not None and (value in seen or seen.add(value))]


def stated_size(image: dict) -> tuple[int, int]:
    height, width = image.get("height"), image.get("width")
    return (height, width) if is_whole(height) and is_whole(width) else (0, 0)


def _categories(path: Path, rows: list[dict], problems: Problems) -> tuple[list[int], list[str]]:
    """Ids, ascending, and names. A name used twice gets its id behind it: exporters write such files."""
    if not rows:
        raise DataError(f"{path}: no categories; list them as {{'id': 1, 'name': 'cat'}} under 'categories'")
    found: dict[int, str] = {}
    for row, category in enumerate(rows):
        id_, name = category.get("id"), category.get("name")
        if not is_whole(id_) or not isinstance(name, str):
            raise DataError(f"{path}: categories[{row}] needs a whole-number id and a name, got {id_!r} and {name!r}")
        if id_ in found:
            problems.add("category id used twice", f"{path}: categories[{row}]: {id_} {name!r}", fatal=True)
        if name in found.values():
            problems.add("category name used twice (renamed)", f"{path}: categories[{row}]: {name!r}")
            name = f"{name} ({id_})"
        found.setdefault(id_, name)
    ids = sorted(found)
    return ids, [found[id_] for id_ in ids]


def _landmark_names(path: Path, categories: list[dict], problems: Problems) -> list[str] | None:
    """The keypoints that categories share; None where there are none, or different ones."""
    named = [names for names in (category.get("keypoints") for category in categories) if names]
    if not named:
        return None
    first = named[0]
    usable = isinstance(first, list) and all(isinstance(name, str) for name in first) and len(set(first)) == len(first)
    if not usable or any(names != first for names in named):
        problems.warn("keypoints are not one list of different names for all categories (not read)", str(path))
        return None
    return first


def _objects(
    path: Path,
    rows: list[dict],
    ids: list[int],
    category_ids: list[int],
    landmark_names: list[str] | None,
    problems: Problems,
) -> Objects:
    def where(row: int) -> str:
        return f"{path}: annotations[{row}] (id {rows[row].get('id')!r})"

    doubled = _doubled([row.get("id") if is_whole(row.get("id")) else None for row in rows])
    problems.add_rows("annotation id used twice (renumbered)", np.array(doubled), where)
    boxes, usable = _boxes(rows, where, problems)
    image, known = _lookup([row.get("image_id") for row in rows], ids)
    problems.add_rows("annotation of an image the file does not list (dropped)", np.flatnonzero(~known), where)
    labels, declared = _lookup([row.get("category_id") for row in rows], category_ids)
    problems.add_rows(
        UNKNOWN_CATEGORY,
        np.flatnonzero(~declared),
        lambda row: f"{where(row)}: category_id {rows[row].get('category_id')!r}",
        fatal=True,
    )
    keep = np.flatnonzero(usable & known & declared)
    kept = [rows[row] for row in keep]
    segmentations = [row.get("segmentation") for row in kept]
    return Objects(
        image=image[keep],
        boxes=boxes[keep],
        labels=labels[keep],
        where=lambda k: where(keep[k]),
        area=np.array([_number(row.get("area")) for row in kept], np.float64),
        crowd=np.array([bool(row.get("iscrowd")) for row in kept], bool),
        difficult=np.array([bool(row.get("difficult")) for row in kept], bool),
        segmentations=segmentations if any(segmentations) else None,
        landmarks=None
        if landmark_names is None
        else _landmarks(kept, len(landmark_names), lambda k: where(keep[k]), problems),
        landmark_names=landmark_names,
    )


def _landmarks(rows: list[dict], count: int, where: Callable[[int], str], problems: Problems) -> np.ndarray:
    """(K, P, 2) float64, the keypoints [x, y, visibility, …] of each row; NaN where one is not labelled."""
    points = np.full((len(rows), count, 3), np.nan)
    for row, annotation in enumerate(rows):
        given = annotation.get("keypoints")
        if not given:
            continue
        try:
            points[row] = np.array(given, np.float64).reshape(count, 3)
        except (TypeError, ValueError, OverflowError):
            problems.add(f"keypoints are not x, y and visibility of {count} points (left out)", where(row))
    known = (points[..., 2:] > 0) & np.isfinite(points[..., :2]).all(axis=-1, keepdims=True)
    return np.where(known, points[..., :2], np.nan)


def _boxes(rows: list[dict], where: Callable[[int], str], problems: Problems) -> tuple[np.ndarray, np.ndarray]:
    """(K, 4) float64 xyxy, and (K,) bool, whether the row had four numbers at all."""
    usable = np.ones(len(rows), bool)
    try:
        boxes = np.array([row["bbox"] for row in rows], np.float64).reshape(len(rows), 4)
    except (KeyError, TypeError, ValueError, OverflowError):  # one by one, to name the culprits
        boxes = np.zeros((len(rows), 4))
        for row, annotation in enumerate(rows):
            try:
                boxes[row] = np.array(annotation["bbox"], np.float64).reshape(4)
            except (KeyError, TypeError, ValueError, OverflowError):
                usable[row] = False
                problems.add("bbox is not four numbers", f"{where(row)}: {annotation.get('bbox')!r}", fatal=True)
    with np.errstate(invalid="ignore"):
        boxes[:, 2:] += boxes[:, :2]
    return boxes, usable


def _lookup(values: list, ids: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Each value's row in `ids` (0 where it has none), and whether it has one."""
    row_of = {id_: row for row, id_ in enumerate(ids)}
    rows = [row_of.get(value, -1) if isinstance(value, int) else -1 for value in values]
    rows = np.array(rows, np.int64)
    return np.maximum(rows, 0), rows >= 0


def _number(value: Any) -> float:
    try:
        return float(value) if isinstance(value, (int, float)) else np.nan
    except OverflowError:  # JSON's whole numbers have no limit
        return np.nan


def find_images(path: Path, names: list[str]) -> Path:
    """The folder around the json that holds its pictures: the one where most of the first few names exist."""
    split, stem = split_of(path), re.sub(r"^(instances|person_keypoints)_", "", path.stem)
    inside = dict.fromkeys(["", "images", "data", "JPEGImages", split, f"{split}2017", f"{split}2014", stem])
    inside |= dict.fromkeys(f"images/{name}" for name in (split, f"{split}2017", f"{split}2014", stem))
    folders = list(dict.fromkeys(root / name for root in (path.parent, path.parent.parent) for name in inside))
    probes = [name for name in names if name][:: max(1, len(names) // 20)]
    hits = [sum((folder / name).is_file() for name in probes) for folder in folders]
    if probes and max(hits) == 0:
        tried = ", ".join(str(folder) for folder in folders if folder.is_dir())
        raise DataError(
            f"{path}: its pictures (such as {probes[0]!r}) are in none of {tried}; put them in one of these"
        )
    return folders[hits.index(max(hits))]


def _annotations(table: Table) -> list[dict[str, Any]]:
    boxes = table.boxes.astype(np.float64)  # in which the difference of two float32 is exact
    boxes[:, 2:] -= boxes[:, :2]
    columns = {
        "id": range(1, len(boxes) + 1),
        "image_id": table.image_ids[table.image].tolist(),
        "category_id": table.category_ids[table.labels].tolist(),
        "bbox": boxes.tolist(),
        "area": table.area.tolist(),
        "iscrowd": table.crowd.astype(int).tolist(),
        "segmentation": [s or [] for s in table.segmentations or [[]] * len(boxes)],
    }
    if table.difficult.any():
        columns["difficult"] = table.difficult.astype(int).tolist()
    if table.landmarks is not None:
        known = np.isfinite(table.landmarks).all(axis=-1)
        points = np.dstack([table.landmarks.astype(np.float64), np.full(known.shape, 2)])  # 2: visible
        columns["keypoints"] = np.where(known[..., None], points, 0).reshape(len(known), 3 * known.shape[1]).tolist()
        columns["num_keypoints"] = known.sum(axis=1).tolist()
    return [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]


def _relative(picture: str, folder: Path) -> str:
    picture = Path(picture).absolute()
    folder = folder.absolute()
    return picture.relative_to(folder).as_posix() if picture.is_relative_to(folder) else picture.as_posix()
