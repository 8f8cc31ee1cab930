"""Training and validation of networks that name every pixel: their losses, and the scores of their label maps."""

from __future__ import annotations

from typing import Any, Literal

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ..datasets.structures import Batch
from ..evaluation import SegmentationCollector, SegmentationResult
from ..segmentation.losses import median_frequency
from ..segmentation.model import Outputs, Segmenter
from .module import Training, learn
from .schedules import Schedule
from .tasks import MONITORS


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


class SegmentationTraining(Training):
    """One Lightning module for every `Segmenter`.

    Logs mean IoU, pixel accuracy and their kin after each validation, beside the losses; they are of the pictures as they
    reach the network, void left out.

    Attributes:
        result: the last validation's scores; None before the first.
    """

    def __init__(
        self,
        segmenter: Segmenter,
        optimizer: OptimizerCallable = _sgd,
        schedule: Schedule | None = None,
        *,
        backbone_rate: float = 1.0,
        norm_decay: bool = True,
        class_weights: Literal["median_frequency"] | None = None,
        compile: bool = False,
    ) -> None:
        """
        Args:
            segmenter: the network.
            optimizer: e.g. torch.optim.SGD or AdamW with its numbers.
            schedule: how the rate changes; by default two drops by ten, after a warm-up of 100 steps.
            backbone_rate: the backbone's learning rate as a share of the others'.
            norm_decay: let weight decay shrink biases and norms' weights too; modern recipes do not.
            class_weights: how much categories weigh in the loss: alike (null), or the rarer the more ("median_frequency").
            compile: compile the network and its losses with torch.compile.
        """
        super().__init__(optimizer, schedule, backbone_rate, norm_decay)
        self.segmenter, self.class_weights = segmenter, class_weights
        self.result: SegmentationResult | None = None
        self._learn = torch.compile(learn) if compile else learn

    @property
    def network(self) -> Segmenter:
        return self.segmenter

    def setup(self, stage: str) -> None:
        """The data decide the categories' names, colours and weights, and the size of pictures; all but the weights, which are
        computed anew, travel with the checkpoint.

        Raises:
            ValueError: the segmenter was built for another number of categories.
        """
        super().setup(stage)
        data = self.trainer.datamodule
        if data is None:
            return
        if len(data.categories) != len(self.segmenter.categories):
            raise ValueError(
                f"the data have {len(data.categories)} categories, and the segmenter was built for "
                f"{len(self.segmenter.categories)}: build it with num_classes={len(data.categories)}"
            )
        self.segmenter.categories, self.segmenter.colours = list(data.categories), list(data.colours or ())
        if self.class_weights is not None:
            counts, present = map(torch.from_numpy, data.pixel_counts())
            self.segmenter.loss.weights.copy_(median_frequency(counts, present))

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Outputs]:
        return self._learn(self.segmenter, (batch.images, batch.sizes), batch.label_maps)

    def on_validation_epoch_start(self) -> None:
        self._collector = SegmentationCollector(len(self.segmenter.categories))

    def validation_step(self, batch: Batch, index: int) -> None:
        found = self.segmenter.decode(self.validated(batch), batch.sizes)
        self._collector.update(found, batch.label_maps, [info.id for info in batch.infos])

    def on_validation_epoch_end(self) -> None:
        self.result = self._collector.gather().result(self.segmenter.categories)
        numbers = self.validation_losses() | self.result.summary()
        self.log_validation(numbers, MONITORS[self.segmenter.task].name)
