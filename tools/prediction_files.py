"""What `sightline predict` leaves behind, each written picture by picture: nothing grows with the length of a video.

All are context managers with one verb, `write(number, frame, found)`: the picture's running number from 1, the
picture, and its detections in its pixels. Once closed, also after an error or Ctrl-C, a file is complete and valid.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Sequence
from itertools import chain, count, zip_longest
from pathlib import Path

import cv2
import numpy as np

from sightline.datasets.images import write_image
from sightline.datasets.sources import Frame
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.evaluation.drawing import annotate

# Other kinds become PNG, which keeps all colours.
WRITTEN_AS_READ = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
CAMERA_FPS = 30.0  # where a camera or stream does not tell


class CocoResults:
    """A results.json as COCO's scorer takes it: a list of {image_id, category_id, bbox: [x, y, width, height], score}.

    Pictures and frames are numbered from 1 in the order they were read: that is `image_id`. `category_id` is the label
    plus one. So that nobody has to count, each record also has the names: category, file_name and, of a video, frame.
    Landmarks stand under "keypoints" as [x, y, visibility, …], visibility always 2; a track's id under "track_id".
    """

    def __init__(self, path: str | os.PathLike, names: Sequence[str]) -> None:
        self._names, self._file, self._before = names, _create(path), "["

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        place = {"file_name": frame.name} | ({"frame": frame.index} if frame.is_video else {})
        landmarks = [] if found.landmarks is None else found.landmarks.tolist()
        ids = [] if found.ids is None else found.ids.tolist()
        for (label, score, (x0, y0, x1, y1)), points, track in zip_longest(_rows(found), landmarks, ids):
            box = [round(side, 3) for side in (x0, y0, x1 - x0, y1 - y0)]
            record = {"image_id": number, "category_id": label + 1, "bbox": box, "score": score}
            record |= (
                {} if points is None else {"keypoints": [v for x, y in points for v in (round(x, 3), round(y, 3), 2)]}
            )
            record |= {} if track is None else {"track_id": track}
            self._file.write(f"{self._before}\n" + json.dumps(record | {"category": self._names[label]} | place))
            self._before = ","

    def __enter__(self) -> CocoResults:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.write("[]\n" if self._before == "[" else "\n]\n")
        self._file.close()


class CsvTable:
    """One row a box: file, frame (0 for a picture), category, score and the corners x0, y0, x1, y1 in pixels.

    Where objects are tracked, a last column `track` has their ids.
    """

    HEADER = ("file", "frame", "category", "score", "x0", "y0", "x1", "y1")

    def __init__(self, path: str | os.PathLike, names: Sequence[str], *, tracked: bool = False) -> None:
        self._names, self._tracked, self._file = names, tracked, _create(path)
        self._table = csv.writer(self._file)
        self._table.writerow([*self.HEADER, "track"] if tracked else self.HEADER)

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        tracks = [[track] for track in found.ids.tolist()] if self._tracked else [[]] * len(found)
        for (label, score, box), track in zip(_rows(found), tracks, strict=True):
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
        self._file = _create(path)

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        place = frame.index + 1 if frame.is_video else number
        for (_, score, (x0, y0, x1, y1)), track in zip(_rows(found), found.ids.tolist(), strict=True):
            box = ",".join(f"{side:.2f}" for side in (x0, y0, x1 - x0, y1 - y0))
            self._file.write(f"{place},{track},{box},{score:g},-1,-1,-1\n")

    def __enter__(self) -> MotText:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class AnnotatedPictures:
    """Pictures and videos with boxes drawn on them, in one folder, under their own names.

    Two files of one name get different ones; a source is never written over, an earlier prediction is. Videos become
    .mp4, and play as fast as they were filmed when only some of their frames were looked at.
    """

    def __init__(
        self, folder: str | os.PathLike, names: Sequence[str], items: Sequence[str | int], *, every: int = 1
    ) -> None:
        """
        Args:
            folder: made with the first picture.
            names: of the categories.
            items: all that will be read, so that none of it is written over.
            every: how many frames of a video go by for one that is written.
        """
        self.folder, self._names, self._every = Path(folder), names, every
        self._sources = {Path(item).resolve() for item in items if isinstance(item, str)}
        self._targets: dict[str, Path] = {}
        self._taken: set[str] = set()
        self._video: cv2.VideoWriter | None = None
        self._playing, self._size = "", (0, 0)

    def write(self, number: int, frame: Frame, found: Instances) -> None:
        picture = annotate(frame.image, found, self._names)
        if frame.is_video:
            self._add_to_video(frame, picture)
        else:
            write_image(self._target(frame), picture)

    def __enter__(self) -> AnnotatedPictures:
        return self

    def __exit__(self, *_: object) -> None:
        if self._video is not None:
            self._video.release()

    def _add_to_video(self, frame: Frame, picture: np.ndarray) -> None:
        if frame.name != self._playing:
            self.__exit__()
            self._playing, self._size = frame.name, (picture.shape[1], picture.shape[0])
            target, rate = self._target(frame), (frame.fps or CAMERA_FPS) / self._every
            target.parent.mkdir(parents=True, exist_ok=True)
            self._video = cv2.VideoWriter(str(target), cv2.VideoWriter_fourcc(*"mp4v"), rate, self._size)
            if not self._video.isOpened():
                raise DataError(f"{target}: OpenCV cannot write a video of {rate:g} frames a second; try --no-pictures")
        if picture.shape[1::-1] != self._size:  # a stream may change its size; OpenCV would drop such frames unsaid
            picture = cv2.resize(picture, self._size, interpolation=cv2.INTER_AREA)
        self._video.write(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))

    def _target(self, frame: Frame) -> Path:
        """Where this source's annotated picture or video goes."""
        if frame.name not in self._targets:
            path = Path("camera" + frame.name if frame.name.isdecimal() else re.sub(r"^\w+://", "", frame.name))
            kept = path.suffix if path.suffix.lower() in WRITTEN_AS_READ else ".png"
            suffix = ".mp4" if frame.is_video else kept
            stem = re.sub(r"[^\w. -]", "_", path.stem)
            stems = chain([stem, f"{path.resolve().parent.name}_{stem}"], (f"{stem}_{i}" for i in count(2)))
            name = next(name for name in (f"{stem}{suffix}" for stem in stems) if name.lower() not in self._taken)
            target = self.folder / name
            if target.resolve() in self._sources:
                raise DataError(f"{target} is a source and would be written over; choose another folder with --out")
            self._taken.add(name.lower())  # some file systems ignore case
            self._targets[frame.name] = target
        return self._targets[frame.name]


def _create(path: str | os.PathLike):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", newline="", encoding="utf-8")


def _rows(found: Instances) -> list[tuple[int, float, list[float]]]:
    """Label, score and corners of each detection."""
    scores = [round(score, 6) for score in found.scores.tolist()]
    return list(zip(found.labels.tolist(), scores, found.boxes.tolist(), strict=True))
