"""A trained detector's scores on a data set: what `evaluate`, `benchmark` and the end of a training call."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..backbone.model import answering
from ..datasets.detection import (
    DetectionDataset,
    Loader,
    annotated_picture,
    loader_for,
    start_worker,
    with_plain_errors,
)
from ..datasets.propose import propose
from ..datasets.table import DataError, Table
from ..detectors.model import Detector
from ..detectors.tiling import Tiling, find_tiled
from ..evaluation import DetectionCollector, Detections, ReportInputs, Truth, write_report
from .tasks import Result, evaluate, truth_of


@dataclass
class Scored:
    """Scores, and what they were computed from.

    Attributes:
        truth, detections: in the original pictures' pixels; labels are the data set's.
        result: the scores, of the model's task.
        seconds: wall-clock time of loading and detecting; proposals are made before.
    """

    truth: Truth
    detections: Detections
    result: Result
    seconds: float

    def to_dict(self) -> dict:
        """The summary (AP, AP50, … or the errors) at the top, then "per_class" and "seconds": a results.json."""
        return self.result.summary() | {"per_class": self.result.per_class(), "seconds": round(self.seconds, 2)}

    def write_report(self, folder: str | os.PathLike, inputs: ReportInputs) -> Path:
        """Writes report.html with curves and pictures into a folder; returns its path."""
        return write_report(folder, self.truth, self.detections, self.result, inputs)


def score(
    model: Detector,
    table: Table,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    max_dets: tuple[int, ...] = (1, 10, 100),
    progress: bool = True,
    proposal_cache: str | os.PathLike | None = None,
) -> Scored:
    """Runs a detector over a data set and scores it: as COCO does, or by the errors of its task.

    Args:
        model: a detector whose category names include the data set's.
        table: the annotated pictures. Where they have no proposals and the model has a proposer, this makes them.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.
        max_dets: COCO's limits on detections an image and category.
        progress: show a bar.
        proposal_cache: the folder where a proposer's boxes are kept; None: see `datasets.propose.cache_folder`.

    Raises:
        DataError: the data set has a category that the model does not know.
    """
    data_labels(model.categories, table.categories)  # raises before the work, not after it
    if model.proposer is None:
        table = replace(table, regions=None)  # a model that proposes itself takes none
    elif table.regions is None:
        table = propose(table, model.proposer, cache=proposal_cache, num_workers=num_workers, progress=progress)
    else:
        table = replace(table, regions=table.regions.best(model.proposer.limit))
    loader = loader_for(DetectionDataset(table, resize=model.resize), batch_size, num_workers=num_workers)
    started = time.perf_counter()
    collector = detect_all(model, loader, progress=progress)
    return judge(model, table, collector, seconds=time.perf_counter() - started, max_dets=max_dets)


def score_tiled(
    model: Detector,
    table: Table,
    tiling: Tiling,
    *,
    batch_size: int = 8,
    num_workers: int = 0,
    max_dets: tuple[int, ...] = (1, 10, 100),
    progress: bool = True,
) -> Scored:
    """As `score`, looking at every picture tile by tile; a model's proposer works on each tile anew.

    Args:
        tiling: how pictures are cut.
        batch_size: tiles at a time.

    Raises:
        ValueError: the model answers for whole pictures.
        DataError: the data set has a category that the model does not know, or a picture cannot be read or is
            not of the size annotated.
    """
    data_labels(model.categories, table.categories)  # raises before the work, not after it
    started = time.perf_counter()
    pictures = DataLoader(_Pictures(table), batch_size=None, num_workers=num_workers, worker_init_fn=start_worker)
    collector = detect_tiled(model, pictures, tiling, batch_size=batch_size, progress=progress)
    return judge(model, table, collector, seconds=time.perf_counter() - started, max_dets=max_dets)


class _Pictures(Dataset):
    """A table's pictures as (image id, (3, H, W) uint8)."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return int(self.table.image_ids[index]), annotated_picture(self.table, index)


def judge(
    model: Detector,
    table: Table,
    collector: DetectionCollector,
    *,
    seconds: float,
    max_dets: tuple[int, ...] = (1, 10, 100),
) -> Scored:
    """Scores what a model found in a table's pictures; arguments as for `score`, in the original pictures' pixels."""
    to_data = data_labels(model.categories, table.categories)
    truth = truth_of(model.task, table)
    found = collector.detections(truth)
    labels = to_data[found.labels]
    found = replace(found, labels=labels).select(labels >= 0)
    result = evaluate(model.task, truth, found, table.categories, max_dets=max_dets)
    return Scored(truth, found, result, seconds)


def detect_all(model: Detector, loader: Loader, *, progress: bool = True) -> DetectionCollector:
    """A detector's findings in all pictures of a loader, in the original pictures' pixels."""
    device = next(model.parameters()).device
    collector = DetectionCollector()
    for batch in tqdm(loader, desc="detect", unit="batch", disable=None if progress else True, leave=False):
        batch = batch.to(device)
        with answering(model):
            found = model.detect(*batch.inputs)
        ids, sizes = [info.id for info in batch.infos], [info.size for info in batch.infos]
        collector.update(found.to_original(batch.infos), ids, sizes)
    return collector


def detect_tiled(
    model: Detector, pictures: DataLoader, tiling: Tiling, *, batch_size: int = 8, progress: bool = True
) -> DetectionCollector:
    """A detector's findings in all of (image id, (3, H, W) uint8), each looked at in tiles, in the pictures' pixels."""
    collector, options = DetectionCollector(), asdict(tiling) | {"batch_size": batch_size}
    bar = tqdm(with_plain_errors(pictures), "detect", len(pictures), unit="picture", disable=None if progress else True)
    for image_id, image in bar:
        collector.update([find_tiled(model, image, score=0.0, **options)], [image_id], [tuple(image.shape[1:])])
    return collector


def data_labels(known: list[str], wanted: list[str]) -> np.ndarray:
    """The data set's label of each of the model's categories, by name; -1 for those it does not have.

    Raises:
        DataError: the data set has a category that the model does not know.
    """
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise DataError(
            f"the model knows {len(known)} categories ({_some(known)}), the data set has {len(wanted)}, of which the model "
            f"does not know {_some(unknown)}; evaluate on data with the model's categories, or train on these data"
        )
    return np.array([wanted.index(name) if name in wanted else -1 for name in known], np.int64)


def _some(names: list[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (f", … ({len(names)} in all)" if len(names) > limit else "")
