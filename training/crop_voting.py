"""Classification by the mean of several crops' probabilities, as the papers' ImageNet numbers were taken.

Ten crops of one scale in AlexNet (Krizhevsky et al. 2012, https://papers.nips.cc/paper/4824, section 4.1), of five
scales in ResNet (https://arxiv.org/abs/1512.03385, section 3.4).

Letters: I pictures, N crops of a picture, C categories, h, w pixels of a crop.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..backbone.model import answering
from ..datasets.crops import multi_scale_crops
from ..datasets.detection import read_picture, start_worker, with_plain_errors
from ..datasets.table import DataError, Table
from ..datasets.transforms import from_hwc
from ..detectors.classification import whole_pictures
from ..detectors.model import Detector
from ..evaluation import DetectionCollector
from .scoring import Scored, data_labels, judge


@dataclass(frozen=True)
class Crops:
    """Which crops of a picture are looked at.

    Attributes:
        count: at each scale: 10 (corners, centre, and their mirror images) or 1 (the centre).
        scales: lengths in pixels that the short side is brought to.
        size: (h, w) of a crop.
    """

    count: int = 10
    scales: tuple[int, ...] = (256,)
    size: tuple[int, int] = (224, 224)

    def __post_init__(self) -> None:
        if self.count not in (1, 10):
            raise DataError(f"there are 1 or 10 crops at each scale, not {self.count}")
        if min((*self.size, *self.scales), default=0) < 1 or not self.scales:
            raise DataError(f"crops and scales must be at least 1 pixel, got {self.size} and {self.scales}")

    @staticmethod
    def of(model: Detector, *, count: int = 10, scales: Sequence[int] | None = None, size: int | None = None) -> Crops:
        """Crops of the size that the model was trained on (224 where that varied), by default at 8/7 of its short side."""
        exact = len(model.resize) == 3 and model.resize[2]
        shape = (size, size) if size else tuple(model.resize[:2]) if exact else (224, 224)
        return Crops(count, tuple(scales or [round(min(shape) * 8 / 7)]), shape)

    def __call__(self, image: Tensor) -> Tensor:
        """(N, 3, h, w) uint8 crops of a picture (3, H, W) uint8."""
        crops = multi_scale_crops(image, self.scales, self.size)
        return crops if self.count == 10 else crops[4::10]  # the fifth of ten is the centre's


@torch.inference_mode()
def crop_probabilities(model: Detector, images: Sequence[Tensor], crops: Crops, *, batch_size: int = 64) -> Tensor:
    """The mean of the probabilities of a picture's crops.

    Args:
        model: a classifier, or an ensemble of them.
        images: I pictures (3, H, W) uint8 RGB, of any sizes.
        crops: what is cut out of each.
        batch_size: crops that the model sees at a time.

    Returns:
        (I, C) on the model's device.
    """
    return _mean(model, torch.stack([crops(image) for image in images]), batch_size)


def _mean(model: Detector, crops: Tensor, batch_size: int) -> Tensor:
    """(I, C) mean probabilities of (I, N, 3, h, w) uint8 crops."""
    device, found = next(model.parameters()).device, []
    with answering(model):
        for part in crops.flatten(0, 1).split(batch_size):
            sizes = torch.tensor(part.shape[-2:], device=device).expand(len(part), 2)
            found.append(model.probabilities(model(part.to(device), sizes)))
    return torch.cat(found).unflatten(0, crops.shape[:2]).mean(dim=1)


@torch.inference_mode()
def score_crops(
    model: Detector,
    table: Table,
    crops: Crops,
    *,
    batch_size: int = 64,
    num_workers: int = 0,
    progress: bool = True,
) -> Scored:
    """Scores a classifier by its crops' mean; as `score`, which looks at each picture once, as a whole.

    Args:
        model: a classifier, or an ensemble of them, whose category names include the data set's.
        table: the labelled pictures.
        crops: what is cut out of each.
        batch_size: crops that the model sees at a time.
        num_workers: processes that load pictures.
        progress: show a bar.

    Raises:
        DataError: the model is no classifier, the data set has a category that it does not know, or a picture cannot be
            read.
    """
    if model.task != "classification":
        raise DataError(f"crops are averaged for classifiers; this model's task is {model.task}")
    data_labels(model.categories, table.categories)  # raises before the work, not after it
    together = max(1, batch_size // (crops.count * len(crops.scales)))  # pictures
    loader = DataLoader(_CropsOf(table, crops), together, num_workers=num_workers, worker_init_fn=start_worker)
    batches, quiet = with_plain_errors(loader), None if progress else True
    bar = tqdm(batches, "crops", len(loader), unit="batch", disable=quiet, leave=False)
    collector, started = DetectionCollector(), time.perf_counter()
    for rows, batch in bar:
        probabilities = _mean(model, batch, batch_size)
        sizes = torch.from_numpy(table.sizes[rows.numpy()]).to(probabilities.device)
        collector.update(whole_pictures(probabilities, sizes), table.image_ids[rows.numpy()])
    return judge(model, table, collector, seconds=time.perf_counter() - started)


class _CropsOf(Dataset):
    """A table's pictures as (row, crops (N, 3, h, w))."""

    def __init__(self, table: Table, crops: Crops) -> None:
        self.paths, self.crops = table.paths, crops

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self.crops(from_hwc(read_picture(self.paths[index])))
