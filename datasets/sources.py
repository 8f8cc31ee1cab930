"""Pictures one at a time from whatever one points at: picture, folder, pattern, video, stream, camera, or several.

    for name, index, image, fps in frames("clip.mp4", every=5): ...

Never more than one frame is held: a video of any length takes as much memory as its first picture.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from .images import is_picture, read_image
from .table import DataError, Problems, nearest

VIDEO_SUFFIXES = frozenset(
    {".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv", ".flv", ".ts", ".3gp", ".ogv"}
)


class Frame(NamedTuple):
    """One picture of a source.

    Attributes:
        name: the file, stream or camera it comes from.
        index: its place in the video, from 0; 0 for a picture.
        image: (H, W, 3) uint8 RGB, upright.
        fps: frames per second of the video it belongs to, before `every`; None for a picture, 0 where unknown.
    """

    name: str
    index: int
    image: np.ndarray
    fps: float | None

    @property
    def is_video(self) -> bool:
        """Whether it belongs to a video, stream or camera."""
        return self.fps is not None


def frames(source: str | int | PathLike | Sequence, every: int = 1) -> Frames:
    """The pictures of a source, to iterate over once or more; see `Frames`."""
    return Frames(source, every)


def frames_and_arrays(source: Any, every: int = 1) -> Iterator[Frame]:
    """The pictures of a source, where arrays, (H, W, 3) uint8 RGB, may stand in place of files or among them.

    An array's name is its place, from 0.

    Raises:
        DataError: as `frames`, or an array is no picture.
    """
    items = source if isinstance(source, (list, tuple)) else [source]
    if not any(isinstance(item, np.ndarray) for item in items):
        yield from frames(source, every)
        return
    for place, item in enumerate(items):
        if isinstance(item, np.ndarray):
            yield Frame(f"array {place}", 0, _checked(item), None)
        else:
            yield from frames(item, every)


def _checked(image: np.ndarray) -> np.ndarray:
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
        raise DataError(f"a picture must be an (H, W, 3) uint8 RGB array, got {image.shape} {image.dtype}")
    return np.require(image, requirements=("C", "W"))  # a copy only where torch could not share the memory


class Frames:
    """The pictures of one or several sources, in order; a folder's by name.

    A broken picture among others is skipped and noted in `problems`; one that stands alone is an error.

    Attributes:
        items: the picture and video files, stream addresses and camera numbers that the sources come to.
        problems: what was skipped so far.
    """

    def __init__(self, source: str | int | PathLike | Sequence, every: int = 1) -> None:
        """
        Args:
            source: a picture, video, folder (its pictures and videos), pattern ("in/*.jpg"), stream address
                ("rtsp://..."), camera number (0 or "0"), or a list of such.
            every: of a video, take every n-th frame, from the first.

        Raises:
            DataError: nothing is there, or nothing that could be a picture or video.
        """
        if every < 1:
            raise DataError(f"every must be at least 1, got {every}")
        sources = [source] if isinstance(source, (str, int, PathLike)) else list(source)
        self.items = [item for each in sources for item in _expand(each)]
        if not self.items:
            raise DataError("no source was given: name a picture, a folder, a video or a camera")
        self.every, self.problems = every, Problems()

    @property
    def total(self) -> int | None:
        """How many frames there will be, as far as the files' headers tell; None with a stream or camera among them."""
        counts = [_count(item, self.every) for item in self.items]
        return None if None in counts else sum(counts)

    def __iter__(self) -> Iterator[Frame]:
        found = False
        for item in self.items:
            try:
                for frame in _video(item, self.every, self.problems) if is_video(item) else _picture(item):
                    found = True
                    yield frame
            except DataError as error:
                if len(self.items) == 1:
                    raise
                self.problems.add("picture or video cannot be read (skipped)", str(error))
        if not found:
            raise DataError("none of the pictures can be read\n" + self.problems.summary())


def _expand(source: str | int | PathLike) -> list[str | int]:
    """The files, addresses or cameras that a source stands for."""
    if isinstance(source, int):
        return [source]
    text = os.path.expanduser(os.fspath(source))
    path = Path(text)
    if path.is_dir():
        shown = (file for file in sorted(path.iterdir()) if not file.name.startswith("."))
        files = [file for file in shown if is_picture(file.name) or is_video(file.name)]
        if not files:
            raise DataError(f"{text}: no picture and no video in this folder")
        return [str(file) for file in files]
    if path.is_file() or "://" in text:
        return [text]
    if text.isdecimal():
        return [int(text)]
    if glob.has_magic(text):
        files = sorted(file for file in glob.glob(text, recursive=True) if os.path.isfile(file))
        if not files:
            raise DataError(f"{text}: no file matches this pattern")
        return files
    near = nearest(path.name, os.listdir(path.parent)) if path.parent.is_dir() else ""
    raise DataError(f"{text}: no such file or folder{near}")


def is_video(item: str | int) -> bool:
    """Whether a source's item is a video, stream or camera, going by its name."""
    return isinstance(item, int) or "://" in item or Path(item).suffix.lower() in VIDEO_SUFFIXES


def _picture(path: str) -> Iterator[Frame]:
    yield Frame(path, 0, read_image(path), None)


def _video(item: str | int, every: int, problems: Problems) -> Iterator[Frame]:
    capture = _open(item)
    try:
        fps, expected = capture.get(cv2.CAP_PROP_FPS), _frame_count(capture)
        index = 0
        while capture.grab():
            if index % every == 0:
                decoded, image = capture.retrieve()
                if not decoded:
                    break
                yield Frame(str(item), index, cv2.cvtColor(image, cv2.COLOR_BGR2RGB), max(fps, 0.0))
            index += 1
    finally:  # also when the consumer stops early
        capture.release()
    if index == 0:
        raise DataError(f"{item}: no frame of this video can be decoded")
    if expected and index < 0.95 * expected:  # headers are often off by a frame or two
        problems.add("video ends early", f"{item}: {index} of {expected} frames")


def _open(item: str | int) -> cv2.VideoCapture:
    capture = cv2.VideoCapture(item)
    if not capture.isOpened():
        capture.release()
        if isinstance(item, int):
            raise DataError(f"camera {item} cannot be opened; is it connected, and not in use by another program?")
        raise DataError(f"{item}: cannot be opened as a video; is it complete, and of a kind that OpenCV decodes?")
    return capture


def _count(item: str | int, every: int) -> int | None:
    if not is_video(item):
        return 1
    if isinstance(item, int) or "://" in item:
        return None
    capture = cv2.VideoCapture(item)
    count = _frame_count(capture)
    capture.release()
    return count and -(-count // every)


def _frame_count(capture: cv2.VideoCapture) -> int | None:
    count = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    return count if count > 0 else None
