"""Freezing by stage, and stages as parameter groups: how pretrained weights are fine-tuned step by step.

A stage is what `Backbone.stage_prefixes` names. What lies above all stages (a classifier's last layer, a pyramid) is
never frozen: it starts from random weights.
"""

from __future__ import annotations

from torch import nn

from .protocol import Backbone


def freeze_stages(backbone: Backbone, trainable: int) -> None:
    """Trains the last `trainable` stages and what lies above them; torchvision's `trainable_backbone_layers`.

    Calling it again with a larger number thaws. Only gradients are stopped: batch norms of a frozen stage go on
    following their batches' statistics unless they are of the "frozen" kind.

    Args:
        trainable: 0 freezes every stage; the number of stages (ResNet's five: stem and four layers) freezes none.

    Raises:
        ValueError: not a number of stages.
    """
    groups = stages(backbone)
    count = len(backbone.stage_prefixes)
    if not 0 <= trainable <= count:
        names = ", ".join(backbone.stage_prefixes)
        raise ValueError(f"trainable stages must be 0 to {count} ({names}), got {trainable}")
    frozen = set(list(backbone.stage_prefixes)[: count - trainable])
    for name, parameters in groups:
        for parameter in parameters:
            parameter.requires_grad_(name not in frozen)


def stages(backbone: Backbone) -> list[tuple[str, list[nn.Parameter]]]:
    """Every parameter, once, in groups from the head downwards, for thawing step by step or rates that fall with depth.

    The first is ("head", what lies above all stages), left out where nothing does; then the last stage to the first.
    """
    groups: dict[str, list[nn.Parameter]] = {name: [] for name in (*backbone.stage_prefixes, "head")}
    for name, parameter in backbone.named_parameters():
        groups[_stage_of(name, backbone)].append(parameter)
    if not groups["head"]:
        del groups["head"]
    return list(groups.items())[::-1]


def _stage_of(parameter: str, backbone: Backbone) -> str:
    for stage, prefixes in backbone.stage_prefixes.items():
        if any(parameter == prefix or parameter.startswith(f"{prefix}.") for prefix in prefixes):
            return stage
    return "head"
