"""How long training took, without validation, and what of it was waiting for pictures: three columns of metrics.csv."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from ..datasets.detection import Loader
from ..datasets.structures import Batch


class TrainingClock(Callback):
    """Logs the seconds of training at each validation, and for each epoch how fast its pictures came.

    - `train_seconds`: of training up to then, steps and their loading, of resumed runs too. Scores over these seconds tell
      which of several models learns faster on one machine (`benchmarks/ap_over_time.py`).
    - `train/waiting`: the share of the epoch's seconds, 0 to 1, between asking for a batch and having it in the host's
      memory, mean over processes. Without worker processes that is all of loading; in the first epoch it has the start of
      the workers in it. A GPU may still be busy with earlier steps meanwhile, so it idles for data at most that share.
    - `train/pictures_per_second`: of all processes together.

    The last two only where batches come from a `Loader`, as those of our data modules do. A GPU is waited for at
    validations and epochs' ends, never at a step.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None
        self._before = self._waited = 0.0  # seconds of training before this epoch; of waiting in it
        self._pictures = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()  # a run resumed in the middle of an epoch does not start that one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module.device)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("train_seconds", self.seconds, rank_zero_only=True)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        loader, asked = trainer.train_dataloader, time.perf_counter()
        if isinstance(loader, Loader):
            asked, had = loader.wait
            self._waited += had - asked
            self._pictures += len(batch)
        if self._started is None:  # after a validation, and what was saved then, in the middle of an epoch
            self._started = asked

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module.device)
        spent = self.seconds - self._before
        if self._pictures and spent > 0:
            speed = self._pictures * trainer.world_size / spent
            numbers = {"train/waiting": self._waited / spent, "train/pictures_per_second": speed}
            pl_module.log_dict(numbers, sync_dist=True)

    def _begin(self) -> None:
        self._started = time.perf_counter()
        self._before, self._waited, self._pictures = self.seconds, 0.0, 0

    def _stop(self, device: torch.device) -> None:
        if self._started is None:
            return
        if device.type == "cuda":  # what the GPU was told and has not done yet is training too
            torch.cuda.synchronize(device)
        self.seconds, self._started = self._now(), None

    def _now(self) -> float:
        return self.seconds + (0.0 if self._started is None else time.perf_counter() - self._started)

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self._now()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds = state["seconds"]
