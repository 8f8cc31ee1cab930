"""What a data set's pixels are like: mean, spread, mean picture and principal components; and their use on pictures.

    statistics = compute(table, size=32)
    statistics.save("statistics.npz")
    flat = whiten(images, Statistics.load("statistics.npz"))

All pictures are brought to one size, as training does it. Pixels are counted as whole numbers in 0..255, whose sums are
exact in float64: neither order nor chunks change a digit. Results are in 0..1.

Letters: C channels (3, RGB, or 1, gray), H, W pixels, D = C * H * W, k principal components, I pictures.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from os import PathLike
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .detection import read_picture
from .table import DataError, Table

LARGEST = 4096  # D up to which principal components of whole pictures are computed: a covariance of 134 MB
COMPONENTS = 256  # of them kept by default ...
USUAL = 3 * 32 * 32  # ... for pictures up to this D: four seconds on one core
_CHUNK = 256  # pictures decoded before they are summed up


@dataclass(frozen=True)
class Statistics:
    """Of I pictures at one size; all float32, of pixels in 0..1.

    Attributes:
        count: I.
        mean: (C,), over all pixels.
        std: (C,), over all pixels (divided by their number); 0 for a channel that never changes.
        mean_image: (C, H, W), over all pictures.
        colour_values: (C,), the eigenvalues of the covariance of the pixels' colours, descending.
        colour_vectors: (C, C), its eigenvectors in columns.
        values: (k,), variances of whole pictures along `components` (divided by I - 1), descending, positive.
        components: (k, C * H * W), orthonormal rows; k is 0 where they were not asked for.
    """

    count: int
    mean: Tensor
    std: Tensor
    mean_image: Tensor
    colour_values: Tensor
    colour_vectors: Tensor
    values: Tensor
    components: Tensor

    def save(self, path: str | PathLike) -> None:
        """Writes one file, numpy's .npz; makes the folder if need be."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:  # given a name, numpy would put its own suffix behind it
            np.savez_compressed(file, **{field.name: np.asarray(getattr(self, field.name)) for field in fields(self)})

    @staticmethod
    def load(path: str | PathLike) -> Statistics:
        """What `save` wrote. No code in the file is run.

        Raises:
            DataError: no such file, or not one that `save` wrote whole.
        """
        arrays = _load(path)
        _require_shapes(arrays, str(path))
        count = int(arrays.pop("count"))
        return Statistics(count, **{name: torch.from_numpy(array) for name, array in arrays.items()})


def compute(
    table: Table, *, size: int | tuple[int, int] = 32, gray: bool = False, components: int | None = None
) -> Statistics:
    """Reads every picture of a table once, with a progress bar.

    Args:
        table: the pictures; their objects do not matter.
        size: (height, width) that they are brought to, or one number for both.
        gray: take their brightness (C = 1) instead of RGB.
        components: how many principal components of whole pictures to keep, at most; pictures that span fewer dimensions
            have fewer. None: 256 where size is at most 32 (RGB) or 55 (gray), else 0.

    Raises:
        DataError: no pictures, one that cannot be read, or too large a size for the components asked for.
    """
    height, width = (size, size) if isinstance(size, int) else size
    dimensions = height * width * (1 if gray else 3)
    if components is None:
        components = COMPONENTS if dimensions <= USUAL else 0
    if components > 0 and dimensions > LARGEST:
        raise DataError(
            f"principal components of pictures of {height}x{width} would take a covariance of {dimensions} x {dimensions} "
            f"numbers; choose a smaller size (at most {LARGEST} numbers a picture), or components 0"
        )
    if not len(table):
        raise DataError("there are no pictures to compute statistics of")
    sums = _Sums(1 if gray else 3, height * width, whole=components > 0)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool, tqdm(total=len(table), unit="picture") as bar:
        for start in range(0, len(table), _CHUNK):  # in chunks, lest decoded pictures pile up
            paths = table.paths[start : start + _CHUNK]
            sums.add(np.stack(list(pool.map(lambda path: _read(path, (height, width), gray), paths))))
            bar.update(len(paths))
    return sums.statistics((height, width), components)


def _read(path: str, size: tuple[int, int], gray: bool) -> np.ndarray:
    """(C, H * W) uint8."""
    image = cv2.resize(read_picture(path), size[::-1], interpolation=cv2.INTER_LINEAR)  # as `transforms.resize_image`
    if gray:
        return cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).reshape(1, -1)
    return image.reshape(-1, 3).T


