"""What happens beside the steps of a run: stopping on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info


class SaveOnInterrupt(Callback):
    """Ctrl-C ends the run after the step it is in, saved so that resuming repeats an uninterrupted run exactly; after an
    epoch's last step, once that has been validated and one more step taken.

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
        # After an epoch's last step its validation still takes place: a run resumed from here would leave it out.
        if self._asked and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path, weights_only=False)
            rank_zero_info(f"saved {self.path}")
            raise KeyboardInterrupt

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
            self._before = None
