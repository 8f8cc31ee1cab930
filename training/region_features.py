"""What a network of R-CNN makes of every proposal of a data set, computed once and kept on disk.

There are thousands of vectors a picture, so they live in a file that is mapped into memory, never in memory as a whole, and
in float16: half the disk (VOC 2007's 10 million regions of 4096 numbers take 82 GB instead of 164), and a rounding of 2^-11
of a feature's size, as that of autocast to half precision, far below what changes a margin. An interrupted run goes on with
the pictures that are missing.

Letters: I pictures, P proposals of all of them, D features.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..datasets.batching import frame_sizes
from ..datasets.detection import DetectionDataset, loader_for
from ..datasets.structures import Batch
from ..datasets.table import DataError, Table
from ..detectors.fast_rcnn import FastRCNN
from ..detectors.inference import evaluating
from .features import hash_pictures, hash_tensors

FORMAT = 1  # raised when the same settings no longer give the same numbers
PREDICTOR = "roi_heads.box_predictor."


@torch.inference_mode()
def region_features(
    model: FastRCNN,
    table: Table,
    folder: str | os.PathLike,
    *,
    batch_size: int = 1,
    num_workers: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """The vectors that go into the last layers of `model`, of every proposal; read from `folder` where they are there.

    The file's name is a hash of all that they follow from: the weights below the last layers, the network's form and the
    warp's settings, the pictures' content, how they are brought to size, the proposals, and the kind of
    device, for on GPUs networks run in bfloat16 here as in detection. So nothing stale is ever read.

    Args:
        model: whose head gives vectors of regions: an `rcnn`.
        table: I pictures with `regions`.
        folder: of the cache, made if need be.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.
        progress: show a bar.

    Returns:
        (P, D) float16, mapped from the disk and read-only, in the order of `table.regions`.

    Raises:
        DataError: a picture cannot be read, or the disk has no room.
        ValueError: the network gives infinite or undefined numbers.
    """
    path = Path(folder) / f"{_key(model, table)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        _Partial(path, table, _width(model)).complete(
            model, batch_size=batch_size, num_workers=num_workers, progress=progress
        )
    return np.load(path, mmap_mode="r", allow_pickle=False)


class _Partial:
    """A file of features that some pictures are still missing from, and beside it which."""

    def __init__(self, path: Path, table: Table, width: int) -> None:
        self.path, self.table, self.offsets = path, table, table.regions.offsets
        self.partial, self.marks = path.with_suffix(".partial"), path.with_suffix(".done")
        if not (self.partial.exists() and self.marks.exists()):
            self._begin((int(self.offsets[-1]), width))
        self.features = np.lib.format.open_memmap(self.partial, mode="r+")
        self.done = np.lib.format.open_memmap(self.marks, mode="r+")

    def _begin(self, shape: tuple[int, int]) -> None:
        needed, free = 2 * shape[0] * shape[1], shutil.disk_usage(self.path.parent).free
        if needed > free:
            raise DataError(
                f"the features of {shape[0]} proposals take {needed / 1e9:.1f} GB and {self.path.parent} has "
                f"{free / 1e9:.1f} GB free: name another folder, or take fewer proposals a picture"
            )
        np.lib.format.open_memmap(self.partial, mode="w+", dtype=np.float16, shape=shape)
        np.lib.format.open_memmap(self.marks, mode="w+", dtype=np.bool_, shape=(len(self.table),))

    def complete(self, model: FastRCNN, *, batch_size: int, num_workers: int, progress: bool) -> None:
        """Computes what is missing, then gives the file its name."""
        missing = np.flatnonzero(~self.done & (np.diff(self.offsets) > 0))
        rows = {int(self.table.image_ids[row]): int(row) for row in missing}
        if len(missing):
            loader = _loader(model, self.table, missing, batch_size, num_workers)
            with evaluating(model):
                for batch in tqdm(loader, "features", unit="batch", disable=None if progress else True, leave=False):
                    self._put(model, batch, [rows[info.id] for info in batch.infos])
        self.features.flush()
        if self.partial.exists():  # another process may have been faster
            self.partial.replace(self.path)
        self.marks.unlink(missing_ok=True)

    def _put(self, model: FastRCNN, batch: Batch, rows: list[int]) -> None:
        for row, vectors in zip(rows, _vectors(model, batch).numpy(), strict=True):
            start, end = self.offsets[row], self.offsets[row + 1]
            vectors = vectors[: end - start]
            with np.errstate(over="ignore"):
                self.features[start:end] = vectors
            if not np.isfinite(self.features[start:end]).all():
                raise ValueError(
                    f"{self.table.paths[row]}: the network's features are not finite in half precision (largest "
                    f"{np.abs(vectors).max():.3g}): its weights or its normalisation are not what it was trained with"
                )
        self.features.flush()  # before the mark, so that what is marked is there
        self.done[rows] = True


def _vectors(model: FastRCNN, batch: Batch) -> torch.Tensor:
    """(B, K, D) float32 on the CPU."""
    batch = batch.to(next(model.parameters()).device)
    device = batch.images.device.type
    with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        outputs = model(*batch.inputs)
        most = int(outputs.valid.sum(dim=1).max())  # batches are padded to a multiple of 250
        return model.roi_heads.vectors(outputs.features, outputs.boxes[:, :most]).float().cpu()


def _width(model: FastRCNN) -> int:
    return model.roi_heads.box_predictor.cls_score.in_features


def _loader(model: FastRCNN, table: Table, rows: np.ndarray, batch_size: int, num_workers: int):
    """Of some pictures, in the frames that all of them have."""
    everything = DetectionDataset(table, resize=model.resize)
    frames = frame_sizes(everything.out_shapes, multiple=everything.frame_multiple)
    some = DetectionDataset(table.select(rows), resize=model.resize)
    return loader_for(some, batch_size, frames=frames, num_workers=num_workers)


def _key(model: FastRCNN, table: Table) -> str:
    """32 hexadecimal digits."""
    digest = hashlib.sha256()
    hash_pictures(digest, table)
    for column in (table.regions.boxes, table.regions.offsets):
        digest.update(np.ascontiguousarray(column).tobytes())
    device = next(model.parameters()).device.type
    form = (repr(model.backbone), repr(model.roi_heads.pool))
    digest.update(repr((FORMAT, tuple(model.resize), device, *form)).encode())
    tensors = model.state_dict().items()
    hash_tensors(digest, ((name, value) for name, value in tensors if not name.startswith(PREDICTOR)))
    return digest.hexdigest()[:32]
