"""From a detector, an optimiser's recipe and a schedule to what Lightning asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .schedules import Schedule


def configure(
    model: nn.Module,
    make: Callable[[list[dict]], torch.optim.Optimizer],
    schedule: Schedule,
    total_steps: int,
    backbone_rate: float,
) -> dict[str, Any]:
    """An optimiser with the backbone in a group of its own, and the schedule applied at every step.

    All parameters are handed over, frozen ones too: without a gradient an optimiser leaves them alone, and later stages of
    a fine-tuning may unfreeze them.

    Args:
        model: with its pretrained part in `model.backbone`.
        make: parameter groups to an optimiser.
        schedule: factors of the rate.
        total_steps: optimiser steps of the run.
        backbone_rate: factor of the backbone's rate.
    """
    backbone = list(model.backbone.parameters())
    known = set(map(id, backbone))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    optimizer = make([{"params": backbone}, {"params": rest}])
    optimizer.param_groups[0]["lr"] *= backbone_rate
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
