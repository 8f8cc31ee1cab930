"""Update ratios, learning one batch by heart, and the learning rate range test."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer

from sightline.datasets.shapes import shapes_table
from sightline.training import CosineDecay, DetectionTraining, Schedule, UpdateRatios
from sightline.training.overfit import STEPS_ALONE, OverfitOneBatch, Verdict, mixed
from sightline.training.rate_finder import RateCurve, find_rate


def trainer(*callbacks, **options):
    common = {
        "accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False, "enable_checkpointing": False,
        "enable_model_summary": False, "num_sanity_val_steps": 0, "use_distributed_sampler": False,
    }  # fmt: skip
    return Trainer(callbacks=list(callbacks), **(common | options))


class Weights(Callback):
    """The weights before and after every step, by name."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.seen.append([p.detach().clone() for p in pl_module.detector.backbone.body.layer2.parameters()])

    def on_train_end(self, trainer, pl_module):
        self.on_train_batch_start(trainer, pl_module)


def test_update_ratio_is_the_change_over_the_size(tmp_path, tiny_detector, tiny_data):
    weights = Weights()
    run = trainer(UpdateRatios(every=2), weights, max_epochs=1, limit_val_batches=0)
    run.fit(DetectionTraining(tiny_detector()), tiny_data())
    expected = []
    for before, after in list(zip(weights.seen, weights.seen[1:], strict=False))[::2]:
        change = math.sqrt(sum(float((b - a).square().sum()) for a, b in zip(before, after, strict=True)))
        expected.append(change / math.sqrt(sum(float(a.square().sum()) for a in before)))
    assert len(expected) == 3
    logged = run.callback_metrics
    assert logged["update_ratio/layer2"] == pytest.approx(np.mean(expected), rel=1e-3)
    names = {name.removeprefix("update_ratio/") for name in logged if name.startswith("update_ratio/")}
    assert names == {"stem", "layer1", "layer2", "layer3", "layer4", "rest", "all"}
    assert 1e-6 < logged["update_ratio/all"] < 0.1


def test_frozen_stages_have_no_updates(tiny_detector, tiny_data):
    run = trainer(UpdateRatios(every=3), max_epochs=1, limit_val_batches=0)
    run.fit(DetectionTraining(tiny_detector(trainable_stages=1)), tiny_data())
    assert run.callback_metrics["update_ratio/layer3"] == 0 < run.callback_metrics["update_ratio/layer4"]


def test_the_first_batch_is_mixed():
    table = shapes_table("train", 40, 64, 0)
    table = table.select(
        np.argsort([table.labels[table.image == row].min(initial=9) for row in range(40)], kind="stable")
    )
    shuffled = mixed(table, seed=0)
    assert sorted(shuffled.paths) == sorted(table.paths[row] for row in np.unique(table.image))
    assert shuffled.paths != table.paths
    assert mixed(table, seed=0).paths == shuffled.paths != mixed(table, seed=1).paths
    assert len(mixed(table.select_objects(np.empty(0, np.int64)), seed=0)) == 40  # pictures to learn without labels


@pytest.mark.parametrize("rate", [0.01, 0.0], ids=["learns", "does not"])
def test_overfit_one_batch(tiny_classifier, tiny_data, rate):
    training = DetectionTraining(tiny_classifier(), lambda groups: torch.optim.Adam(groups, lr=rate), Schedule())
    watch = OverfitOneBatch(100)
    run = trainer(watch, **STEPS_ALONE, overfit_batches=1, max_steps=100)
    run.fit(training, tiny_data())
    assert watch.verdict.learnt is (rate > 0)
    if rate:
        assert 5 <= len(watch.verdict.losses) < 100  # it ends as soon as the batch is learnt
    else:
        assert len(set(watch.verdict.losses)) == 1  # of 100 steps: the batch is always the same, unchanged


