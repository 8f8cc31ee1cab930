"""What `sightline predict` leaves behind of a segmenter, each written picture by picture: nothing grows with a video's length.

All are context managers with one verb, `write(number, frame, labels)`, like those of `prediction_files.py`: the labels are
(H, W) int16, a category for every pixel of the picture.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence

import numpy as np

from sightline.datasets.label_files import Colour, write_label_map
from sightline.datasets.mask_encoding import from_ids
from sightline.datasets.sources import Frame
from sightline.evaluation.label_drawing import draw_labels, label_legend, with_legend
from sightline.tools.picture_files import PictureFiles
from sightline.tools.prediction_files import JsonList, create, place_of, segmentations

LEGEND = 40  # categories of which a video's legend is; more would be larger than the picture


class TintedPictures:
    """Pictures and videos tinted by category, above a legend of the categories seen, see `PictureFiles`.

    Under a video, all of whose frames must be of one height, all categories stand.
    """

    def __init__(self, files: PictureFiles, names: Sequence[str], colours: np.ndarray) -> None:
        """`names` are the categories', and `colours` (C, 3) uint8 RGB."""
        self._files, self._names, self._colours = files, names, colours

    def write(self, number: int, frame: Frame, labels: np.ndarray) -> None:
        tinted = draw_labels(frame.image, labels, self._colours)
        shown = np.arange(len(self._names) if len(self._names) <= LEGEND else 0) if frame.is_video else labels
        legend = label_legend(shown, self._names, self._colours)
        self._files.add(frame, with_legend(tinted, legend) if legend else tinted)

    def __enter__(self) -> TintedPictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


class LabelPictures:
    """A PNG of the categories' numbers, with their colours as its palette, for each picture or frame, called as it is."""

    def __init__(self, files: PictureFiles, colours: Sequence[Colour]) -> None:
        self._files, self._colours = files, list(colours)

    def write(self, number: int, frame: Frame, labels: np.ndarray) -> None:
        write_label_map(self._files.place_alone(frame), labels, self._colours)

    def __enter__(self) -> LabelPictures:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class LabelResults:
    """COCO's results of stuff segmentation: a list of {image_id, category_id, segmentation}, one a category and picture.

    Numbers, names and places stand in it as in `CocoResults`; so do segmentations, as run lengths or polygons.
    """

    def __init__(self, path: str | os.PathLike, names: Sequence[str], *, polygons: bool = False) -> None:
        self._names, self._list, self._polygons = names, JsonList(path), polygons

    def write(self, number: int, frame: Frame, labels: np.ndarray) -> None:
        ids, masks = from_ids(labels + 1)
        for category, mask in zip(ids.tolist(), segmentations(masks, self._polygons), strict=True):
            record = {"image_id": number, "category_id": category, "segmentation": mask}
            self._list.add(record | {"category": self._names[category - 1]} | place_of(frame))

    def __enter__(self) -> LabelResults:
        return self

    def __exit__(self, *_: object) -> None:
        self._list.close()


class ShareTable:
    """One row a category that a picture has: file, frame (0 for a picture), category, pixels, and their share of all."""

    HEADER = ("file", "frame", "category", "pixels", "share")

    def __init__(self, path: str | os.PathLike, names: Sequence[str]) -> None:
        self._names, self._file = names, create(path)
        self._table = csv.writer(self._file)
        self._table.writerow(self.HEADER)

    def write(self, number: int, frame: Frame, labels: np.ndarray) -> None:
        counts = np.bincount(labels.ravel(), minlength=len(self._names))
        for label in np.flatnonzero(counts).tolist():
            share = round(counts[label] / labels.size, 6)
            self._table.writerow([frame.name, frame.index, self._names[label], counts[label], share])

    def __enter__(self) -> ShareTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
