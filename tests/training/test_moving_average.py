"""The moving average against the recursion written out, with weights that change as they like."""

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from sightline.training import MovingAverage


class Wanderer(LightningModule):
    """One weight and one statistic, each set to its own sequence."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.register_buffer("statistic", torch.zeros(1))
        self.history = []

    def training_step(self, batch, index):
        return (self.weight - batch).square().sum()

    def on_train_batch_start(self, batch, index):
        self.statistic.fill_(float(index))

    def on_train_batch_end(self, outputs, batch, index):
        self.history.append((self.weight.item(), self.statistic.item()))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.3)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_recursion(tmp_path, decay):
    module, average = Wanderer(), MovingAverage(decay)
    trainer = Trainer(
        default_root_dir=tmp_path, max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[average],
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.arange(20.0)[:, None]))
    wanted = module.history[0]
    for step, now in enumerate(module.history[1:], 1):
        kept = min(decay, (1 + step) / (10 + step))
        wanted = tuple(kept * old + (1 - kept) * new for old, new in zip(wanted, now, strict=True))
    # After training Lightning leaves the averages in the module.
    assert module.weight.item() == pytest.approx(wanted[0], rel=1e-5)
    assert module.statistic.item() == pytest.approx(wanted[1], rel=1e-5)


class Weighted(Wanderer):
    """Gets a constant from its data, which is not saved, as a loss gets the categories' weights."""

    def __init__(self):
        super().__init__()
        self.register_buffer("constant", torch.ones(1), persistent=False)
        self.validated = []

    def setup(self, stage):
        self.constant.fill_(5.0)

    def validation_step(self, batch, index):
        self.validated.append(self.constant.item())


def test_what_is_not_saved_survives_resuming(tmp_path):
    loader = DataLoader(torch.arange(3.0)[:, None])
    for epochs, checkpoint in ((1, None), (2, tmp_path / "run.ckpt")):
        module = Weighted()
        trainer = Trainer(
            default_root_dir=tmp_path, max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[MovingAverage(0.9)], num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(module, loader, loader, ckpt_path=checkpoint, weights_only=False)
        trainer.save_checkpoint(tmp_path / "run.ckpt")
    assert module.validated == [5.0] * 3


@pytest.mark.parametrize("decay", [-0.1, 1.0, 9.0])
def test_decay_in_range(decay):
    with pytest.raises(ValueError, match=rf"must be in \[0, 1\), got {decay}"):
        MovingAverage(decay)
