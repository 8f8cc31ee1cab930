"""The Lightning module: what it logs, that a run repeats itself, and that a resumed run is an uninterrupted one."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from sightline.datasets.data_module import Shapes
from sightline.datasets.mixing import Mixing
from sightline.detectors import load
from sightline.evaluation import evaluate_coco
from sightline.training import (
    DetectionTraining,
    MovingAverage,
    SaveOnInterrupt,
    StagedUnfreezing,
    TrainingError,
    score,
)

LOSSES = ("loss_objectness", "loss_rpn_box", "loss_cls", "loss_box")


def trainer(folder, *callbacks, epochs=2, **options):
    return Trainer(
        default_root_dir=folder, max_epochs=epochs, accelerator="cpu", devices=options.pop("devices", 1), logger=False,
        callbacks=list(callbacks), enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        enable_checkpointing=any(isinstance(c, ModelCheckpoint) for c in callbacks), use_distributed_sampler=False,
        log_every_n_steps=1, **options,
    )  # fmt: skip


def module(build, **changes):
    torch.manual_seed(0)
    return DetectionTraining(build(**changes))


def weights(training):
    return {name: value.clone() for name, value in training.detector.state_dict().items()}


def assert_same(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


class Record(Callback):
    """The training loss of every step."""

    def __init__(self):
        self.losses = []

    def on_train_batch_end(self, trainer, pl_module, outputs, *_):
        self.losses.append(outputs["loss"].item())


def test_logs_each_loss_and_the_scores(tmp_path, tiny_detector, tiny_data):
    run = trainer(tmp_path, epochs=1)
    training = module(tiny_detector)
    run.fit(training, tiny_data())
    logged = run.callback_metrics
    for stage in ("train", "val"):
        total = sum(logged[f"{stage}/{name}"] for name in LOSSES)
        assert all(logged[f"{stage}/{name}"] > 0 for name in LOSSES)
        assert logged[f"{stage}/loss"] == pytest.approx(float(total), rel=1e-5)
    again = evaluate_coco(training.truth, training.detections, training.detector.categories)
    assert logged["AP"] == pytest.approx(again.summary()["AP"])
    assert len(training.truth.image_ids) == 8


def test_validation_scores_are_those_of_a_plain_evaluation(tmp_path, tiny_detector, tiny_data):
    """One backbone pass for losses and boxes gives what `detect` alone gives."""
    data, training = tiny_data(), module(tiny_detector)
    trainer(tmp_path, epochs=1).fit(training, data)
    scored = score(training.detector, data.tables["val"], progress=False)
    assert scored.result.summary() == pytest.approx(training.result.summary(), abs=1e-6)
    assert len(scored.detections) == len(training.detections) > 0


def test_same_seed_same_run(tmp_path, tiny_detector, tiny_data):
    runs = []
    for _ in range(2):
        training, record = module(tiny_detector), Record()
        trainer(tmp_path, record).fit(training, tiny_data())
        runs.append((record.losses, weights(training)))
    assert runs[0][0] == runs[1][0]
    assert_same(runs[0][1], runs[1][1])


class StopAt(Callback):
    """Ctrl-C during a given step."""

    def __init__(self, step):
        self.step = step

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize(
    "step", [2, 5, 8, 11], ids=["mid-epoch", "last step of an epoch", "second epoch", "very last step"]
)
def test_interrupted_and_resumed_equals_uninterrupted(tmp_path, tiny_detector, tiny_data, step):
    whole, record = module(tiny_detector), Record()
    trainer(tmp_path, record).fit(whole, tiny_data())

    last, first_part, second_part = tmp_path / "last.ckpt", Record(), Record()
    with pytest.raises(SystemExit):
        trainer(tmp_path, first_part, StopAt(step), SaveOnInterrupt(last)).fit(module(tiny_detector), tiny_data())
    assert len(first_part.losses) == step + 1
    resumed = module(tiny_detector)
    trainer(tmp_path, second_part).fit(resumed, tiny_data(), ckpt_path=last, weights_only=True)
    assert first_part.losses + second_part.losses == record.losses
    assert_same(weights(whole), weights(resumed))


def test_a_run_that_fails_leaves_ctrl_c_as_it_was(tmp_path, tiny_detector, tiny_data):
    before, training = signal.getsignal(signal.SIGINT), with_nan(module(tiny_detector))
    with pytest.raises(TrainingError):
        trainer(tmp_path, SaveOnInterrupt(tmp_path / "last.ckpt")).fit(training, tiny_data())
    assert signal.getsignal(signal.SIGINT) is before


def test_resumed_after_an_epoch_equals_uninterrupted(tmp_path, tiny_detector, tiny_data):
    whole = module(tiny_detector)
    trainer(tmp_path, epochs=3).fit(whole, tiny_data())
    keep = ModelCheckpoint(tmp_path, "best", monitor="AP", mode="max", save_last=True)

    class Stop(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                raise KeyboardInterrupt

    with pytest.raises(SystemExit):
        trainer(tmp_path, keep, Stop(), epochs=3).fit(module(tiny_detector), tiny_data())
    resumed = module(tiny_detector)
    trainer(tmp_path, epochs=3).fit(resumed, tiny_data(), ckpt_path=tmp_path / "last.ckpt", weights_only=True)
    assert_same(weights(whole), weights(resumed))


def test_checkpoint_loads_alone(tmp_path, tiny_detector, tiny_data):
    training, data = module(tiny_detector), tiny_data()
    trainer(tmp_path, ModelCheckpoint(tmp_path, "best"), epochs=1).fit(training, data)
    detector = load(tmp_path / "best.ckpt", device="cpu")
    assert detector.categories == data.categories
    assert detector.resize == (64, 64)
    assert_same(detector.state_dict(), weights(training))


def test_moving_average_is_what_is_validated(tmp_path, tiny_detector, tiny_data):
    plain, averaged = module(tiny_detector), module(tiny_detector)
    trainer(tmp_path, epochs=1).fit(plain, tiny_data())
    keep = ModelCheckpoint(tmp_path, "ema")
    trainer(tmp_path, MovingAverage(0.9), keep, epochs=1).fit(averaged, tiny_data())
    name = "roi_heads.box_predictor.cls_score.weight"
    saved = load(tmp_path / "ema.ckpt", device="cpu").state_dict()
    assert torch.equal(saved[name], averaged.detector.state_dict()[name])
    assert not torch.equal(saved[name], plain.detector.state_dict()[name])


def test_models_know_the_last_epochs(tmp_path, tiny_detector, tiny_data):
    class Watch(Callback):
        def __init__(self):
            self.refining = []

        def on_train_batch_start(self, trainer, pl_module, batch, index):
            if index == 0:
                self.refining.append(pl_module.detector.refining)

    mixed, unmixed = Watch(), Watch()
    trainer(tmp_path, mixed, epochs=3).fit(module(tiny_detector), tiny_data(mixing=Mixing(), plain_epochs=2))
    trainer(tmp_path, unmixed, epochs=2).fit(module(tiny_detector), tiny_data(plain_epochs=2))
    assert (mixed.refining, unmixed.refining) == ([False, True, True], [False, False])


def test_nan_loss_names_the_pictures(tmp_path, tiny_detector, tiny_data):
    with pytest.raises(TrainingError, match=r"loss became nan near step \d+.*shapes:0/64/\d+, shapes:0/64/\d+"):
        trainer(tmp_path).fit(with_nan(module(tiny_detector)), tiny_data())


def with_nan(training):
    """With a weight that is no number, and so no loss either."""
    with torch.no_grad():
        training.detector.roi_heads.box_head.fc6.weight[0, 0] = float("nan")
    return training


def test_the_last_losses_of_an_epoch_are_looked_at_too(tmp_path, tiny_detector, tiny_data):
    """On a GPU they wait for more, of which an epoch's last have none."""

    class Wait(Callback):
        def on_train_batch_end(self, trainer, pl_module, *_):
            if trainer.is_last_batch:
                pl_module._recent.append((torch.tensor(float("nan")), ["the last"]))

    with pytest.raises(TrainingError, match="in the batch of: the last"):
        trainer(tmp_path, Wait(), epochs=1).fit(module(tiny_detector), tiny_data())


