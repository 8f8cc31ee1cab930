"""How models of each task are scored, and which number tells the best checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..datasets.table import DataError, Table
from ..evaluation import Detections, Truth, evaluate_coco, evaluate_instances, evaluate_localization


class Result(Protocol):
    """What every scorer returns."""

    categories: list[str]

    def summary(self) -> dict[str, float]: ...

    def per_class(self) -> list[dict[str, str | float | int]]: ...

    def table(self) -> str: ...


class Monitor(NamedTuple):
    """The number by which the best checkpoint is kept: its name in metrics.csv, and whether "max" or "min" is best."""

    name: str
    mode: str


MONITORS = {
    "detection": Monitor("AP", "max"),
    "instance_segmentation": Monitor("mask_AP", "max"),
    "classification": Monitor("top1_error", "min"),
    "localization": Monitor("localization_error", "min"),
    "reconstruction": Monitor("val/loss", "min"),
    "captioning": Monitor("CIDEr-D", "max"),
    "segmentation": Monitor("mean_IoU", "max"),
}


def truth_of(task: str, table: Table) -> Truth:
    """What a data set's pictures hold, with all that models of a task are scored by.

    Raises:
        DataError: the task asks for masks, and the data have none.
    """
    return Truth.from_table(table, masks=task == "instance_segmentation")


def evaluate(
    task: str, truth: Truth, detections: Detections, categories: Sequence[str], *, max_dets: Sequence[int]
) -> Result:
    """Scores detections in the way of a model's task (`Detector.task`).

    Raises:
        DataError: the task has no scores but its loss.
    """
    if task == "reconstruction":
        raise DataError("an autoencoder finds nothing that could be scored; its measure is val/loss in metrics.csv")
    if task == "detection":
        return evaluate_coco(truth, detections, categories, max_dets=max_dets)
    if task == "instance_segmentation":
        return evaluate_instances(truth, detections, categories, max_dets=max_dets)
    return evaluate_localization(truth, detections, categories, places=task == "localization")
