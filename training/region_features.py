"""What a network of R-CNN makes of every proposal of a data set, computed once and kept on disk.

There are thousands of vectors a picture, so they live in a `HalfFile`: VOC 2007's 10 million regions of 4096 numbers take
82 GB on the disk instead of 164, and what half precision rounds off is far below what changes a margin.

Letters: I pictures, P proposals of all of them, D features.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch

from ..backbone.model import evaluating
from ..backbone.precision import computed_in, mixed
from ..datasets.batching import frame_sizes
from ..datasets.detection import DetectionDataset, Loader, loader_for
from ..datasets.structures import Batch
from ..datasets.table import Table
from ..detectors.fast_rcnn import FastRCNN
from .features import hash_pictures, hash_tensors
from .half_file import HalfFile

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
    warp's settings, the pictures' content, how they are brought to size, the proposals, the kind of
    device, and the numbers that it computes in, here as in detection. So nothing stale is ever read.

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
        DataError: a picture cannot be read, the disk has no room, or the network gives infinite or undefined numbers.
    """
    path = Path(folder) / f"{_key(model, table)}.npy"
    if not path.exists():
        file = HalfFile(path, table, table.regions.offsets, (_width(model),), relief="take fewer proposals a picture")
        with evaluating(model):
            file.complete(
                lambda rows: _loader(model, table, rows, batch_size, num_workers),
                lambda batch: _vectors(model, batch),
                progress=progress,
            )
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _vectors(model: FastRCNN, batch: Batch) -> torch.Tensor:
    """(B, K, D) float32 on the CPU."""
    batch = batch.to(next(model.parameters()).device)
    with mixed(batch.images.device, model.precision):
        outputs = model(*batch.inputs)
        most = int(outputs.valid.sum(dim=1).max())  # batches are padded to a multiple of 250
        return model.roi_heads.vectors(outputs.features, outputs.boxes[:, :most]).float().cpu()


def _width(model: FastRCNN) -> int:
    return model.roi_heads.box_predictor.cls_score.in_features


def _loader(model: FastRCNN, table: Table, rows: np.ndarray, batch_size: int, num_workers: int) -> Loader:
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
    device = next(model.parameters()).device
    form = (repr(model.backbone), repr(model.roi_heads.pool))
    numbers = computed_in(device, model.precision)
    digest.update(repr((FORMAT, tuple(model.resize), device.type, numbers, *form)).encode())
    tensors = model.state_dict().items()
    hash_tensors(digest, ((name, value) for name, value in tensors if not name.startswith(PREDICTOR)))
    return digest.hexdigest()[:32]
