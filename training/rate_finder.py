"""The learning rate range test (Smith 2017, https://arxiv.org/abs/1506.01186, section 3.3).

The rate rises exponentially from step to step until the loss diverges. Where the loss is least, the rate is already at
the limit of what the model bears: a third of it is a good one for a schedule that starts there and decays. (Where the loss
falls fastest, which others suggest, is often only where a new model's very first fall ends.)
"""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from matplotlib.figure import Figure

from ..evaluation.plots import dress_axes, save_figure
from .module import TrainingError

STEPS = 100
LOW, HIGH = 1e-6, 10.0
DIVERGED = 4.0  # times the least loss, in the mean of three steps
FALL = 0.95  # of the first loss, which the least must be below, or nothing was learnt
DECADES = 0.25  # standard deviation of the Gaussian that smooths the curve


@dataclass
class RateCurve:
    """The loss at rising rates.

    Attributes:
        rates: of each step, ascending.
        losses: as many; the last may be nan.
    """

    rates: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    @property
    def diverged(self) -> bool:
        """Whether the latest loss is no number, or the latest few are far above the least so far."""
        return not math.isfinite(self.losses[-1]) or np.mean(self.losses[-3:]) > DIVERGED * min(self.losses)

    def smoothed(self) -> np.ndarray:
        """The losses, smoothed without a lag: a running mean would move the curve towards larger rates."""
        losses = np.nan_to_num(self.losses, nan=np.inf)
        losses = losses.clip(max=2 * losses[0])  # a huge value at the end would hide the whole fall
        decades = np.log10(self.rates)
        weights = np.exp(-0.5 * ((decades[:, None] - decades) / DECADES) ** 2)
        return weights @ losses / weights.sum(1)

    @property
    def least(self) -> float | None:
        """The rate at which the smoothed loss is least; None where it never fell."""
        losses = self.smoothed()
        return self.rates[int(losses.argmin())] if losses.min() < FALL * losses[0] else None

    @property
    def suggestion(self) -> float | None:
        """A third of the rate at which the smoothed loss is least; None where it never fell."""
        return None if self.least is None else self.least / 3

    def describe(self) -> str:
        """The suggestion, and what it was read from, in words."""
        low, high = (f"{rate:.1e}" for rate in (self.rates[0], self.rates[-1]))
        if self.suggestion is None:
            return (
                f"at no rate from {low} to {high} did the loss fall: look at the model and its labels first "
                "(--run.overfit true)"
            )
        end = "where the loss diverges" if self.diverged else "where the test ended, without divergence"
        return (
            f"suggested: --model.optimizer.lr {self.suggestion:.1e}, a third of {self.least:.1e}, where the loss is least; "
            f"{high} is {end}"
        )

    def write(self, folder: Path) -> None:
        """rate_curve.csv and rate_curve.png."""
        with (folder / "rate_curve.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("lr", "loss"), *zip(self.rates, self.losses, strict=True)])
        figure = Figure(figsize=(6, 4), layout="constrained")
        axes, losses, rate = figure.add_subplot(), self.smoothed(), self.suggestion
        dress_axes(axes, "Learning rate range test", "learning rate", "loss")
        axes.plot(self.rates, np.minimum(self.losses, 1.2 * losses.max()), linewidth=0.8, alpha=0.4)
        axes.plot(self.rates, losses, linewidth=1.8)
        if rate is not None:
            axes.axvline(rate, linestyle="--", linewidth=1.2, label=f"suggested: {rate:.1e}")
            axes.legend(frameon=False)
        axes.set_xscale("log")
        save_figure(figure, folder / "rate_curve.png")


def find_rate(trainer: Trainer, training: LightningModule, data: LightningDataModule) -> RateCurve:
    """Runs the test; the weights are afterwards what they were.

    Args:
        trainer: made with `overfit.STEPS_ALONE` and `max_steps`, the steps of the test.
        training: any module with one optimiser, of any class. Its groups keep the ratios of their rates.
        data: what it learns from.
    """
    before = {name: value.detach().clone() for name, value in training.state_dict().items()}
    riser = _RisingRate(trainer.max_steps)
    trainer.callbacks.append(riser)
    try:
        trainer.fit(training, data)
    except TrainingError:  # the loss became nan between two looks at it
        if riser.rate not in riser.curve.rates[-1:]:
            riser.curve.rates.append(riser.rate)
            riser.curve.losses.append(math.nan)
    finally:
        trainer.callbacks.remove(riser)
        training.load_state_dict(before)
    return riser.curve


class _RisingRate(Callback):
    def __init__(self, steps: int) -> None:
        self.curve, self._rates = RateCurve(), np.geomspace(LOW, HIGH, steps).tolist()
        self._accumulated: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        groups = trainer.optimizers[0].param_groups
        self.rate = self._rates[trainer.global_step]
        for group in groups:  # the last is the one whose rate is the optimiser's `lr`; the schedule is overruled
            group["lr"] = self.rate * group["initial_lr"] / groups[-1]["initial_lr"]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self._accumulated.append(float(torch.as_tensor(outputs.get("judged", outputs["loss"]))))
        if trainer.global_step == len(self.curve.rates):  # Lightning still gathers gradients
            return
        self.curve.rates.append(self.rate)
        self.curve.losses.append(float(np.mean(self._accumulated)))
        self._accumulated = []
        trainer.should_stop = self.curve.diverged
