"""Pictures and videos that are written under the names of those they were made of."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from unicodedata import category

import cv2
import numpy as np

from sightline.datasets.images import write_image
from sightline.datasets.sources import Frame
from sightline.datasets.table import DataError

# Other kinds become PNG, which keeps all colours.
WRITTEN_AS_READ = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
CAMERA_FPS = 30.0  # where a camera or stream does not tell


class PictureFiles:
    """One folder of pictures and videos, to be closed in the end.

    Two files of one name get different ones; a source is never written over, an earlier prediction is. Videos become
    .mp4, and play as fast as they were filmed when only some of their frames were looked at.
    """

    def __init__(
        self, folder: str | os.PathLike, items: Sequence[str | int], *, every: int = 1, suffix: str | None = None
    ) -> None:
        """
        Args:
            folder: made with the first picture.
            items: all that will be read, so that none of it is written over.
            every: how many frames of a video go by for one that is written.
            suffix: of all pictures, ".png" say; None for that of the source.
        """
        self.folder, self._every, self._suffix = Path(folder), every, suffix
        self._sources = {Path(item).resolve() for item in items if isinstance(item, str)}
        self._targets: dict[str, Path] = {}
        self._taken: set[str] = set()
        self._video: cv2.VideoWriter | None = None
        self._playing, self._size = "", (0, 0)

    def add(self, frame: Frame, picture: np.ndarray) -> None:
        """Writes what was made of a frame, (H, W, 3) uint8 RGB: a picture, or the next frame of its video."""
        if frame.is_video:
            self._add_to_video(frame, picture)
        else:
            write_image(self._target(frame), picture)

    def add_alone(self, frame: Frame, picture: np.ndarray) -> None:
        """As `add`, but a video's frames become pictures, in a folder of its name."""
        write_image(self.place_alone(frame), picture)

    def place_alone(self, frame: Frame) -> Path:
        """Where `add_alone` writes."""
        target = self._target(frame)
        if not frame.is_video:
            return target
        return self._no_source(target.with_suffix("") / f"{frame.index:06}{self._suffix or '.jpg'}")

    def close(self) -> None:
        """Ends the video that is being written."""
        if self._video is not None:
            self._video.release()

    def _add_to_video(self, frame: Frame, picture: np.ndarray) -> None:
        if frame.name != self._playing:
            self.close()
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
        """Where this source's picture or video goes."""
        if frame.name not in self._targets:
            path = Path("camera" + frame.name if frame.name.isdecimal() else re.sub(r"^\w+://", "", frame.name))
            kept = path.suffix if path.suffix.lower() in WRITTEN_AS_READ else ".png"
            suffix = ".mp4" if frame.is_video else self._suffix or kept
            stem = "".join(map(_safe, path.stem))
            stems = chain([stem, f"{path.resolve().parent.name}_{stem}"], (f"{stem}_{i}" for i in count(2)))
            name = next(name for name in (f"{stem}{suffix}" for stem in stems) if name.lower() not in self._taken)
            target = self._no_source(self.folder / name)
            self._taken.add(name.lower())  # some file systems ignore case
            self._targets[frame.name] = target
        return self._targets[frame.name]

    def _no_source(self, target: Path) -> Path:
        if target.resolve() in self._sources:
            raise DataError(f"{target} is a source and would be written over; choose another folder with --out")
        return target


def _safe(letter: str) -> str:
    """The letter, or "_" for one that some file system or shell takes amiss; vowel signs and accents are letters too."""
    return letter if letter in ". -" or re.match(r"\w", letter) or category(letter).startswith("M") else "_"
