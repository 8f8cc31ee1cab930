"""What a frozen backbone makes of every picture of a data set, computed once and kept on disk: captioners train on it.

The maps lie in a `HalfFile`: Flickr8k's 6000 pictures, of 49 cells and 1280 channels each, take 0.75 GB.
Letters: I pictures, B of a batch, C channels, h, w cells.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..backbone.model import evaluating
from ..backbone.precision import computed_in, mixed
from ..captioning.model import Captioner
from ..datasets.detection import DetectionDataset, Loader, loader_for
from ..datasets.structures import Batch
from ..datasets.table import DataError, Table
from .features import hash_pictures, hash_tensors
from .half_file import HalfFile

FORMAT = 1  # raised when the same settings no longer give the same numbers


@torch.inference_mode()
def cached_maps(
    model: Captioner,
    table: Table,
    folder: str | os.PathLike,
    *,
    batch_size: int = 32,
    num_workers: int = 0,
    progress: bool = True,
) -> np.ndarray:
    """The map that a captioner looks at, of every picture, in evaluation mode; read from `folder` where they are there.

    The file's name is a hash of all that they follow from: the backbone's weights and form, which of its maps is looked at, the
    pictures' content, how they are brought to size and normalised, the kind of device, and the numbers that it computes in, here
    as in captioning. So nothing stale is ever read.

    Args:
        model: its backbone is frozen, and `model.resize` brings all pictures to one size.
        table: I pictures.
        folder: of the cache, made if need be.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.
        progress: show a bar.

    Returns:
        (I, C, h, w) float16, mapped from the disk and read-only, in the table's order.

    Raises:
        DataError: pictures are not brought to one size, one cannot be read, the disk has no room, or a number is too large
            for half precision.
        ValueError: the backbone is trained.
    """
    _require_fixed(model)
    path = Path(folder) / f"{_key(model, table)}.npy"
    if not path.exists():
        with evaluating(model):
            relief = "let the backbone look at the pictures again and again: --data.cache_maps false"
            file = HalfFile(path, table, np.arange(len(table) + 1), _shape(model), relief=relief)
            file.complete(
                lambda rows: _loader(model, table.select(rows), batch_size, num_workers),
                lambda batch: _maps(model, batch)[:, None],
                progress=progress,
            )
    return np.load(path, mmap_mode="r", allow_pickle=False)


def _require_fixed(model: Captioner) -> None:
    """Refuses what gives another map in the next epoch, or maps of several sizes."""
    if len(model.resize) != 3 or not model.resize[2]:
        raise DataError(
            "maps can be kept only of pictures of one size, and these keep their shapes: set --data.exact true"
        )
    trained = [name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad]
    if trained:
        raise ValueError(
            f"maps can be kept only of a frozen backbone, and {len(trained)} of its tensors are trained, {trained[0]} among "
            "them: call freeze_stages(backbone, 0)"
        )


def _shape(model: Captioner) -> tuple[int, ...]:
    """(C, h, w)."""
    size = model.resize[:2]
    device = model.normalize.mean.device
    return tuple(_maps(model, _blank(size).to(device)).shape[1:])


def _blank(size: tuple[int, int]) -> Batch:
    return Batch(torch.zeros(1, 3, *size, dtype=torch.uint8), torch.tensor([size]), None, [])


def _maps(model: Captioner, batch: Batch) -> Tensor:
    """(B, C, h, w) float32 on the CPU."""
    batch = batch.to(model.normalize.mean.device)
    with mixed(batch.images.device, model.precision):
        return model.maps(batch.images, batch.sizes).float().cpu()


def _loader(model: Captioner, table: Table, batch_size: int, num_workers: int) -> Loader:
    return loader_for(DetectionDataset(table, resize=model.resize), batch_size, num_workers=num_workers)


def _key(model: Captioner, table: Table) -> str:
    """32 hexadecimal digits."""
    digest = hashlib.sha256()
    hash_pictures(digest, table)
    device = model.normalize.mean.device
    form = (tuple(model.resize), model.layer, repr(model.backbone))
    digest.update(repr((FORMAT, device.type, computed_in(device, model.precision), *form)).encode())
    hash_tensors(digest, [*model.normalize.state_dict().items(), *model.backbone.state_dict().items()])
    return digest.hexdigest()[:32]
