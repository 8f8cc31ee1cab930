"""From pictures and the masks of their objects to a `Table` with run lengths, and boxes around them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .clean import Objects, Pictures, clean_table, measure
from .run_lengths import RunLengths
from .table import DataError, Problems, Table

BAD_MASK = "mask cannot be used"
WRONG_SIZE = "mask is not of its picture's size"
NO_PIXEL = "mask without a pixel (dropped)"


class Drawn(NamedTuple):
    """The N objects of one picture.

    Attributes:
        masks: N.
        labels: (N,) int64, 0..C-1.
        where: N texts, the file and, in a file of several, the number of each.
    """

    masks: RunLengths
    labels: np.ndarray
    where: list[str]


@dataclass
class Scene:
    """A picture, and what reads the masks of its objects: given its (H, W) and where to note what was left out.

    `read` raises a DataError for what is fatal.
    """

    picture: str
    read: Callable[[tuple[int, int], Problems], Drawn]


def instance_table(name: str, categories: Sequence[str], scenes: Sequence[Scene], problems: Problems) -> Table:
    """The table of these pictures; every mask is read. What is wrong with one is fatal and stands in `problems`.

    Raises:
        DataError: there is no picture; `name` is the file or folder to blame.
    """
    paths = [scene.picture for scene in scenes]
    sizes = measure(paths, problems)
    found = _read_all(scenes, sizes, problems)
    masks = RunLengths.concatenate([one.masks for one in found])
    where = [text for one in found for text in one.where]
    labels = np.concatenate([np.zeros(0, np.int64), *(one.labels for one in found)])
    image = np.repeat(np.arange(len(found)), [len(one.masks) for one in found])
    keep = np.flatnonzero(masks.areas)
    problems.add_rows(NO_PIXEL, np.flatnonzero(masks.areas == 0), where.__getitem__)
    masks = masks.select(keep)
    objects = Objects(
        image=image[keep],
        boxes=masks.boxes.astype(np.float64),
        labels=labels[keep],
        where=lambda k: where[keep[k]],
        area=masks.areas.astype(np.float64),
        segmentations=masks.to_coco(),
    )
    return clean_table(name, list(categories), Pictures(paths, sizes), objects, problems)


def _read_all(scenes: Sequence[Scene], sizes: np.ndarray, problems: Problems) -> list[Drawn]:
    """The objects of each picture; none of one whose masks cannot be used, which is fatal."""

    def read(scene: Scene, size: tuple[int, int]) -> tuple[Drawn, Problems]:
        own = Problems()
        try:
            return scene.read(size, own), own
        except DataError as error:
            own.add(BAD_MASK, str(error), fatal=True)
            return Drawn(RunLengths.concatenate([]), np.zeros(0, np.int64), []), own

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        results = list(pool.map(read, scenes, map(tuple, sizes.tolist())))
    for _, own in results:
        problems.merge(own)
    return [drawn for drawn, _ in results]


def require_size(path: str, shape: tuple[int, int], size: tuple[int, int]) -> None:
    """Raises a DataError where a mask is not of its picture's size, unless the picture is unreadable and its size unknown."""
    if tuple(shape) != tuple(size) and 0 not in size:
        raise DataError(
            f"{path}: {WRONG_SIZE}: {shape[0]}x{shape[1]} pixels (height x width), the picture, upright, has "
            f"{size[0]}x{size[1]}"
        )
