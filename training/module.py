"""What training any model is: the sum of its losses, an optimiser with a schedule, and a watch for losses that are no numbers."""

from __future__ import annotations

import math
import zlib
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor

from ..backbone.model import Model
from ..datasets.structures import Batch
from .optimizer import configure
from .schedules import Schedule, StepDecay


class TrainingError(ValueError):
    """A run that cannot go on: the message says where it failed, and what to try."""


class Training(LightningModule):
    """The base of all Lightning modules here. A subclass holds the network under its own name, validates it, and says:

    - `network`: the model; its name in the module is the prefix of its weights in a checkpoint;
    - `losses_of(batch)`: its losses on a batch, and the outputs that they follow from.

    Logs each loss by name for training and validation ("train/loss_box", "val/loss_box", …).

    Args:
        optimizer: e.g. torch.optim.SGD or AdamW with its numbers.
        schedule: how the rate changes; by default two drops by ten, after a warm-up of 100 steps.
        backbone_rate: the backbone's learning rate as a share of the others'.
        norm_decay: let weight decay shrink biases and norms' weights too; modern recipes do not.
    """

    def __init__(
        self, optimizer: OptimizerCallable, schedule: Schedule | None, backbone_rate: float, norm_decay: bool
    ) -> None:
        super().__init__()
        self.optimizer, self.schedule = optimizer, schedule or StepDecay(warmup_steps=100)
        self.backbone_rate, self.norm_decay = backbone_rate, norm_decay
        self._seed = 0
        self._recent: list[tuple[Tensor, list[str]]] = []
        self._val_losses: list[tuple[int, dict[str, Tensor]]] = []

    @property
    def network(self) -> Model:
        """The model that is trained."""
        raise NotImplementedError

    def losses_of(self, batch: Batch) -> tuple[dict[str, Tensor], Any]:
        """The losses on a batch, to be summed, and the network's outputs."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """The data decide the size of pictures, which travels with the checkpoint."""
        data = self.trainer.datamodule
        if data is not None:
            self.network.resize, self._seed = tuple(data.resize), data.seed

    def judged(self, losses: dict[str, Tensor]) -> Tensor:
        """By which number it is seen whether a model learns at all: the sum, where no part of it means something else."""
        return torch.stack(list(losses.values())).sum()

    def training_step(self, batch: Batch, index: int) -> dict[str, Tensor]:
        # A step's randomness follows from the epoch and its pictures alone, so a resumed run repeats an uninterrupted one.
        torch.manual_seed(zlib.crc32(repr((self._seed, self.current_epoch, batch.infos[0].id)).encode()))
        losses, _ = self.losses_of(batch)
        loss = torch.stack(list(losses.values())).sum()
        # Means over the epoch go to the loggers, as the validation's do; the bar shows the loss as it is.
        named = {f"train/{name}": value.detach() for name, value in losses.items()} | {"train/loss": loss.detach()}
        self.log_dict(named, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
        self.log("loss", loss.detach(), prog_bar=True, logger=False, batch_size=len(batch))
        self._watch(loss.detach(), batch)
        return {"loss": loss, "judged": self.judged(losses).detach()}

    def validated(self, batch: Batch) -> Any:
        """Notes the losses on a batch of validation; returns the network's outputs."""
        torch.manual_seed(batch.infos[0].id)
        losses, outputs = self.losses_of(batch)
        self._val_losses.append((len(batch), losses))
        return outputs

    def validation_losses(self) -> dict[str, float]:
        """The means of the losses noted, over all processes, as "val/…", and their sum "val/loss"; then none are noted."""
        losses = {f"val/{name}": value for name, value in _mean_over_processes(self._val_losses).items()}
        self._val_losses = []
        return losses | {"val/loss": sum(losses.values())}

    def log_validation(self, numbers: dict[str, float], shown: str) -> None:
        """Logs losses and scores; the loss and the score `shown` stand beside the progress bar too."""
        bar = {"val/loss", shown}
        # Every process computes the same numbers from what was gathered; Lightning has nothing to reduce.
        self.log_dict({name: value for name, value in numbers.items() if name in bar}, prog_bar=True)
        self.log_dict({name: value for name, value in numbers.items() if name not in bar})

    def configure_optimizers(self) -> dict[str, Any]:
        steps = self._total_steps()
        return configure(
            self.network, self.optimizer, self.schedule, steps, self.backbone_rate, norm_decay=self.norm_decay
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
        """What `load` needs besides the weights."""
        checkpoint["sightline"] = self.network.description()

    def _watch(self, loss: Tensor, batch: Batch) -> None:
        """Stops a run whose loss is no longer a number. On a GPU losses are looked at a few at a time: each look is a stall."""
        self._recent.append((loss, [info.path for info in batch.infos]))
        if len(self._recent) >= (1 if loss.device.type == "cpu" else self.trainer.log_every_n_steps):
            self._look_at_recent()

    def on_train_epoch_end(self) -> None:
        self._look_at_recent()  # the last few of a run would never be looked at

    def _look_at_recent(self) -> None:
        recent, self._recent = self._recent, []
        losses = torch.stack([loss for loss, _ in recent]).tolist() if recent else []
        for value, (_, paths) in zip(losses, recent, strict=True):
            if not math.isfinite(value):
                raise TrainingError(
                    f"the loss became {value} near step {self.global_step}, in the batch of: {', '.join(paths)}. Look at these "
                    "pictures' annotations (sightline check), lower the learning rate, lengthen the warm-up or clip gradients "
                    "(--trainer.gradient_clip_val 10)"
                )


def learn(model: Model, inputs: tuple, targets: Any) -> tuple[dict[str, Tensor], Any]:
    """The losses on a batch and the outputs that they follow from: a function, so that both are compiled as one."""
    outputs = model(*inputs)
    return model.losses(outputs, targets), outputs


def _mean_over_processes(batches: list[tuple[int, dict[str, Tensor]]]) -> dict[str, float]:
    """The mean of each loss over all pictures of all processes, from each batch's number of pictures and mean losses."""
    rows = [(count, {name: value.item() for name, value in losses.items()}) for count, losses in batches]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        parts: list = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, rows)
        rows = [row for part in parts for row in part]
    total = sum(count for count, _ in rows)
    return {name: sum(count * losses[name] for count, losses in rows) / total for name in rows[0][1]}
