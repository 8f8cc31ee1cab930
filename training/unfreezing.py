"""Fine-tuning in stages: the new layers first, then a pretrained backbone's stages from the last downwards.

A frozen stage is left as it is altogether: its parameters have no gradients, and its batch norms neither use nor follow
the statistics of the batches, which with few pictures in a batch would spoil them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from ..backbone import freeze_stages
from .tasks import Monitor


class StagedUnfreezing(Callback):
    """Thaws one more stage at each of some epochs.

    Args:
        epochs: ascending; at the i-th of them, i stages of the backbone train (none before the first).
    """

    def __init__(self, epochs: Sequence[int]) -> None:
        if list(epochs) != sorted(epochs) or any(epoch < 0 for epoch in epochs):
            raise ValueError(f"the epochs of unfreezing must be ascending and not negative, got {list(epochs)}")
        self.epochs = list(epochs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        count = len(pl_module.network.backbone.stage_prefixes)
        if len(self.epochs) > count:
            raise ValueError(f"{len(self.epochs)} epochs of unfreezing for a backbone of {count} stages")
        _prepare(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a run resumed in the middle of an epoch does not start that one

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        freeze_stages(pl_module.network.backbone, sum(trainer.current_epoch >= epoch for epoch in self.epochs))


class PlateauUnfreezing(Callback):
    """Thaws one more stage whenever a score has not improved for some validations; none trains at first.

    Args:
        monitor: the score, and whether "max" or "min" is best.
        patience: so many validations without improvement, at least 1. They are counted anew after each thawing.
    """

    def __init__(self, monitor: Monitor, patience: int) -> None:
        if patience < 1:
            raise ValueError(f"unfreezing needs a patience of at least 1 validation, got {patience}")
        self.monitor, self.patience = monitor, patience
        self.stages, self._waited, self._best = 0, 0, float("inf")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        _prepare(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # see StagedUnfreezing

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        freeze_stages(pl_module.network.backbone, self.stages)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking:
            return
        score = float(trainer.callback_metrics[self.monitor.name])
        score = -score if self.monitor.mode == "max" else score
        if score < self._best:
            self._best, self._waited = score, 0
            return
        self._waited += 1
        if self._waited >= self.patience and self.stages < len(pl_module.network.backbone.stage_prefixes):
            self.stages, self._waited = self.stages + 1, 0

    def state_dict(self) -> dict[str, Any]:
        return {"stages": self.stages, "waited": self._waited, "best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.stages, self._waited, self._best = (state_dict[name] for name in ("stages", "waited", "best"))


def _prepare(trainer: Trainer, pl_module: LightningModule) -> None:
    # Processes share the gradients of those parameters alone that need one when the model is wrapped, soon after this.
    backbone = pl_module.network.backbone
    freeze_stages(backbone, len(backbone.stage_prefixes))
    finds_unused = getattr(trainer.strategy, "_ddp_kwargs", {}).get("find_unused_parameters", False)
    if trainer.world_size > 1 and not finds_unused:
        raise ValueError(
            "staged unfreezing on several devices needs --trainer.strategy ddp_find_unused_parameters_true"
        )
