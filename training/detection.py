"""Training and validation of any detector: the losses of its three verbs, and COCO's scores, from one backbone pass."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ..datasets.structures import Batch
from ..detectors.model import Detector
from ..evaluation import CocoResult, DetectionCollector, Detections, Truth, evaluate_coco
from .optimizer import configure
from .schedules import Schedule, StepDecay


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


class TrainingError(ValueError):
    """A run that cannot go on: the message says where it failed, and what to try."""


class DetectionTraining(LightningModule):
    """One Lightning module for every detector.

    Logs each loss by name for training and validation ("train/loss_box", "val/loss_box", …), and COCO's numbers ("AP",
    "AP50", …) after each validation.

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
        max_dets: tuple[int, ...] = (1, 10, 100),
        compile: bool = False,
    ) -> None:
        """
        Args:
            detector: the network.
            optimizer: e.g. torch.optim.SGD or AdamW with its numbers.
            schedule: how the rate changes; by default two drops by ten, after a warm-up of 100 steps.
            backbone_rate: the backbone's learning rate as a share of the others'.
            max_dets: COCO's limits on detections an image; the largest is used for AP.
            compile: compile the network with torch.compile.
        """
        super().__init__()
        self.detector, self.optimizer = detector, optimizer
        self.schedule = schedule or StepDecay(warmup_steps=100)
        self.backbone_rate, self.max_dets = backbone_rate, tuple(max_dets)
        self.result: CocoResult | None = None
        self.truth: Truth | None = None
        self.detections: Detections | None = None
        self._seed = 0
        self._recent: list[tuple[Tensor, list[str]]] = []
        # Kept out of the module's children, or every weight would be saved twice.
        self._forward = (torch.compile(detector) if compile else detector,)

    def setup(self, stage: str) -> None:
        """The data decide the names of the categories and the size of pictures; both travel with the checkpoint."""
        data = self.trainer.datamodule
        if data is not None:
            self.detector.categories, self.detector.resize = list(data.categories), tuple(data.resize)
            self._seed = data.seed

    def forward(self, images: Tensor, sizes: Tensor) -> Any:
        return self._forward[0](images, sizes)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        # Each step's randomness follows from its number alone, so that a resumed run repeats an uninterrupted one.
        torch.manual_seed(self._seed * 1_000_003 + self.trainer.fit_loop.epoch_loop.total_batch_idx)
        losses = self.detector.losses(self(batch.images, batch.sizes), batch.targets)
        loss = self._log_losses("train", losses, len(batch))
        self._watch(loss.detach(), batch)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._collector = DetectionCollector()

    def validation_step(self, batch: Batch, index: int) -> None:
        torch.manual_seed(index)
        outputs = self(batch.images, batch.sizes)
        self._log_losses("val", self.detector.losses(outputs, batch.targets), len(batch))
        found = self.detector.decode(outputs, batch.sizes)
        self._collector.update(found.to_original(batch.infos), [info.id for info in batch.infos])

    def on_validation_epoch_end(self) -> None:
        collector, data = self._collector.gather(), self.trainer.datamodule
        # With `--trainer.limit_val_batches` only part of the split was seen.
        self.truth = Truth.from_table(data.tables["val"]).only(collector.image_ids)
        self.detections = collector.detections(self.truth)
        self.result = evaluate_coco(self.truth, self.detections, self.detector.categories, max_dets=self.max_dets)
        # Every process computes the same numbers from the gathered detections; there is nothing to reduce.
        summary = self.result.summary()
        self.log("AP", summary.pop("AP"), prog_bar=True)
        self.log_dict(summary)

    def configure_optimizers(self) -> dict[str, Any]:
        total = int(self.trainer.estimated_stepping_batches)
        return configure(self.detector, self.optimizer, self.schedule, total, self.backbone_rate)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """What `sightline.detectors.load` needs besides the weights."""
        checkpoint["sightline"] = self.detector.description()

    def _watch(self, loss: Tensor, batch: Batch) -> None:
        """Stops a run whose loss is no longer a number. On a GPU losses are looked at a few at a time: each look is a stall."""
        self._recent.append((loss, [info.path for info in batch.infos]))
        if len(self._recent) < (1 if loss.device.type == "cpu" else self.trainer.log_every_n_steps):
            return
        losses, recent = torch.stack([value for value, _ in self._recent]).tolist(), self._recent
        self._recent = []
        for value, (_, paths) in zip(losses, recent, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} near step {self.global_step}, in the batch of: {', '.join(paths)}. Look at these "
                    "pictures' boxes (sightline check), lower the learning rate, lengthen the warm-up or clip gradients "
                    "(--trainer.gradient_clip_val 10)"
                )

    def _log_losses(self, stage: str, losses: dict[str, Tensor], batch_size: int) -> Tensor:
        total = torch.stack(list(losses.values())).sum()
        named = {f"{stage}/{name}": loss.detach() for name, loss in losses.items()}
        self.log_dict(named, batch_size=batch_size, sync_dist=stage == "val", add_dataloader_idx=False)
        self.log(f"{stage}/loss", total.detach(), prog_bar=True, batch_size=batch_size, sync_dist=stage == "val")
        return total
