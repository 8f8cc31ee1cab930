"""What `sightline predict` leaves behind, each written picture by picture: nothing grows with the length of a video.

All are context managers with one verb, `write(number, frame, found)`: the picture's running number from 1, the
picture, and its detections in its pixels. Once closed, also after an error or Ctrl-C, a file is complete and valid.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TextIO

import numpy as np
from PIL import Image

from sightline.datasets.run_lengths import RunLengths
from sightline.datasets.sources import Frame
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.evaluation.drawing import annotate
from sightline.evaluation.mask_drawing import masks_of
from sightline.tools.picture_files import PictureFiles


class CocoResults:
    """A results.json as COCO's scorer takes it: a list of {image_id, category_id, bbox: [x, y, width, height], score}.

    Pictures and frames are numbered from 1 in the order they were read: that is `image_id`. `category_id` is the label
    plus one. So that nobody has to count, each record also has the names: category, file_name and, of a video, frame.
    Landmarks stand under "keypoints" as [x, y, visibility, …], visibility always 2; a track's id under "track_id"; a mask
    under "segmentation", as run lengths or, on demand, as polygons.
    """

    def __init__(self, path: str | os.PathLike, names: Sequence[str], *, polygons: bool = False) -> None:
        self._names, self._list, self._polygons = names, JsonList(path), polygons

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        landmarks = [] if found.landmarks is None else found.landmarks.tolist()
        ids = [] if found.ids is None else found.ids.tolist()
        masks = [] if found.masks is None else segmentations(masks_of(found, frame.image.shape[:2]), self._polygons)
        columns = zip_longest(rows(found), landmarks, ids, masks)
        for (label, score, (x0, y0, x1, y1)), points, track, mask in columns:
            box = [round(side, 3) for side in (x0, y0, x1 - x0, y1 - y0)]
            record = {"image_id": number, "category_id": label + 1, "bbox": box, "score": score}
            record |= (
                {} if points is None else {"keypoints": [v for x, y in points for v in (round(x, 3), round(y, 3), 2)]}
            )
            record |= {} if track is None else {"track_id": track}
            record |= {} if mask is None else {"segmentation": mask}
            self._list.add(record | {"category": self._names[label]} | place_of(frame))

    def __enter__(self) -> CocoResults:
        return self

    def __exit__(self, *_: object) -> None:
        self._list.close()


def segmentations(masks: RunLengths, polygons: bool) -> list:
    """Masks as COCO writes them: run lengths or polygons."""
    return masks.to_polygons() if polygons else masks.to_coco()


def place_of(frame: Frame) -> dict[str, str | int]:
    """Where a record is from: `file_name` and, of a video, `frame`."""
    return {"file_name": frame.name} | ({"frame": frame.index} if frame.is_video else {})


class CsvTable:
    """One row a box: file, frame (0 for a picture), category, score and the corners x0, y0, x1, y1 in pixels.

    Where objects are tracked, a last column `track` has their ids.
    """

    HEADER = ("file", "frame", "category", "score", "x0", "y0", "x1", "y1")

    def __init__(self, path: str | os.PathLike, names: Sequence[str], *, tracked: bool = False) -> None:
        self._names, self._tracked, self._file = names, tracked, create(path)
        self._table = csv.writer(self._file)
        self._table.writerow([*self.HEADER, "track"] if tracked else self.HEADER)

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        tracks = [[track] for track in found.ids.tolist()] if self._tracked else [[]] * len(found)
        for (label, score, box), track in zip(rows(found), tracks, strict=True):
            corners = [round(side, 3) for side in box]
            self._table.writerow([frame.name, frame.index, self._names[label], score, *corners, *track])

    def __enter__(self) -> CsvTable:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class MotText:
    """One video's tracks as MOTChallenge's text, one row a box: frame, id, x, y, width, height, score, -1, -1, -1.

    Frames count from 1: a video's own, also where only some were looked at, or a folder's pictures as they come. x and y
    are the top left corner in continuous pixels. The format has no categories.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._file = create(path)

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        place = frame.index + 1 if frame.is_video else number
        for (_, score, (x0, y0, x1, y1)), track in zip(rows(found), found.ids.tolist(), strict=True):
            box = ",".join(f"{side:.2f}" for side in (x0, y0, x1 - x0, y1 - y0))
            self._file.write(f"{place},{track},{box},{score:g},-1,-1,-1\n")

    def __enter__(self) -> MotText:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class NumberedPictures:
    """A gray PNG of 16 bits for each picture or frame, called as it is: which object each pixel belongs to, 0 for none.

    Objects have their tracks' ids; where nobody tracks, the best has 1, the next 2 and so on, as they stand in the json.
    Where they overlap, the better one is in front.
    """

    MOST = 2**16 - 1

    def __init__(self, files: PictureFiles) -> None:
        self._files = files

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        """
        Raises:
            DataError: an id is beyond 16 bits.
        """
        numbers = np.arange(1, len(found) + 1) if found.ids is None else found.ids.numpy()
        if numbers.max(initial=0) > self.MOST:
            raise DataError(f"{frame.name}: object {numbers.max()} does not fit a PNG of 16 bits; write fewer frames")
        masks = masks_of(found, frame.image.shape[:2])
        picture = np.zeros(frame.image.shape[:2], np.uint16)
        for row in found.scores.argsort(descending=True, stable=True).flip(0).tolist():
            x0, y0, x1, y1 = masks.boxes[row].tolist()
            part = slice(y0, y1), slice(x0, x1)
            picture[part][masks.part(row, *part) > 0] = numbers[row]
        path = self._files.place_alone(frame)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(path)

    def __enter__(self) -> NumberedPictures:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class AnnotatedPictures:
    """Pictures and videos with boxes and masks drawn on them, in one folder, under their own names; see `PictureFiles`."""

    NAMED = 60  # objects without ids; more names would hide the picture

    def __init__(
        self, folder: str | os.PathLike, names: Sequence[str], items: Sequence[str | int], *, every: int = 1
    ) -> None:
        """`names` are the categories'; the rest as for `PictureFiles`."""
        self._names, self._files = names, PictureFiles(folder, items, every=every)

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        named = len(found) <= self.NAMED or found.ids is not None
        self._files.add(frame, annotate(frame.image, found, self._names, named=named))

    def __enter__(self) -> AnnotatedPictures:
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()


class JsonList:
    """A json file that is one list, written record by record; whole once it is closed."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._file, self._before = create(path), "["

    def add(self, record: dict) -> None:
        """Writes one more record."""
        self._file.write(f"{self._before}\n" + json.dumps(record))
        self._before = ","

    def close(self) -> None:
        """Ends the list."""
        self._file.write("[]\n" if self._before == "[" else "\n]\n")
        self._file.close()


def create(path: str | os.PathLike) -> TextIO:
    """A new text file, its folder made if need be."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", newline="", encoding="utf-8")


def rows(found: Instances) -> list[tuple[int, float, list[float]]]:
    """Label, score and corners of each detection."""
    scores = [round(score, 6) for score in found.scores.tolist()]
    return list(zip(found.labels.tolist(), scores, found.boxes.tolist(), strict=True))
