"""Freezing by stage, and stages as parameter groups: how pretrained weights are fine-tuned step by step.

A stage is what `Backbone.stage_prefixes` names. What lies above all stages (a classifier's last layer, a pyramid) is
never frozen: it starts from random weights.
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from .protocol import Backbone


def freeze_stages(backbone: Backbone, trainable: int) -> None:
    """Trains the last `trainable` stages and what lies above them; torchvision's `trainable_backbone_layers`.

    Calling it again with a larger number thaws. A frozen stage is left as it is altogether: its batch norms, too, neither
    use nor follow their batches' statistics. `backbone.train()` forgets that; a detector's `train` does not.

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
    set_norms(backbone)


def set_norms(model: nn.Module) -> None:
    """Batch norms whose parameters do not train to evaluation mode, the others to the mode that the model is in."""
    for module in model.modules():
        own = list(module.parameters(recurse=False))
        if isinstance(module, _BatchNorm) and own:
            module.train(model.training and any(parameter.requires_grad for parameter in own))


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
