"""A moving average of the weights, which is what is validated and saved (Polyak and Juditsky 1992)."""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn


class MovingAverage(WeightAveraging):
    """An exponential moving average that forgets the random start: it begins as a mean of few steps and grows long.

    After n steps the decay is (1 + n) / (10 + n), up to `decay`: about the last tenth of the run so far counts, however
    short the run. (YOLOX ramps its decay in another way to the same end, https://arxiv.org/abs/2107.08430.) Batch norms'
    statistics are averaged like weights.

    Args:
        decay: the most of the old average that a step keeps, in [0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average must be in [0, 1), got {decay}")
        super().__init__(multi_avg_fn=self._average)
        self.decay, self._step = decay, 0

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """Lets the average have what no checkpoint holds, such as the categories' weights in a loss.

        The module gets that from the data only after Lightning has copied it, and a resumed run would average it with what
        was there before.
        """
        saved, average = module.state_dict().keys(), dict(self._average_model.module.named_buffers())
        for name, value in module.named_buffers():
            if name not in saved:
                average[name].copy_(value)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        """After every step of the optimiser."""
        if step_idx is None:
            return False
        self._step = step_idx  # from the trainer, so that a resumed run goes on where it was
        return True

    @property
    def current(self) -> float:
        """The decay at this step."""
        return min(self.decay, (1 + self._step) / (10 + self._step))

    @torch.no_grad()
    def _average(self, averaged: list[Tensor], now: list[Tensor], _: Tensor) -> None:
        get_ema_multi_avg_fn(self.current)(averaged, now, _)
