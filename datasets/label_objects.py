"""Objects' outlines made into label maps: a category for every pixel, 0 where there is no object.

Outlines are drawn as COCO's own code does, to the pixel. Where objects meet, the smaller is in front. Crowds are void, and so
are the boxes of objects without an outline: which of their pixels are the object's nobody knows.

Letters: K objects, H, W pixels of a picture, h, w of a window, P corners of a polygon.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from .masks import reach
from .outlines import Outlines, decode
from .polygons import crossings
from .table import DataError, Problems, Table

BACKGROUND = "background"
NO_OUTLINE = "object without an outline (its box is void)"


def semantic_table(table: Table, where: str) -> Table:
    """The pictures of a table with label maps instead of objects; "background" is category 0, before or among the table's.

    Raises:
        DataError: no object has an outline, or one cannot be used; `where` is to blame.
    """
    if table.segmentations is None:
        raise DataError(f"{where}: neither label maps nor outlines of objects, from which they could be drawn")
    names = [BACKGROUND, *(name for name in table.categories if name != BACKGROUND)]
    maps = DrawnMaps.of(table, np.array([names.index(name) for name in table.categories], np.int16))
    bare = np.flatnonzero(
        [not maps.outlines.parts(k) and not len(maps.outlines.runs(k)) for k in range(len(table.image))]
    )
    offsets, problems = table.offsets, Problems()
    problems.merge(table.problems)
    problems.add_rows(
        NO_OUTLINE, bare, lambda k: f"{table.paths[table.image[k]]}, object {k - offsets[table.image[k]]} from 0"
    )
    return replace(
        table.select_objects(np.zeros(0, np.int64)),
        categories=names,
        category_ids=np.arange(len(names)),
        segmentations=None,
        captions=None,
        landmarks=None,
        landmark_names=None,
        label_maps=maps,
        problems=problems,
    )


@dataclass(frozen=True)
class DrawnMaps:
    """A `LabelColumn` of the pictures `rows` of a table, drawn from its K objects.

    Attributes:
        outlines: of the objects.
        rows: pictures of the table.
        sizes: the table's pictures', (height, width).
        offsets: picture i's objects are offsets[i] to offsets[i + 1].
        boxes: (K, 4), xyxy.
        labels: (K,) int16, -1 for crowds.
        ranks: (K,), where in the order from the hindmost to the foremost; void is behind all.
    """

    outlines: Outlines
    rows: np.ndarray
    sizes: np.ndarray
    offsets: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    ranks: np.ndarray

    @classmethod
    def of(cls, table: Table, labels: np.ndarray) -> DrawnMaps:
        """Of all pictures of a table, whose categories become `labels` (C,)."""
        outlines, drawn = Outlines(table), np.where(table.crowd, np.int16(-1), labels[table.labels])
        known = np.array([bool(outlines.parts(k)) or len(outlines.runs(k)) > 0 for k in range(len(drawn))], bool)
        drawn = np.where(known, drawn, np.int16(-1))
        ranks = np.argsort(np.lexsort((-table.area, drawn >= 0)))
        return cls(outlines, np.arange(len(table)), table.sizes, table.offsets, table.boxes, drawn, ranks)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, row: int) -> np.ndarray:
        picture = self.rows[row]
        labels = np.zeros(tuple(self.sizes[picture].tolist()), np.int16)
        objects = np.arange(*self.offsets[picture : picture + 2])
        for k in objects[np.argsort(self.ranks[objects])].tolist():
            self._draw(k, labels)
        return labels

    def _draw(self, k: int, labels: np.ndarray) -> None:
        """Sets the pixels of object k in a label map (H, W)."""
        parts, runs = self.outlines.parts(k), self.outlines.runs(k)
        if len(runs):
            labels[decode(runs, labels.shape) != 0] = self.labels[k]
            return
        for part in parts:
            points = part.reshape(-1, 2)
            window = reach(np.concatenate([points.min(0), points.max(0) + 1]), labels.shape)
            labels[window][_drawn(part, labels.shape, window)] = self.labels[k]
        if not parts:
            labels[reach(self.boxes[k], labels.shape)] = -1

    def select(self, rows: np.ndarray) -> DrawnMaps:
        return replace(self, rows=self.rows[np.asarray(rows, np.int64)])


def _drawn(polygon: np.ndarray, size: tuple[int, int], window: tuple[slice, slice]) -> np.ndarray:
    """Which pixels of a window are a polygon's by COCO's rule, see `polygons`.

    Args:
        polygon: (2 * P,) float32, x0, y0, x1, y1, ... in pixels of the picture.
        size: (H, W) of the picture.
        window: its rows, h of them, and columns, w, which hold all of the polygon that is in the picture.

    Returns:
        (h, w) bool.
    """
    height, width = (part.stop - part.start for part in window)
    # COCO's two decimals, which float32 does not hold exactly and the rule depends on.
    _, turns = crossings([polygon.astype(np.float64).round(3)], np.array([size]))
    columns, rows = np.divmod(turns, size[0])
    turns = (columns - window[1].start) * height + (rows - window[0].start).clip(0, height)
    toggles = np.bincount(turns, minlength=height * width)[: height * width]
    return (toggles.cumsum() & 1).astype(bool).reshape(width, height).T