def test_accumulation_equals_a_larger_batch(tmp_path, tiny_detector, tiny_data):
    """Two steps of 4 pictures are one of 8."""
    results = []
    for batch, accumulate in ((4, 2), (8, 1)):
        training = everything(module(tiny_detector))
        data = tiny_data(batch_size=batch, augment=None, shapes=Shapes(8, 4, 64))
        trainer(tmp_path, epochs=3, accumulate_grad_batches=accumulate).fit(training, data)
        results.append(weights(training))
    for name, value in results[0].items():
        torch.testing.assert_close(value, results[1][name], rtol=1e-4, atol=1e-6)


def everything(training):
    """Sampling that leaves nothing to chance: all anchors and regions are looked at."""
    training.detector.rpn.samples = training.detector.roi_heads.samples = 10**6
    training.detector.rpn.foreground_share = training.detector.roi_heads.foreground_share = 1.0
    return training


def test_staged_unfreezing(tmp_path, tiny_detector, tiny_data):
    class Watch(Callback):
        def __init__(self):
            self.trained = []

        def on_train_epoch_end(self, trainer, pl_module):
            body = pl_module.detector.backbone.body
            self.trained.append([part.conv1.weight.requires_grad for part in (body.layer3[0], body.layer4[0])])

    watch, training = Watch(), module(tiny_detector)
    before = weights(training)
    trainer(tmp_path, StagedUnfreezing([1, 2]), watch, epochs=3).fit(training, tiny_data())
    assert watch.trained == [[False, False], [False, True], [True, True]]
    after = weights(training)
    assert torch.equal(before["backbone.body.layer1.0.conv1.weight"], after["backbone.body.layer1.0.conv1.weight"])
    assert not torch.equal(before["backbone.body.layer4.0.conv1.weight"], after["backbone.body.layer4.0.conv1.weight"])


