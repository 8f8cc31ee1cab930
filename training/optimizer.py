"""From a model, an optimiser's recipe and a schedule to what Lightning asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..backbone import stages
from .schedules import Schedule


def configure(
    model: nn.Module,
    make: Callable[[list[dict]], torch.optim.Optimizer],
    schedule: Schedule,
    total_steps: int,
    backbone_rate: float,
    *,
    norm_decay: bool = True,
) -> dict[str, Any]:
    """An optimiser with the backbone's stages in a group of their own, and the schedule applied at every step.

    What lies above the stages (a pyramid, a classifier's last layer) starts from random weights, as the rest does.

    All parameters are handed over, frozen ones too: without a gradient an optimiser leaves them alone, and later stages of
    a fine-tuning may unfreeze them.

    Args:
        model: with its pretrained part in `model.backbone`.
        make: parameter groups to an optimiser.
        schedule: factors of the rate.
        total_steps: optimiser steps of the run.
        backbone_rate: factor of the rate of the backbone's stages.
        norm_decay: let weight decay shrink biases and norms' weights too.
    """
    staged = [parameter for name, group in stages(model.backbone)[::-1] if name != "head" for parameter in group]
    known = set(map(id, staged))
    rest = [parameter for parameter in model.parameters() if id(parameter) not in known]
    groups = [{"params": staged}, {"params": rest}]
    if not norm_decay:
        kept = [[p for p in group["params"] if p.ndim < 2] for group in groups]
        groups = [{"params": [p for p in group["params"] if p.ndim >= 2]} for group in groups]
        groups += [{"params": vectors, "weight_decay": 0.0} for vectors in kept]
    optimizer = make(groups)
    for group in optimizer.param_groups[::2]:
        group["lr"] *= backbone_rate
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: schedule.factor(step, total_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
