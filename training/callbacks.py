"""What happens beside the steps of a run: stopping on Ctrl-C, and thawing a pretrained backbone stage by stage."""

from __future__ import annotations

import signal
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from ..backbone import freeze_stages


class SaveOnInterrupt(Callback):
    """Ctrl-C ends the run after the step it is in, saved so that resuming repeats an uninterrupted run exactly.

    A second Ctrl-C ends it at once, unsaved. With several processes, whose steps cannot be held at one place by a signal,
    Lightning's own handling stays, and a run resumes from its last epoch.

    Args:
        path: the checkpoint to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = False
        self._before: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size == 1 and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        if self._asked:
            raise KeyboardInterrupt
        self._asked = True
        print(
            "\nCtrl-C: stopping after this step, or this validation; once more stops at once, without saving",
            flush=True,
        )

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if self._asked:
            trainer.save_checkpoint(self.path, weights_only=False)
            rank_zero_info(f"saved {self.path}")
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None


class StagedUnfreezing(Callback):
    """Trains the new layers first, then thaws the backbone from its last stage downwards.

    Args:
        epochs: ascending; at the i-th of them, i stages of the backbone train (none before the first).
    """

    def __init__(self, epochs: Sequence[int]) -> None:
        if list(epochs) != sorted(epochs) or any(epoch < 0 for epoch in epochs):
            raise ValueError(f"the epochs of unfreezing must be ascending and not negative, got {list(epochs)}")
        self.epochs = list(epochs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        count = len(pl_module.detector.backbone.stage_prefixes)
        if len(self.epochs) > count:
            raise ValueError(f"{len(self.epochs)} epochs of unfreezing for a backbone of {count} stages")
        finds_unused = getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters", False)
        if trainer.world_size > 1 and not finds_unused:
            raise ValueError(
                "staged unfreezing on several devices needs --trainer.strategy ddp_find_unused_parameters_true"
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stages = sum(trainer.current_epoch >= epoch for epoch in self.epochs)
        freeze_stages(pl_module.detector.backbone, stages)
