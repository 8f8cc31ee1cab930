"""The first check of any training: can the model learn one batch by heart? If not, more data will not help it.

Pictures of that batch are drawn at random but fixed, unchanged by augmentation, and the loss must fall to a tenth.
"""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer

from ..datasets.table import Table

STEPS = 200
GOAL = 0.1  # share of the first loss that counts as learnt
RECENT = 5  # losses averaged, as some models draw what they look at anew in every step

# What Lightning's trainer is given: training steps and nothing beside them.
STEPS_ALONE: dict[str, Any] = {
    "max_epochs": -1,
    "limit_val_batches": 0,
    "logger": False,
    "enable_checkpointing": False,
    "enable_model_summary": False,
}


@dataclass(frozen=True)
class Verdict:
    """What came of learning one batch.

    Attributes:
        losses: of each step.
        steps: how many were allowed.
    """

    losses: list[float]
    steps: int

    @property
    def learnt(self) -> bool:
        """Whether the mean of the latest losses is within the goal."""
        return bool(self.losses[0] > 0 and self.last <= GOAL * self.losses[0])

    @property
    def last(self) -> float:
        """The mean of the latest losses."""
        return float(np.mean(self.losses[-RECENT:]))

    def __str__(self) -> str:
        fall = f"one batch, {len(self.losses)} steps: loss from {self.losses[0]:.4g} to {self.last:.4g}"
        if self.learnt:
            return f"{fall}: the model can learn this batch"
        return (
            f"{fall}, which is not within {GOAL:.0%} of the first: the model cannot learn this batch. {self._advice()}"
        )

    def _advice(self) -> str:
        if self.losses[0] == 0:
            return "The first loss is 0: these pictures have nothing to learn in them (sightline check)"
        before = float(np.mean(self.losses[-4 * RECENT : -2 * RECENT] or self.losses[:1]))
        if self.last > 0.9 * self.losses[0]:
            return (
                "The loss hardly fell: look at the rate (--run.find_rate true finds one), at whether anything is trained "
                "(trainable_stages), and at what labels belong to the pictures (sightline check)"
            )
        if self.last < 0.95 * before:
            return f"It was still falling: allow more steps (--trainer.max_steps {5 * self.steps}) or a larger rate"
        return (
            "It stands still: look at the rate (--run.find_rate true finds one), at weight decay, dropout and frozen "
            "stages, which all hold a model back, and for contradicting labels (sightline check)"
        )

    def write(self, path: Path) -> None:
        """A CSV of step and loss."""
        with path.open("w", newline="") as file:
            csv.writer(file).writerows([("step", "loss"), *enumerate(self.losses)])


class OverfitOneBatch(Callback):
    """Watches the loss of a trainer with `overfit_batches=1`, and ends it as soon as the batch is learnt.

    Args:
        steps: that the trainer takes at most.
    """

    def __init__(self, steps: int) -> None:
        self.verdict = Verdict([], steps)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.verdict.losses.append(float(outputs["judged"]))  # a stall on a GPU, in a run of a few steps
        if len(self.verdict.losses) >= RECENT:
            trainer.should_stop = self.verdict.learnt


def mixed(table: Table, seed: int) -> Table:
    """The pictures with objects in random order (all, where none has any): one batch of class folders may be of one class."""
    labelled = np.unique(table.image[~table.crowd])
    rows = labelled if len(labelled) else np.arange(len(table))
    return table.select(np.random.default_rng(seed).permutation(rows))
