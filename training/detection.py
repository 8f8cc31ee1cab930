"""Training and validation of any detector: the losses of its three verbs, and COCO's scores, from one backbone pass."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ..datasets.structures import Batch
from ..detectors.model import Detector
from ..evaluation import DetectionCollector, Detections, Truth
from .optimizer import configure
from .schedules import Schedule, StepDecay
from .tasks import MONITORS, Result, evaluate


def _sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, lr=0.01, momentum=0.9, weight_decay=1e-4)


class TrainingError(ValueError):
    """A run that cannot go on: the message says where it failed, and what to try."""


class DetectionTraining(LightningModule):
    """One Lightning module for every detector.

    Logs each loss by name for training and validation ("train/loss_box", "val/loss_box", …), and the scores of the
    model's task ("AP", "AP50", …) after each validation.

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
            compile: compile the network with torch.compile.
        """
        super().__init__()
        self.detector, self.optimizer = detector, optimizer
        self.schedule = schedule or StepDecay(warmup_steps=100)
        self.backbone_rate, self.norm_decay, self.max_dets = backbone_rate, norm_decay, tuple(max_dets)
        self.result: Result | None = None
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

    def on_train_start(self) -> None:
        self.on_train_epoch_start()  # a run resumed in the middle of an epoch does not start that one

    def on_train_epoch_start(self) -> None:
        data = self.trainer.datamodule
        self.detector.refining = data is not None and data.plain(self.current_epoch)

    def forward(self, batch: Batch) -> Any:
        return self._forward[0](*batch.inputs)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        # A step's randomness follows from the epoch and its pictures alone, so a resumed run repeats an uninterrupted one.
        torch.manual_seed(zlib.crc32(repr((self._seed, self.current_epoch, batch.infos[0].id)).encode()))
        losses = self.detector.losses(self(batch), batch.targets)
        loss = torch.stack(list(losses.values())).sum()
        # Means over the epoch go to the loggers, as the validation's do; the bar shows the loss as it is.
        named = {f"train/{name}": value.detach() for name, value in losses.items()} | {"train/loss": loss.detach()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=len(batch))
        self._watch(loss.detach(), batch)
        return loss

    def on_validation_epoch_start(self) -> None:
        self._collector, self._val_losses = DetectionCollector(), []

    def validation_step(self, batch: Batch, index: int) -> None:
        torch.manual_seed(batch.infos[0].id)
        outputs = self(batch)
        losses = self.detector.losses(outputs, batch.targets)
        self._val_losses.append((len(batch), losses))
        found = self.detector.decode(outputs, batch.sizes)
        self._collector.update(found.to_original(batch.infos), [info.id for info in batch.infos])

    def on_validation_epoch_end(self) -> None:
        collector, data = self._collector.gather(), self.trainer.datamodule
        # With `--trainer.limit_val_batches` only part of the split was seen.
        self.truth = Truth.from_table(data.tables["val"]).only(collector.image_ids)
        self.detections = collector.detections(self.truth)
        # Every process computes the same numbers from what was gathered; Lightning has nothing to reduce.
        losses = {f"val/{name}": value for name, value in _mean_over_processes(self._val_losses).items()}
        losses["val/loss"] = sum(losses.values())
        task, categories = self.detector.task, self.detector.categories
        if task != "reconstruction":
            self.result = evaluate(task, self.truth, self.detections, categories, max_dets=self.max_dets)
        scores = losses | (self.result.summary() if self.result else {})
        shown = {"val/loss", MONITORS[task].name}
        self.log_dict({name: value for name, value in scores.items() if name in shown}, prog_bar=True)
        self.log_dict({name: value for name, value in scores.items() if name not in shown})

    def configure_optimizers(self) -> dict[str, Any]:
        return configure(
            self.detector,
            self.optimizer,
            self.schedule,
            self._total_steps(),
            self.backbone_rate,
            norm_decay=self.norm_decay,
        )

    def _total_steps(self) -> int:
        """Optimiser steps of the run.

        Not the trainer's own estimate: that sets up the training loader before a checkpoint is restored, and the loader
        then begins the epoch anew.
        """
        trainer = self.trainer
        if trainer.max_epochs == -1 and trainer.max_steps == -1:
            raise ValueError("a run needs an end, or the learning rate cannot be scheduled: set --trainer.max_epochs")
        batches, limit = len(trainer.datamodule.train_dataloader()), trainer.limit_train_batches
        batches = int(batches * limit) if isinstance(limit, float) else min(batches, limit)
        steps = math.ceil(batches / trainer.accumulate_grad_batches) * trainer.max_epochs
        return steps if trainer.max_steps == -1 else trainer.max_steps if steps < 0 else min(steps, trainer.max_steps)

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


def _mean_over_processes(batches: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
    """The mean of each loss over all pictures of all processes, from each batch's number of pictures and mean losses."""
    rows = [(count, {name: value.item() for name, value in losses.items()}) for count, losses in batches]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    total = sum(count for count, _ in rows)
    return {name: sum(count * losses[name] for count, losses in rows) / total for name in rows[0][1]}
