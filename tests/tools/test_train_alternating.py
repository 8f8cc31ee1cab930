"""`sightline train RECIPE --alternating`: four steps in one folder, stopped and gone on with, and its mistakes."""

import csv
import itertools
import json
import os
import re
import signal

import numpy as np
import pytest
import torch

from sightline.datasets.proposal_files import read_proposals
from sightline.datasets.shapes import shapes_table
from sightline.detectors import FasterRCNN, load
from sightline.tools.main import main
from sightline.training import DetectionTraining
from sightline.training.alternating import STEPS

QUICK = [
    "--data.shapes.train_images", "8", "--data.shapes.val_images", "4", "--data.shapes.size", "64", "--data.batch_size", "4",
    "--data.min_size", "64", "--data.max_size", "64", "--data.num_workers", "0", "--trainer.max_epochs", "1",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false",
]  # fmt: skip
CHANGES = {  # from the step before
    "step2_head": {"backbone", "roi_heads"},
    "step3_rpn": {"rpn"},
    "step4_head": {"roi_heads"},
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIGHTLINE_RUN_FOLDER", raising=False)


def best(run, step):
    return load(run / step.name / "checkpoints/best.ckpt", device="cpu")


def metrics(run, step):
    with (run / step.name / "metrics.csv").open() as file:
        return {name for row in csv.DictReader(file) for name, value in row.items() if value}


def changed(one, other):
    """The parts that differ between two models."""
    before, after = one.state_dict(), other.state_dict()
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, after[name])}


def test_four_steps_to_one_detector(tmp_path, capsys):
    assert main(["train", "shapes", "--alternating", *QUICK]) == 0
    run, printed = tmp_path / "runs/shapes/1", capsys.readouterr().out
    for number, step in enumerate(STEPS, 1):
        assert f"step {number} of 4: {step.text}\n" in printed
        ours, others = {"loss_objectness", "loss_rpn_box"}, {"loss_cls", "loss_box"}
        ours, others = (ours, others) if step.part == "rpn" else (others, ours)
        logged = metrics(run, step)
        assert {f"{split}/{name}" for split in ("train", "val") for name in ours} <= logged
        assert not {f"{split}/{name}" for split in ("train", "val") for name in others} & logged
        saved = torch.load(run / step.name / "checkpoints/last.ckpt", weights_only=True)["callbacks"]
        watched = next(state["monitor"] for name, state in saved.items() if "ModelCheckpoint" in name)
        assert watched == ("val/loss" if step.part == "rpn" else "AP")
    for before, step in itertools.pairwise(STEPS):
        assert changed(best(run, before), best(run, step)) == CHANGES[step.name]

    table, model = shapes_table("val", 4, 64, seed=0), best(run, STEPS[-1])
    assert type(model) is FasterRCNN
    assert model.learns == ("rpn", "head")
    assert len(list(model.predict([np.zeros((64, 64, 3), np.uint8)], score=0.0))) == 1
    results = json.loads((run / "step4_head/results.json").read_text())
    seconds = [json.loads((run / step.name / "finished.json").read_text())["train_seconds"] for step in STEPS]
    assert results["train_seconds"] == pytest.approx(sum(seconds), abs=0.3)
    assert (run / "step4_head/report.html").exists()
    for step in (STEPS[0], STEPS[2]):
        regions = read_proposals(run / step.name / "proposals.npz", table).regions
        assert np.diff(regions.offsets).min() > 0
        assert np.diff(regions.offsets).max() > model.rpn.post_nms  # there are more to learn from
    with pytest.raises(SystemExit):
        main(["train", "shapes", "--alternating", "--print_config"])
    assert not (tmp_path / "runs/shapes/2").exists()

    capsys.readouterr()
    assert main(["train", "--resume", "runs/shapes"]) == 2
    assert "all four steps of runs/shapes/1 are finished, see runs/shapes/1/step4_head" in capsys.readouterr().err


def test_goes_on_with_the_step_that_was_stopped(tmp_path, capsys, monkeypatch):
    steps, step = [], DetectionTraining.training_step

    def interrupted(self, batch, index):
        steps.append(self.detector.learns[0])
        if len(steps) == 3:  # two steps of each part: the first of the second's
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    monkeypatch.setattr(DetectionTraining, "training_step", interrupted)
    with pytest.raises(SystemExit):
        main(["train", "shapes", "--alternating", *QUICK])
    assert "go on with: sightline train --resume runs/shapes/1\n" in capsys.readouterr().out
    run = tmp_path / "runs/shapes/1"
    first = (run / "step1_rpn/checkpoints/best.ckpt").stat().st_mtime_ns
    assert steps == ["rpn", "rpn", "head"]
    assert main(["train", "--resume", "runs/shapes/1/step2_head"]) == 0  # a step's folder is the run's
    assert steps[3:] == ["head", "rpn", "rpn", "head", "head"]
    assert (run / "step1_rpn/checkpoints/best.ckpt").stat().st_mtime_ns == first
    assert (run / "step4_head/report.html").exists()
    assert "step 1 of 4" not in capsys.readouterr().out


def test_a_step_that_saved_nothing(capsys):
    assert main(["train", "shapes", "--alternating", *QUICK, "--trainer.fast_dev_run", "true"]) == 2
    assert "runs/shapes/1/step1_rpn has no validated checkpoint" in capsys.readouterr().err


LENET = ["lenet", "--data.shapes.train_images", "8", "--data.shapes.val_images", "4", "--data.num_workers", "0"]
MISTAKES = {
    "a classifier": ([*LENET], "a recipe of Faster R-CNN, .* makes a Classifier"),
    "in place of training": (
        ["shapes", *QUICK, "--run.find_rate", "true"],
        "--run.find_rate does not go with --alternating",
    ),
    "thawing": (["shapes", *QUICK, "--run.unfreeze", "plateau"], "--run.unfreeze does not go with --alternating"),
    "machines": (["shapes", *QUICK, "--run.machines", "true"], "--run.machines is for R-CNN"),
    "other proposals": (["shapes", *QUICK, "--data.proposals", "x.npz"], "leave out --data.proposals"),
    "search": (["shapes", "--search", "2"], "leave out --alternating"),
    "option": (["shapes", "--trainer.max_epoch", "1"], "did you mean --trainer.max_epochs"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_end_in_one_message(arguments, message, capsys, tmp_path):
    assert main(["train", *arguments, "--alternating"]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error
    assert not (tmp_path / "runs").exists()