VERDICTS = {
    "learnt": ([2.0, 1.0, 0.5, 0.1, 0.05, 0.01, 0.01, 0.01, 0.01], True, "loss from 2 to 0.01.*: the model can learn this batch"),
    "nothing": ([2.0] * 100, False, r"cannot learn this batch\. The loss hardly fell: look at the rate"),
    "slow": (list(np.linspace(2, 1, 100)), False, r"still falling: allow more steps \(--trainer.max_steps 1000\)"),
    "stuck": ([2.0] * 5 + [0.5] * 95, False, "It stands still"),
    "nothing to learn": ([0.0] * 9, False, "have nothing to learn in them"),
}  # fmt: skip


@pytest.mark.parametrize(("losses", "learnt", "text"), VERDICTS.values(), ids=VERDICTS.keys())
def test_verdict_in_words(losses, learnt, text):
    verdict = Verdict(losses, 200)
    assert verdict.learnt is learnt
    assert __import__("re").search(text, str(verdict)), str(verdict)


def test_verdict_of_few_steps_has_words():
    assert "1 steps" in str(Verdict([2.0], 1))


def test_rates_rise_and_weights_stay(tiny_detector, tiny_data):
    seen = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append([group["lr"] for group in optimizer.param_groups])

    training = DetectionTraining(
        tiny_detector(norm="batch"), torch.optim.AdamW, CosineDecay(warmup_steps=5), backbone_rate=0.1
    )
    before = {name: value.clone() for name, value in training.state_dict().items()}
    curve = find_rate(trainer(Rates(), **STEPS_ALONE, max_steps=30), training, tiny_data())
    rates = [last for _, last in seen]
    assert rates == pytest.approx(np.geomspace(1e-6, 10, 30)[: len(rates)])
    assert [first / last for first, last in seen] == pytest.approx([0.1] * len(rates))
    assert len(curve.rates) == len(curve.losses) >= 10
    assert all(torch.equal(value, before[name]) for name, value in training.state_dict().items())


def test_a_loss_that_becomes_nan_ends_the_test(tiny_detector, tiny_data):
    training = DetectionTraining(tiny_detector())
    with torch.no_grad():
        training.detector.roi_heads.box_head.fc6.weight[0, 0] = float("nan")
    curve = find_rate(trainer(**STEPS_ALONE, max_steps=30), training, tiny_data())
    assert curve.diverged
    assert math.isnan(curve.losses[-1])


def curve(losses):
    return RateCurve(np.geomspace(1e-6, 10, 100)[: len(losses)].tolist(), list(losses))


def valley(noise=0.0):
    """Least at 1e-2, divergence above."""
    decades = np.log10(np.geomspace(1e-6, 10, 100))
    losses = 3 - 2 * np.exp(-0.5 * (decades + 2) ** 2) + np.random.default_rng(0).normal(0, noise, 100)
    return losses + np.where(decades > -0.5, 10 ** np.clip(4 * (decades + 0.5), 0, 6), 0)


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_suggestion_is_a_third_of_the_best(noise):
    found = curve(valley(noise))
    assert found.diverged
    assert found.least == pytest.approx(1e-2, rel=0.5)
    assert found.suggestion == pytest.approx(found.least / 3)
    assert f"--model.optimizer.lr {found.suggestion:.1e}" in found.describe()


def test_a_huge_last_loss_hides_nothing():
    losses = valley()[:80]
    assert curve([*losses, 1e30]).least == curve([*losses, math.nan]).least == curve(losses).least


def test_no_suggestion_where_nothing_is_learnt():
    flat = curve(np.random.default_rng(0).normal(2, 0.05, 100))
    assert flat.suggestion is None
    assert not flat.diverged
    assert "at no rate from 1.0e-06 to 1.0e+01 did the loss fall" in flat.describe()


def test_curve_files(tmp_path):
    curve([*valley()[:80], math.nan]).write(tmp_path)
    lines = (tmp_path / "rate_curve.csv").read_text().splitlines()
    assert lines[0] == "lr,loss"
    assert len(lines) == 82
    assert (tmp_path / "rate_curve.png").stat().st_size > 5000