class _Sums:
    """Sums over pictures of (C, P) pixels, from which all statistics follow."""

    def __init__(self, channels: int, pixels: int, *, whole: bool) -> None:
        self.count = 0
        self.first = np.zeros((channels, pixels))
        self.colour = np.zeros((channels, channels))
        self.whole = np.zeros((channels * pixels, channels * pixels)) if whole else None

    def add(self, pictures: np.ndarray) -> None:
        """Takes in (I, C, P) uint8."""
        self.count += len(pictures)
        for picture in pictures:  # one at a time: floats take eight times the memory
            values = picture.astype(np.float64)
            self.first += values
            self.colour += values @ values.T
        if self.whole is not None:
            flat = pictures.reshape(len(pictures), -1).astype(np.float64)
            self.whole += flat.T @ flat

    def statistics(self, size: tuple[int, int], components: int) -> Statistics:
        """The statistics, with at most so many components of whole pictures."""
        mean_image = self.first / self.count
        mean = mean_image.mean(axis=1)
        colour = self.colour / (self.count * self.first.shape[1]) - np.outer(mean, mean)
        colour_values, colour_vectors = _descending(colour)
        values, vectors = self._components(mean_image.reshape(-1), components)
        return Statistics(
            count=self.count,
            mean=_tensor(mean / 255),
            std=_tensor(np.sqrt(np.diag(colour).clip(0)) / 255),
            mean_image=_tensor(mean_image.reshape(-1, *size) / 255),
            colour_values=_tensor(colour_values.clip(0) / 255**2),
            colour_vectors=_tensor(colour_vectors),
            values=_tensor(values / 255**2),
            components=_tensor(vectors.T),
        )

    def _components(self, mean: np.ndarray, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """(k,) variances and (D, k) directions, without those in which the pictures do not differ."""
        if self.whole is None or self.count < 2:
            return np.empty(0), np.empty((len(mean), 0))
        values, vectors = _descending((self.whole - self.count * np.outer(mean, mean)) / (self.count - 1))
        kept = min(limit, self.count - 1, int((values > 1e-9 * values[0]).sum()) if values[0] > 0 else 0)
        return values[:kept], vectors[:, :kept]


def _descending(covariance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues, descending, and eigenvectors in columns, whose largest entry is positive: one sign on all machines."""
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = values[::-1], vectors[:, ::-1]
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(len(values))]
    return values, vectors * np.where(largest < 0, -1, 1)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32))


def _load(path: str | PathLike) -> dict[str, np.ndarray]:
    """The arrays of a file, as many and of such types as `save` writes."""
    names = [field.name for field in fields(Statistics)]
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in names}
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; `sightline inspect DATA --statistics {path}` makes it") from error
    except Exception as error:  # on hostile bytes numpy, zipfile and zlib raise whatever comes
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: not a file of statistics, or not whole ({reason})") from error
    for name, array in arrays.items():
        if name != "count" and (array.dtype != np.float32 or not np.isfinite(array).all()):
            raise DataError(f"{path}: {name} is not finite float32 numbers; compute the statistics again")
    if arrays["count"].shape or not np.issubdtype(arrays["count"].dtype, np.integer):
        raise DataError(f"{path}: count is not one whole number; compute the statistics again")
    return arrays


def _require_shapes(arrays: dict[str, np.ndarray], path: str) -> None:
    shape, kept = arrays["mean_image"].shape, arrays["values"].size
    if len(shape) != 3 or shape[0] not in (1, 3):
        raise DataError(f"{path}: mean_image has shape {shape}, expected (1 or 3, H, W); compute the statistics again")
    channels = shape[0]
    expected = {
        "mean": (channels,), "std": (channels,), "colour_values": (channels,), "colour_vectors": (channels, channels),
        "values": (kept,), "components": (kept, int(np.prod(shape))),
    }  # fmt: skip
    for name, wanted in expected.items():
        if arrays[name].shape != wanted:
            found = arrays[name].shape
            raise DataError(f"{path}: {name} has shape {found}, expected {wanted}; compute the statistics again")


def subtract_mean_image(images: Tensor, statistics: Statistics) -> Tensor:
    """Pictures minus the mean picture (AlexNet, https://papers.nips.cc/paper/4824, section 2).

    Args:
        images: (..., C, H, W), uint8 or float in 0..255, of the size of the statistics.
        statistics: of `compute`.

    Returns:
        (..., C, H, W) float32, in 0..1 before the subtraction.

    Raises:
        ValueError: another size or number of channels than the statistics'.
    """
    mean = statistics.mean_image.to(images.device)
    if images.shape[-3:] != mean.shape:
        raise ValueError(f"pictures are {tuple(images.shape[-3:])}, but the statistics are of {tuple(mean.shape)}")
    return images.float() / 255 - mean


def whiten(images: Tensor, statistics: Statistics, *, zca: bool = False, epsilon: float = 1e-5) -> Tensor:
    """Pictures in coordinates that vary independently, all by the same amount, over the statistics' pictures.

    Equal to `sklearn.decomposition.PCA(k, whiten=True).transform` where epsilon is 0.

    Args:
        images: (..., C, H, W), uint8 or float in 0..255, of the size of the statistics.
        statistics: of `compute`, with k > 0 components.
        zca: turn the result back into pictures, as near to the originals as whitened ones can be.
        epsilon: added to the variances, in squared units of 0..1; keeps directions of almost none from blowing up.

    Returns:
        (..., k) float32, or (..., C, H, W) with `zca`.

    Raises:
        ValueError: another size than the statistics', or these have no components.
    """
    if not len(statistics.values):
        raise ValueError("these statistics have no principal components; compute them with components of 1 or more")
    centred = subtract_mean_image(images, statistics)
    components = statistics.components.to(images.device)
    variances = statistics.values.to(images.device)
    white = centred.flatten(-3) @ components.T / (variances + epsilon).sqrt()
    return (white @ components).view(centred.shape) if zca else white