def test_backbone_rate(tmp_path, tiny_detector, tiny_data):
    training = DetectionTraining(tiny_detector(), backbone_rate=0.1)
    run = trainer(tmp_path, epochs=1)
    run.fit(training, tiny_data())
    backbone, rest = run.optimizers[0].param_groups
    assert backbone["lr"] == pytest.approx(0.1 * rest["lr"])
    # The pyramid starts from random weights as the heads do: it learns at their rate.
    assert {id(p) for p in backbone["params"]} == {id(p) for p in training.detector.backbone.body.parameters()}
    assert len(backbone["params"]) + len(rest["params"]) == len(list(training.detector.parameters()))


def test_norms_and_biases_without_decay(tmp_path, tiny_detector, tiny_data):
    training = DetectionTraining(tiny_detector(), backbone_rate=0.1, norm_decay=False)
    run = trainer(tmp_path, epochs=1)
    run.fit(training, tiny_data())
    groups = run.optimizers[0].param_groups
    assert [group["weight_decay"] > 0 for group in groups] == [True, True, False, False]
    assert [group["lr"] / groups[1]["lr"] for group in groups] == pytest.approx([0.1, 1, 0.1, 1])
    assert {p.ndim > 1 for group in groups[:2] for p in group["params"]} == {True}
    assert {p.ndim for group in groups[2:] for p in group["params"]} == {1}
    seen = [id(p) for group in groups for p in group["params"]]
    assert sorted(seen) == sorted(id(p) for p in training.detector.parameters())


def test_two_processes_train_as_one(tmp_path):
    """Two CPU processes of batch 4 against one of batch 8: the same loss curve, weights and scores, up to rounding."""
    script, results = Path(__file__).parent / "train_on_processes.py", []
    for processes in (1, 2):
        out = tmp_path / f"{processes}.pt"
        done = subprocess.run(
            [sys.executable, str(script), str(processes), str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(torch.load(out, weights_only=True))
    one, two = results
    assert len(one["losses"]) == len(two["losses"]) == 6
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert two["scores"] == pytest.approx(one["scores"], abs=1e-6)
    assert two["val_loss"] == pytest.approx(one["val_loss"], rel=1e-4)
    for name, value in one["weights"].items():
        torch.testing.assert_close(two["weights"][name], value, rtol=1e-3, atol=1e-5)
