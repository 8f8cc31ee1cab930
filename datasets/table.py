"""A data set's annotations as columns: what every reader makes, every writer takes, and the scorers read."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .proposals import Regions


@dataclass
class Problems:
    """What was wrong with a data set: counts and the first few examples of each kind.

    A problem is repaired (the object clipped or dropped), fatal (these stop the command before work starts), or a
    warning (nothing was changed; only a person can tell whether it is right).
    """

    LIMIT = 5  # examples kept of each kind
    repaired: dict[str, list[str]] = field(default_factory=dict)
    fatal: dict[str, list[str]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    warned: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, where: str, *, fatal: bool = False) -> None:
        """Notes one problem: `kind` says what, and what was done ("... (dropped)"); `where` names file and line."""
        self._note(self.fatal if fatal else self.repaired, kind, 1, [where])

    def add_rows(self, kind: str, rows: np.ndarray, where: Callable[[int], str], *, fatal: bool = False) -> None:
        """Notes one problem for each of `rows`; `where` (a row's file and line) is asked for the examples only."""
        examples = [where(int(row)) for row in rows[: self.LIMIT]]
        if examples:
            self._note(self.fatal if fatal else self.repaired, kind, len(rows), examples)

    def warn(self, kind: str, where: str) -> None:
        """Notes something odd that was left as it is."""
        self._note(self.warned, kind, 1, [where])

    def forget(self, kind: str) -> None:
        """Takes back all problems of a kind."""
        for kinds in (self.repaired, self.fatal, self.warned, self.counts):
            kinds.pop(kind, None)

    def merge(self, other: Problems) -> None:
        """Takes in another's problems."""
        for mine, theirs in ((self.repaired, other.repaired), (self.fatal, other.fatal), (self.warned, other.warned)):
            for kind, examples in theirs.items():
                self._note(mine, kind, other.counts[kind], examples)

    def summary(self) -> str:
        """One line a kind, with its count and first examples; empty when nothing was wrong."""
        lines = []
        for title, kinds in (("error", self.fatal), ("repaired", self.repaired), ("warning", self.warned)):
            for kind, examples in kinds.items():
                more = self.counts[kind] - len(examples)
                lines.append(f"{title}: {kind}: {self.counts[kind]}\n    " + "\n    ".join(examples))
                if more > 0:
                    lines.append(f"    … and {more} more")
        return "\n".join(lines)

    def _note(self, kinds: dict[str, list[str]], kind: str, count: int, examples: list[str]) -> None:
        self.counts[kind] = self.counts.get(kind, 0) + count
        kept = kinds.setdefault(kind, [])
        kept.extend(examples[: self.LIMIT - len(kept)])


class DataError(ValueError):
    """Bad user data: the message names the file, the value and the fix. Commands print it without a traceback."""


class LabelColumn(Protocol):
    """The label maps of I pictures, read or drawn when asked for."""

    def __len__(self) -> int:
        """I."""
        ...

    def __getitem__(self, row: int) -> np.ndarray:
        """(H, W) int16, one picture's at its original resolution: 0..C-1, -1 for void.

        Raises:
            DataError: it cannot be read, or a pixel is of no category.
        """
        ...

    def select(self, rows: np.ndarray) -> LabelColumn:
        """Those of these pictures, in this order."""
        ...


@dataclass
class Table:
    """The annotations of one split as columns: I images, K objects sorted by image, C categories, P landmarks.

    Attributes:
        categories: C names; an object's label indexes this list.
        paths: I picture files.
        image_ids: (I,) int64, unique; the file's own ids where it has them, else 1..I.
        sizes: (I, 2) int64, (height, width) after EXIF rotation.
        image: (K,) int64, each object's row in `paths`; ascending.
        boxes: (K, 4) float32, xyxy in pixels, clipped, of positive width and height.
        labels: (K,) int64, 0..C-1.
        area: (K,) float64, in square pixels: the mask's where the file gives one, else the box's; COCO sizes by it.
        crowd: (K,) bool, COCO's iscrowd.
        difficult: (K,) bool, Pascal VOC's flag; such objects are trained on, and ignored by the VOC scores.
        category_ids: (C,) int64, the ids by which the file knows the categories; 1..C where it has none.
        segmentations: K polygons or RLEs as COCO writes them, or None.
        captions: I lists of sentences, or None.
        landmarks: (K, P, 2) float32, (x, y) in pixels, NaN where a point is not known; or None.
        landmark_names: P names, e.g. "left_eye"; None where there are no landmarks.
        regions: the pictures' proposals, for detectors that do not propose themselves; None where nobody asked.
        label_maps: a category for every pixel, for models that name all; there are no objects then. None where nobody asked.
        colours: C (red, green, blue), 0 to 255, in which the data draw label maps; None where they say nothing.
        problems: what was found wrong while reading.
    """

    categories: list[str]
    paths: list[str]
    image_ids: np.ndarray
    sizes: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    category_ids: np.ndarray
    segmentations: list | None = None
    captions: list[list[str]] | None = None
    landmarks: np.ndarray | None = None
    landmark_names: list[str] | None = None
    regions: Regions | None = None
    label_maps: LabelColumn | None = None
    colours: list[tuple[int, int, int]] | None = None
    problems: Problems = field(default_factory=Problems)

    def __post_init__(self) -> None:
        images, objects = len(self.paths), len(self.image)
        shapes = {
            "image_ids": (images,), "sizes": (images, 2), "boxes": (objects, 4), "labels": (objects,),
            "area": (objects,), "crowd": (objects,), "difficult": (objects,), "category_ids": (len(self.categories),),
        }  # fmt: skip
        if self.landmarks is not None or self.landmark_names is not None:
            shapes["landmarks"] = (objects, len(self.landmark_names or []), 2)
        for name, shape in shapes.items():
            if np.shape(getattr(self, name)) != shape:
                raise ValueError(f"{name} must be {shape}, got {np.shape(getattr(self, name))}")
        for name in ("regions", "label_maps"):
            column = getattr(self, name)
            if column is not None and len(column) != images:
                raise ValueError(f"{name} must be those of {images} pictures, got those of {len(column)}")
        if self.colours is not None and len(self.colours) != len(self.categories):
            raise ValueError(f"colours must be those of {len(self.categories)} categories, got {len(self.colours)}")
        if np.any(np.diff(self.image) < 0):
            raise ValueError("objects must be sorted by image")

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def offsets(self) -> np.ndarray:
        """(I + 1,): image i's objects are rows offsets[i] to offsets[i + 1]."""
        return np.searchsorted(self.image, np.arange(len(self.paths) + 1))

    def select(self, rows: np.ndarray) -> Table:
        """The same table with only these images (row numbers), in this order."""
        rows, offsets = np.asarray(rows, np.int64), self.offsets
        counts = offsets[rows + 1] - offsets[rows]
        objects = np.concatenate([np.arange(offsets[r], offsets[r + 1]) for r in rows] or [np.empty(0, np.int64)])
        columns = self._columns(objects) | {
            "paths": [self.paths[r] for r in rows],
            "image_ids": self.image_ids[rows],
            "sizes": self.sizes[rows],
            "image": np.repeat(np.arange(len(rows)), counts),
            "captions": None if self.captions is None else [self.captions[r] for r in rows],
            "regions": None if self.regions is None else self.regions.select(rows),
            "label_maps": None if self.label_maps is None else self.label_maps.select(rows),
        }
        return replace(self, **columns)

    def select_objects(self, objects: np.ndarray) -> Table:
        """The same images with only these objects (row numbers, sorted by image)."""
        return replace(self, **self._columns(objects))

    def _columns(self, objects: np.ndarray) -> dict[str, Any]:
        """All columns of objects, at these rows."""
        columns = ("image", "boxes", "labels", "area", "crowd", "difficult")
        segmentations = None if self.segmentations is None else [self.segmentations[k] for k in objects]
        landmarks = None if self.landmarks is None else self.landmarks[objects]
        optional = {"segmentations": segmentations, "landmarks": landmarks}
        return {name: getattr(self, name)[objects] for name in columns} | optional

    def largest(self, count: int) -> Table:
        """The images with objects, each with its `count` objects of largest area alone; crowds are no objects."""
        rows = np.flatnonzero(~self.crowd)
        order = rows[np.lexsort((-self.area[rows], self.image[rows]))]
        rank = np.arange(len(order)) - np.searchsorted(self.image[order], self.image[order])
        kept = np.sort(order[rank < count])
        return self.select_objects(kept).select(np.unique(self.image[kept]))

    def describe(self) -> str:
        """One line: images, objects, categories; of pictures with sentences or label maps instead, so much."""
        where = Path(self.paths[0]).parent if self.paths else "nowhere"
        images, categories = counted(len(self), "image"), counted(len(self.categories), "category", "categories")
        if self.captions is not None and not self.categories:
            return f"{images}, {counted(sum(map(len, self.captions)), 'sentence')} ({where})"
        if self.label_maps is not None:
            return f"{images} with label maps, {categories} ({where})"
        return f"{images}, {counted(len(self.image), 'object')}, {categories} ({where})"


def counted(count: int, one: str, several: str = "") -> str:
    """A count for people: "1 picture", "2 pictures"; `several` is the plural of a word that takes more than an s."""
    return f"{count} {one if count == 1 else several or one + 's'}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The end of an error message, "; did you mean 'person'?", or nothing where no known word is near."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""
