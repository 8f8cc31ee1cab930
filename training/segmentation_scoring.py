"""A trained segmenter's scores on a data set: what `evaluate`, `benchmark` and the end of a training call.

Letters: B pictures, H, W pixels of original pictures.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..datasets.batching import Key
from ..datasets.detection import DetectionDataset, annotated_picture, loader_for
from ..datasets.segmentation_dataset import annotated_map
from ..datasets.structures import Batch, LabelMaps
from ..datasets.table import DataError, Table
from ..evaluation import ReportInputs, SegmentationCollector, SegmentationResult
from ..evaluation.segmentation_report import write_segmentation_report
from ..segmentation.inference import at_original, probabilities, segment
from ..segmentation.model import Segmenter
from .scoring import data_labels


@dataclass
class ScoredLabelMaps:
    """Scores, and what they were computed from.

    Attributes:
        result: the scores; its pictures are in the table's order.
        seconds: wall-clock time of loading and predicting.
        table: the pictures and their truth.
        found: the predicted label map, (H, W) int16, of a row of the table; it may be made anew on each call.
    """

    result: SegmentationResult
    seconds: float
    table: Table
    found: Callable[[int], np.ndarray]

    def to_dict(self) -> dict:
        """The summary (mean_IoU, …) and the rule for void at the top, then "per_class", "seconds", "per_image"."""
        numbers = self.result.to_dict()
        pictures = numbers.pop("per_image")
        return numbers | {"seconds": round(self.seconds, 2), "per_image": pictures}

    def write_report(self, folder: str | os.PathLike, inputs: ReportInputs) -> Path:
        """Writes report.html with curves and pictures into a folder; returns its path."""
        return write_segmentation_report(
            folder,
            self.result,
            inputs,
            maps=lambda row: (true_labels(self.table, row), self.found(row)),
            colours=self.table.colours or (),
        )


def score_segmenter(
    model: Segmenter,
    table: Table,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    boundary: bool = True,
    void_is_wrong: bool = False,
    progress: bool = True,
) -> ScoredLabelMaps:
    """Names every pixel of a data set's pictures, and scores that at their original resolution.

    Args:
        model: a segmenter whose category names include the data set's. What it takes for one that these do not have is
            wrong wherever there is a truth.
        table: pictures with label maps.
        batch_size: pictures at a time.
        num_workers: processes that load pictures and label maps.
        boundary: Boundary IoU too.
        void_is_wrong: see `SegmentationResult`.
        progress: show a bar.

    Raises:
        DataError: the data set has no label maps, or a category that the model does not know; or a file cannot be read.
    """
    to_data = torch.from_numpy(data_labels(model.categories, table.categories)).short()
    loader = loader_for(_Pictures(table, resize=model.resize), batch_size, num_workers=num_workers)
    collector = SegmentationCollector(len(table.categories), boundary=boundary)
    device, started = next(model.parameters()).device, time.perf_counter()
    to_data_there = to_data.to(device)
    for batch in tqdm(loader, desc="segment", unit="batch", disable=None if progress else True, leave=False):
        _score_batch(model, batch.to(device), to_data_there, collector)
    result = listed(collector, table, void_is_wrong=void_is_wrong)
    seconds = time.perf_counter() - started
    return ScoredLabelMaps(
        result, seconds, table, lambda row: to_data[segment(model, annotated_picture(table, row)).labels.long()].numpy()
    )


def _score_batch(model: Segmenter, batch: Batch, to_data: Tensor, collector: SegmentationCollector) -> None:
    """Adds a batch of `_Pictures`; `to_data` are the data's labels by the model's. No value is read, so no GPU waits."""
    found = probabilities(model, batch.images, batch.sizes)
    for one, truth, info in zip(found, batch.label_maps.labels, batch.infos, strict=True):
        labels = to_data[at_original(one, info).labels.long()]
        truth = truth[: info.size[0], : info.size[1]]
        collector.update(LabelMaps(labels[None]), LabelMaps(truth[None]), [info.id])


class _Pictures(DetectionDataset):
    """A table's pictures as the model takes them, with their label maps as they are: (B, H, W) with -1 around the smaller."""

    def __getitems__(self, keys: list[Key]) -> Batch:
        """The batch for keys that share a frame."""
        maps = [true_labels(self.table, key.index) for key in keys]
        frame = np.max([labels.shape for labels in maps], axis=0)
        padded = np.full((len(maps), *frame), -1, np.int16)
        for row, labels in zip(padded, maps, strict=True):
            row[: labels.shape[0], : labels.shape[1]] = labels
        return replace(super().__getitems__(keys), targets=None, label_maps=LabelMaps(torch.from_numpy(padded)))


def true_labels(table: Table, row: int) -> np.ndarray:
    """(H, W) int16, a picture's label map.

    Raises:
        DataError: the table has none, the file cannot be read, or the map is not of the picture's size.
    """
    if table.label_maps is None:
        raise DataError(
            f"the data set's {len(table)} pictures have no label maps that predictions could be scored against"
        )
    return annotated_map(table, row)


def listed(collector: SegmentationCollector, table: Table, *, void_is_wrong: bool) -> SegmentationResult:
    """The scores of a table's pictures, in its order."""
    return collector.result(table.categories, image_ids=table.image_ids, void_is_wrong=void_is_wrong)
