"""Training and validation of any detector: the losses of its three verbs, and COCO's scores, from one backbone pass."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ..datasets.structures import Batch
from ..datasets.table import Table
from ..detectors.model import Detector
from ..evaluation import DetectionCollector, Detections, Truth
from .module import Training, learn
from .schedules import Schedule
from .tasks import MONITORS, Result, evaluate, truth_of


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


class DetectionTraining(Training):
    """One Lightning module for every detector.

    Logs the scores of the model's task ("AP", "AP50", …) after each validation, beside the losses.

    Attributes:
        result: the last validation's scores; None before the first.
        truth, detections: what they were computed from, in the original pictures' pixels.
    """

    def __init__(
        self,
        detector: Detector,
        optimizer: OptimizerCallable = _sgd,
        schedule: Schedule | None = None,
        *,
        backbone_rate: float = 1.0,
        norm_decay: bool = True,
        max_dets: tuple[int, ...] = (1, 10, 100),
        compile: bool = False,
    ) -> None:
        """
        Args:
            detector: the network.
            optimizer: e.g. torch.optim.SGD or AdamW with its numbers.
            schedule: how the rate changes; by default two drops by ten, after a warm-up of 100 steps.
            backbone_rate: the backbone's learning rate as a share of the others'.
            norm_decay: let weight decay shrink biases and norms' weights too; modern recipes do not.
            max_dets: COCO's limits on detections an image; the largest is used for AP.
            compile: compile the network and its losses with torch.compile.
        """
        super().__init__(optimizer, schedule, backbone_rate, norm_decay)
        self.detector, self.max_dets = detector, tuple(max_dets)
        self.result: Result | None = None
        self.truth: Truth | None = None
        self.detections: Detections | None = None
        self._known_truth: tuple[Table, Truth] | None = None
        self._learn = torch.compile(learn) if compile else learn

    @property
    def network(self) -> Detector:
        return self.detector

    def setup(self, stage: str) -> None:
        """The data decide the names of the categories and the size of pictures; both travel with the checkpoint."""
        super().setup(stage)
        if self.trainer.datamodule is not None:
            self.detector.categories = list(self.trainer.datamodule.categories)

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # a run resumed in the middle of an epoch does not start that one

    def on_train_epoch_start(self) -> None:
        data = self.trainer.datamodule
        self.detector.refining = data is not None and data.plain(self.current_epoch)

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Any]:
        return self._learn(self.detector, batch.inputs, batch.targets)

    def on_validation_epoch_start(self) -> None:
        self._collector = DetectionCollector()

    def validation_step(self, batch: Batch, index: int) -> None:
        found = self.detector.decode(self.validated(batch), batch.sizes)
        ids, sizes = [info.id for info in batch.infos], [info.size for info in batch.infos]
        self._collector.update(found.to_original(batch.infos), ids, sizes)

    def on_validation_epoch_end(self) -> None:
        collector, data = self._collector.gather(), self.trainer.datamodule
        task, categories = self.detector.task, self.detector.categories
        # With `--trainer.limit_val_batches` only part of the split was seen.
        self.truth = self._truth_of(data.tables["val"]).only(collector.image_ids)
        self.detections = collector.detections(self.truth)
        if task != "reconstruction":
            self.result = evaluate(task, self.truth, self.detections, categories, max_dets=self.max_dets)
        scores = self.result.summary() if self.result else {}
        self.log_validation(self.validation_losses() | scores, MONITORS[task].name)

    def _truth_of(self, table: Table) -> Truth:
        """A table's truth, made once: to draw masks takes long."""
        if self._known_truth is None or self._known_truth[0] is not table:
            self._known_truth = table, truth_of(self.detector.task, table)
        return self._known_truth[1]
