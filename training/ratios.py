"""How far a step moves the weights: |update| / |weights|, about 1e-3 where the learning rate is healthy."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from ..backbone import stages


class UpdateRatios(Callback):
    """Logs the ratio of each of the backbone's stages ("update_ratio/layer1"), of the rest and of all.

    Each is the Euclidean norm of the change of the parameters in one step of the optimiser over that of the parameters
    before it, averaged over the steps looked at in an epoch; 0 for frozen stages. Nothing waits for a GPU. While a step
    is looked at, a copy of the parameters is held.

    Args:
        every: steps of the optimiser from one that is looked at to the next.
    """

    def __init__(self, every: int = 10) -> None:
        if every < 1:
            raise ValueError(f"update ratios are measured every 1 or more steps, got {every}")
        self.every = every
        self._before: dict[str, list[Tensor]] | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._groups = parameter_groups(pl_module.network)

    @torch.no_grad()
    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if trainer.global_step % self.every == 0:
            self._before = {name: [p.detach().clone() for p in group] for name, group in self._groups.items()}

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._before is None:
            return
        before, self._before = self._before, None
        squares = {name: _squares(before[name], self._groups[name]) for name in before}
        squares["all"] = torch.stack(list(squares.values())).sum(0)
        ratios = {f"update_ratio/{name}": (change / size).sqrt() for name, (change, size) in squares.items()}
        pl_module.log_dict(ratios, on_step=False, on_epoch=True, batch_size=len(batch))


def parameter_groups(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """The parameters of each stage of `model.backbone`, from the pixels upwards, and all others as "rest"."""
    groups = {name: group for name, group in stages(model.backbone)[::-1] if name != "head" and group}
    staged = {id(parameter) for group in groups.values() for parameter in group}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in staged]
    return groups | ({"rest": rest} if rest else {})


def _squares(before: list[Tensor], after: list[nn.Parameter]) -> Tensor:
    """(2,) float32: the squared norms of the change and of what was before, never zero."""
    changes = torch._foreach_sub([p.detach() for p in after], before)
    norms = [torch.stack(torch._foreach_norm(tensors)).float().square().sum() for tensors in (changes, before)]
    return torch.stack([norms[0], norms[1].clamp(min=torch.finfo(torch.float32).tiny)])
