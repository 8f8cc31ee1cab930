"""Thawing by epochs and on a plateau; a frozen stage is left as it is altogether, batch norms too."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sightline.training import DetectionTraining, PlateauUnfreezing, StagedUnfreezing
from sightline.training.tasks import Monitor


def trainer(folder, *callbacks, epochs):
    return Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", devices=1, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, use_distributed_sampler=False,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks),
    )  # fmt: skip


def stage_of(name):
    """The stage of a tensor of the tiny detector's ResNet; None above the stages."""
    if not name.startswith("backbone.body."):
        return None
    part = name.split(".")[2]
    return part if part.startswith("layer") else "stem"


class Watch(Callback):
    """After each epoch: the stages that changed during it, and those whose parameters did."""

    def __init__(self):
        self.changed = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.before = {name: value.clone() for name, value in pl_module.detector.state_dict().items()}

    def on_train_epoch_end(self, trainer, pl_module):
        after = pl_module.detector.state_dict()
        names = [name for name in after if not torch.equal(after[name], self.before[name])]
        self.changed.append({stage_of(name) for name in names} - {None})


def test_frozen_stages_do_not_change_and_thawed_ones_do(tmp_path, tiny_detector, tiny_data):
    watch, training = Watch(), DetectionTraining(tiny_detector(norm="batch"))
    trainer(tmp_path, StagedUnfreezing([1, 2]), watch, epochs=3).fit(training, tiny_data())
    assert watch.changed == [set(), {"layer4"}, {"layer3", "layer4"}]


def test_norms_above_the_stages_go_on_learning(tmp_path, tiny_detector, tiny_data):
    training = DetectionTraining(tiny_detector(norm="batch"))
    trainer(tmp_path, StagedUnfreezing([]), epochs=1).fit(training, tiny_data())
    body = training.detector.backbone.body
    assert not any(module.training for module in body.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert training.detector.backbone.fpn.training


class Scores(Callback):
    """Validations that reach these scores."""

    def __init__(self, scores):
        self.scores = list(scores)

    def on_validation_end(self, trainer, pl_module):
        trainer.callback_metrics["score"] = torch.tensor(self.scores[trainer.current_epoch])


SCORES = {
    "max": ("max", 2, [0.1, 0.2, 0.2, 0.1, 0.5, 0.4, 0.5], [0, 0, 0, 0, 1, 1, 1]),
    "min": ("min", 2, [0.9, 0.8, 0.8, 0.9, 0.5, 0.6, 0.5], [0, 0, 0, 0, 1, 1, 1]),
    "counted anew": ("max", 1, [0.5, 0.5, 0.4, 0.6, 0.3, 0.2], [0, 0, 1, 2, 2, 3]),
    "all thawed": ("max", 1, [0.5] + [0.1] * 7, [0, 0, 1, 2, 3, 4, 5, 5]),
}


@pytest.mark.parametrize(("mode", "patience", "scores", "stages"), SCORES.values(), ids=SCORES.keys())
def test_plateau(tmp_path, tiny_detector, tiny_data, mode, patience, scores, stages):
    unfreezing, seen = PlateauUnfreezing(Monitor("score", mode), patience), []

    class Count(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            body = pl_module.detector.backbone.body
            parts = [body.conv1, body.layer1, body.layer2, body.layer3, body.layer4]
            seen.append(sum(next(part.parameters()).requires_grad for part in parts))

    run = trainer(tmp_path, Scores(scores), unfreezing, Count(), epochs=len(scores))
    run.fit_loop.epoch_loop.max_steps = -1
    run.limit_train_batches = run.limit_val_batches = 1
    run.fit(DetectionTraining(tiny_detector(head_width=8)), tiny_data(batch_size=2))
    assert seen == stages


def test_plateau_is_resumed_where_it_was():
    one, other = (PlateauUnfreezing(Monitor("AP", "max"), 3) for _ in range(2))
    one.stages, one._waited, one._best = 2, 1, -0.4
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == {"stages": 2, "waited": 1, "best": -0.4}


@pytest.mark.parametrize("make", [lambda: StagedUnfreezing([5]), lambda: PlateauUnfreezing(Monitor("AP", "max"), 3)])
def test_resumed_within_an_epoch_stages_stay_frozen(tmp_path, tiny_detector, tiny_data, make):
    class StopInTheMiddle(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            trainer.save_checkpoint(tmp_path / "middle.ckpt", weights_only=False)
            trainer.should_stop = True

    data = {"batch_size": 2}
    run = trainer(tmp_path, make(), StopInTheMiddle(), epochs=1)
    run.limit_val_batches = 0
    run.fit(DetectionTraining(tiny_detector(norm="batch")), tiny_data(**data))
    resumed = DetectionTraining(tiny_detector(norm="batch"))
    again = trainer(tmp_path, make(), epochs=1)
    again.limit_val_batches = 0
    again.fit(resumed, tiny_data(**data), ckpt_path=tmp_path / "middle.ckpt", weights_only=False)
    stopped = torch.load(tmp_path / "middle.ckpt", weights_only=False)["state_dict"]
    after = resumed.state_dict()
    changed = {
        stage_of(name.removeprefix("detector.")) for name in after if not torch.equal(after[name], stopped[name])
    }
    assert None in changed, "the head went on learning"
    assert changed == {None}


def test_every_parameter_is_known_to_other_processes(tiny_detector):
    """Those that need no gradient when the model is wrapped would never be shared."""
    training = DetectionTraining(tiny_detector(trainable_stages=0))
    assert not all(p.requires_grad for p in training.parameters())
    StagedUnfreezing([1]).setup(Trainer(accelerator="cpu", devices=1, logger=False), training, "fit")
    assert all(p.requires_grad for p in training.parameters())


def test_mistakes():
    with pytest.raises(ValueError, match="patience of at least 1 validation, got 0"):
        PlateauUnfreezing(Monitor("AP", "max"), 0)
    with pytest.raises(ValueError, match=r"ascending and not negative, got \[2, 1\]"):
        StagedUnfreezing([2, 1])
