"""What happens beside the steps of a run: stopping on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class SaveOnInterrupt(Callback):
    """Ctrl-C ends the run after the step it is in, saved so that resuming repeats an uninterrupted run exactly; in an
    epoch's last step, once the epoch has been validated.

    A second Ctrl-C ends it at once, unsaved. With several processes, whose steps cannot be held at one place by a signal,
    Lightning's own handling stays, and a run resumes from its last epoch.

    It belongs behind all other callbacks: what these make of a step (a moving average, say) is to be in what is saved.

    Args:
        path: the checkpoint to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._asked = False
        self._before: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not on_fit_start: between the two Lightning notes the handlers that it puts back after a run that fails.
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
        if not trainer.is_last_batch:  # resumed from there, a run would leave out the epoch's validation
            self._stop_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_if_asked(trainer)

    def _stop_if_asked(self, trainer: Trainer) -> None:
        if self._asked:
            trainer.save_checkpoint(self.path, weights_only=False)
            rank_zero_info(f"saved {self.path}")
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
