"""How long training took, without validation: the column "train_seconds" of metrics.csv."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class TrainingClock(Callback):
    """Logs at each validation the seconds of training up to then: steps and their loading, of resumed runs too.

    Scores over these seconds tell which of several models learns faster on one machine (`benchmarks/ap_over_time.py`).
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._started: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()  # a run resumed in the middle of an epoch does not start that one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module.device)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("train_seconds", self.seconds, rank_zero_only=True)

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if self._started is None:  # after a validation, and what was saved then, in the middle of an epoch
            self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop(pl_module.device)

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
