"""MNIST (LeCun et al. 1998) and its kin (Fashion-MNIST, KMNIST): four idx files in a folder, gzipped or not.

An idx file is the bytes 0, 0, type (8: uint8), number of dimensions, then each dimension as a big-endian uint32, then the
values, the last dimension fastest. Letters: I pictures.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from functools import lru_cache
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .table import DataError, Table

SIDE = 28
CATEGORIES = tuple("0123456789")
FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_PREFIX = "mnist:"


class MnistFolder:
    """The digits as a data set of objects: each picture holds one, as large as the picture.

    Attributes:
        splits: "train" (60,000 pictures) and "test" (10,000), those of them that are there.
    """

    def __init__(self, path: str | PathLike) -> None:
        self.folder = Path(path)
        self.splits = [split for split in FILES if _find(self.folder, FILES[split][0])]

    def read(self, split: str | None = None) -> Table:
        """One split as a table; its paths, `mnist:FOLDER#SPLIT/INDEX`, are for `read_mnist`.

        Raises:
            DataError: no such split, or files that are missing or broken.
        """
        labels = read_digits(self.folder, split or "")[1].numpy().astype(np.int64)
        count = len(labels)
        return Table(
            categories=list(CATEGORIES),
            paths=[f"{_PREFIX}{self.folder}#{split}/{index}" for index in range(count)],
            image_ids=np.arange(1, count + 1),
            sizes=np.full((count, 2), SIDE, np.int64),
            image=np.arange(count),
            boxes=np.tile(np.array([0, 0, SIDE, SIDE], np.float32), (count, 1)),
            labels=labels,
            area=np.full(count, float(SIDE * SIDE)),
            crowd=np.zeros(count, bool),
            difficult=np.zeros(count, bool),
            category_ids=np.arange(1, len(CATEGORIES) + 1),
        )


def is_mnist(folder: str | PathLike) -> bool:
    """Whether a folder holds the pictures of either split."""
    return any(_find(Path(folder), images) for images, _ in FILES.values())


def read_mnist(path: str) -> np.ndarray:
    """The picture (28, 28, 3) uint8 RGB that a path `mnist:FOLDER#SPLIT/INDEX` stands for.

    The split is read once a process and kept (47 MB).

    Raises:
        DataError: the path is not of that form, or there is no such picture.
    """
    folder, split, index = _parts(path)
    pictures = _pictures(folder, split)
    if index >= len(pictures):
        raise DataError(f"{path}: there are {len(pictures)} pictures in {split}, numbered from 0")
    return pictures[index][..., None].repeat(3, axis=2)


def _parts(path: str) -> tuple[str, str, int]:
    """Folder, split and index."""
    folder, _, rest = path.removeprefix(_PREFIX).rpartition("#")
    split, _, index = rest.partition("/")
    if not path.startswith(_PREFIX) or not folder or not index.isdecimal():
        raise DataError(f"{path!r} is no MNIST picture; those are mnist:FOLDER#SPLIT/INDEX, say mnist:data#train/7")
    return folder, split, int(index)


@lru_cache(maxsize=4)
def _pictures(folder: str, split: str) -> np.ndarray:
    return read_digits(folder, split)[0][:, 0].numpy()


def read_digits(folder: str | PathLike, split: str) -> tuple[Tensor, Tensor]:
    """A whole split: pictures (I, 1, 28, 28) and labels (I,), both uint8.

    Raises:
        DataError: no such split; a file that is missing, truncated, not of this format or not of this shape; pictures
            and labels that differ in number; a label beyond 9.
    """
    if split not in FILES:
        raise DataError(f"{folder}: no split {split!r}; MNIST has {' and '.join(FILES)}")
    pictures_file, labels_file = (_require(Path(folder), name) for name in FILES[split])
    pictures, labels = read_idx(pictures_file), read_idx(labels_file)
    if pictures.ndim != 3 or pictures.shape[1:] != (SIDE, SIDE) or labels.ndim != 1:
        raise DataError(
            f"{pictures_file}, {labels_file}: pictures {pictures.shape} and labels {labels.shape}; "
            f"expected (I, {SIDE}, {SIDE}) and (I,)"
        )
    if len(pictures) != len(labels):
        raise DataError(
            f"{pictures_file} has {len(pictures)} pictures, but {labels_file} {len(labels)} labels; fetch both anew"
        )
    if len(labels) and labels.max() >= len(CATEGORIES):
        raise DataError(f"{labels_file}: label {labels.max()} at row {labels.argmax()}; expected 0 to 9")
    return torch.from_numpy(pictures)[:, None], torch.from_numpy(labels)


def read_idx(path: str | PathLike) -> np.ndarray:
    """The array of an idx file of uint8, gzipped or not.

    Raises:
        DataError: missing, broken, truncated, or not such a file.
    """
    data = _bytes(Path(path))
    if len(data) < 4 or data[:3] != b"\0\0\x08":
        raise DataError(f"{path}: starts with {data[:4].hex(' ')}, an idx file of bytes with 00 00 08; fetch it anew")
    start = 4 + 4 * data[3]
    if len(data) < start:
        raise DataError(f"{path}: truncated within its header; fetch it anew")
    shape = struct.unpack(f">{data[3]}I", data[4:start])
    if len(data) - start != math.prod(shape):
        raise DataError(f"{path}: {len(data) - start} values for a shape of {shape}; truncated? Fetch it anew")
    return np.frombuffer(bytearray(data[start:]), np.uint8).reshape(
        shape
    )  # a bytearray: torch wants to own writable memory


def _bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read, {error}; fetch it anew") from error


def _require(folder: Path, name: str) -> Path:
    path = _find(folder, name)
    if path is None:
        raise DataError(f"{folder}: no {name}, nor {name}.gz; MNIST is four such files")
    return path


def _find(folder: Path, name: str) -> Path | None:
    """The file, gzipped or not; some copies write a dot before idx."""
    names = (name, f"{name}.gz", name.replace("-idx", ".idx"))
    return next((folder / known for known in names if (folder / known).is_file()), None)
