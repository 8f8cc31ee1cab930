"""Truth and detections of a whole split as flat columns: what every scorer here reads.

Letters: I images, K truths, D detections, C categories, P landmarks. Boxes are xyxy in pixels; an image is meant by its row in
`Truth.image_ids`, a category by its label 0..C-1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..datasets.mask_encoding import SegmentationError, from_coco
from ..datasets.run_lengths import RunLengths
from ..datasets.table import DataError, Table


@dataclass(frozen=True)
class Truth:
    """All true objects of a split.

    Attributes:
        image_ids: (I,) int64, unique; images without objects are listed too. Equal scores in different images are
            ranked by image id, as COCO's scorer does.
        image: (K,) int64, each object's row in `image_ids`.
        boxes: (K, 4) float64, xyxy in pixels.
        labels: (K,) int64, 0..C-1.
        area: (K,) float64, in square pixels, by which COCO's size ranges go: the mask's where known, else the box's.
        crowd: (K,) bool, COCO's iscrowd.
        difficult: (K,) bool, Pascal VOC's flag; COCO's scores do not read it.
        box_area: (K,) float64, width times height. Given by readers of xywh files, because (x + w) - x is not always w,
            and one bit decides whether an overlap of one half is a match; else computed from the boxes.
        landmarks: (K, P, 2) float64, (x, y) in pixels, NaN where not known; None where there are none.
        masks: K masks of their pictures; None where there are none, or nobody asked.
        sizes: (I, 2) int64, the pictures' (H, W); None where not known.

    Raises:
        ValueError: a column has the wrong shape, image ids repeat, or an image row does not exist.
    """

    image_ids: np.ndarray
    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    area: np.ndarray
    crowd: np.ndarray
    difficult: np.ndarray
    box_area: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    masks: RunLengths | None = None
    sizes: np.ndarray | None = None

    def __post_init__(self) -> None:
        _convert(self, image_ids=np.int64, image=np.int64, boxes=np.float64, labels=np.int64, area=np.float64)
        _convert(self, crowd=bool, difficult=bool)
        _fill_area(self, "box_area")
        _check_columns(self, ("labels", "area", "crowd", "difficult", "box_area"), rows=len(self.image_ids))
        _check_landmarks(self)
        _check_masks(self)
        if self.sizes is not None and np.shape(self.sizes) != (len(self.image_ids), 2):
            raise ValueError(
                f"sizes must be ({len(self.image_ids)}, 2) to go with image_ids, got {np.shape(self.sizes)}"
            )
        if len(np.unique(self.image_ids)) != len(self.image_ids):
            values, counts = np.unique(self.image_ids, return_counts=True)
            raise ValueError(f"image_ids must be unique; {values[counts > 1][:3].tolist()} occur more than once")

    @staticmethod
    def from_table(table: Table, *, masks: bool = False) -> Truth:
        """The truth in a data set's table.

        Args:
            table: the annotations.
            masks: with the objects' masks; all of its box for an object that has none.

        Raises:
            DataError: masks are asked for, and no object has one, or one cannot be used.
        """
        columns = (table.image, table.boxes, table.labels, table.area, table.crowd, table.difficult)
        drawn = _masks_of(table) if masks else None
        return Truth(table.image_ids, *columns, landmarks=table.landmarks, masks=drawn, sizes=table.sizes)

    def rows_of(self, image_ids: np.ndarray) -> np.ndarray:
        """The row of each image id; -1 for an id that is not here."""
        image_ids = np.asarray(image_ids, np.int64)
        if not len(self.image_ids):
            return np.full(image_ids.shape, -1)
        order = np.argsort(self.image_ids)
        place = np.searchsorted(self.image_ids, image_ids, sorter=order).clip(max=len(order) - 1)
        rows = order[place]
        return np.where(self.image_ids[rows] == image_ids, rows, -1)

    def only(self, image_ids: Sequence[int] | np.ndarray) -> Truth:
        """The truth of these images alone, in this order: for a validation run that saw a part of the split.

        Raises:
            ValueError: an id is not here.
        """
        rows = self.rows_of(np.asarray(image_ids, np.int64))
        if (rows < 0).any():
            raise ValueError(f"image id {np.asarray(image_ids)[rows < 0][0]} is not in the truth")
        new_row = np.full(len(self.image_ids), -1)
        new_row[rows] = np.arange(len(rows))
        keep = new_row[self.image] >= 0
        columns = {name: getattr(self, name)[keep] for name in _TRUTH_COLUMNS}
        columns["landmarks"] = None if self.landmarks is None else self.landmarks[keep]
        columns["masks"] = None if self.masks is None else self.masks.select(keep)
        columns["sizes"] = None if self.sizes is None else self.sizes[rows]
        return replace(self, **columns | {"image_ids": self.image_ids[rows], "image": new_row[self.image[keep]]})


_TRUTH_COLUMNS = ("image", "boxes", "labels", "area", "crowd", "difficult", "box_area")


def _masks_of(table: Table) -> RunLengths:
    if table.segmentations is None and len(table.image):
        raise DataError(f"{table.describe()}: no object has a mask, so that none can be scored")
    boxes = table.boxes[:, [0, 1, 2, 1, 2, 3, 0, 3]].tolist()
    given = [one or [box] for one, box in zip(table.segmentations or (), boxes, strict=True)]
    try:
        return from_coco(given, table.sizes[table.image])
    except SegmentationError as error:
        row = int(table.image[error.row])
        number = error.row - int(table.offsets[row])
        raise DataError(
            f"{table.paths[row]}, object {number} from 0: its segmentation cannot be used ({error})"
        ) from None


@dataclass(frozen=True)
class Detections:
    """All detections of a split, in any order; equal scores in one image are ranked in the order given.

    Attributes:
        image: (D,) int64, each detection's row in the `image_ids` of the truth it is scored against.
        boxes: (D, 4) float64, xyxy in pixels of the original picture.
        labels: (D,) int64, 0..C-1.
        scores: (D,) float32 or float64, finite.
        area: (D,) float64, in square pixels; the box's unless given.
        landmarks: (D, P, 2) float64, (x, y) in pixels; None where there are none.
        masks: D masks of their pictures; None where there are none.

    Raises:
        ValueError: a column has the wrong shape, or a score is not finite.
    """

    image: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray
    area: np.ndarray | None = None
    landmarks: np.ndarray | None = None
    masks: RunLengths | None = None

    def __post_init__(self) -> None:
        _convert(self, image=np.int64, boxes=np.float64, labels=np.int64)
        scores = np.asarray(self.scores)
        _convert(self, scores=scores.dtype if scores.dtype in (np.float32, np.float64) else np.float64)
        _fill_area(self, "area")
        _check_columns(self, ("labels", "scores", "area"), rows=None)
        _check_landmarks(self)
        _check_masks(self)
        if not np.isfinite(self.scores).all():
            row = int(np.flatnonzero(~np.isfinite(self.scores))[0])
            raise ValueError(f"scores must be finite; detection {row} has {self.scores[row]}")

    def __len__(self) -> int:
        return len(self.image)

    def select(self, keep: np.ndarray) -> Detections:
        """The detections that a mask or rows pick."""
        landmarks = None if self.landmarks is None else self.landmarks[keep]
        masks = None if self.masks is None else self.masks.select(keep)
        columns = (self.image, self.boxes, self.labels, self.scores, self.area)
        return Detections(*(column[keep] for column in columns), landmarks=landmarks, masks=masks)


def check_labels(truth: Truth, detections: Detections, num_classes: int) -> None:
    """Raises ValueError where a label lies outside 0..C-1 or a detection's image is not among the truth's."""
    for name, labels in (("truth", truth.labels), ("detections", detections.labels)):
        if len(labels) and not (labels.min() >= 0 and labels.max() < num_classes):
            wrong = labels[(labels < 0) | (labels >= num_classes)][0]
            raise ValueError(f"{name}: label {wrong} is outside 0..{num_classes - 1} ({num_classes} categories)")
    images = len(truth.image_ids)
    if len(detections) and not (detections.image.min() >= 0 and detections.image.max() < images):
        raise ValueError(f"detections: image must be a row 0..{images - 1} of the truth, got {detections.image.max()}")


def _convert(record: Truth | Detections, **dtypes: type | np.dtype) -> None:
    for name, dtype in dtypes.items():
        object.__setattr__(record, name, np.asarray(getattr(record, name), dtype))


def _fill_area(record: Truth | Detections, name: str) -> None:
    if record.boxes.ndim != 2 or record.boxes.shape[1] != 4:
        raise ValueError(f"boxes must be (N, 4), got {record.boxes.shape}")
    area = getattr(record, name)
    if area is None:
        area = (record.boxes[:, 2] - record.boxes[:, 0]) * (record.boxes[:, 3] - record.boxes[:, 1])
    object.__setattr__(record, name, np.asarray(area, np.float64))


def _check_columns(record: Truth | Detections, names: tuple[str, ...], *, rows: int | None) -> None:
    count = len(record.boxes)
    for name in ("image", *names):
        if getattr(record, name).shape != (count,):
            raise ValueError(f"{name} must be ({count},) to go with boxes, got {getattr(record, name).shape}")
    if rows is not None and count and not (record.image.min() >= 0 and record.image.max() < rows):
        raise ValueError(f"image must hold rows 0..{rows - 1} of image_ids, got up to {record.image.max()}")


def _check_landmarks(record: Truth | Detections) -> None:
    if record.landmarks is None:
        return
    _convert(record, landmarks=np.float64)
    shape = record.landmarks.shape
    if len(shape) != 3 or (shape[0], shape[2]) != (len(record.boxes), 2):
        raise ValueError(f"landmarks must be ({len(record.boxes)}, P, 2) to go with boxes, got {shape}")


def _check_masks(record: Truth | Detections) -> None:
    if record.masks is not None and len(record.masks) != len(record.boxes):
        raise ValueError(f"there must be {len(record.boxes)} masks to go with boxes, got {len(record.masks)}")
