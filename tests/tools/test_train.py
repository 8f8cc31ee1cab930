"""`sightline train` from the command to the run folder, its mistakes and its resumption."""

import csv
import json
import os
import re
import signal

import pytest
import torch
import yaml

from sightline.detectors import load
from sightline.tools.main import main
from sightline.tools.train import recipes
from sightline.tools.train_detection import DetectionCLI
from sightline.tools.train_search import Outcome, search, take_plan
from sightline.training import DetectionTraining

QUICK = [
    "--data.shapes.train_images", "16", "--data.shapes.val_images", "4", "--data.shapes.size", "64", "--data.batch_size", "4",
    "--data.min_size", "64", "--data.max_size", "64", "--data.num_workers", "0", "--trainer.max_epochs", "1",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


def train(*arguments):
    return main(["train", *arguments])


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SIGHTLINE_RUN_FOLDER", raising=False)


@pytest.fixture
def forget(monkeypatch):
    """Each command is a process of its own; here they share one, and the folder's name in its environment."""
    return lambda: monkeypatch.delenv("SIGHTLINE_RUN_FOLDER", raising=False)


def test_leaves_a_run_folder(tmp_path, capsys, forget):
    assert train(*QUICK) == 0
    folder = tmp_path / "runs/shapes/1"
    printed = capsys.readouterr().out
    assert "Average precision  AP " in printed
    assert "runs/shapes/1/report.html" in printed
    results = json.loads((folder / "results.json").read_text())
    assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "per_class", "seconds"} <= results.keys()
    assert [row["category"] for row in results["per_class"]] == load(folder / "checkpoints/best.ckpt").categories
    with (folder / "metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert {"AP", "train/loss_cls", "val/loss_cls", "val/loss_rpn_box", "val/loss_objectness", "val/loss_box"} <= set(
        columns
    )
    assert (folder / "checkpoints/last.ckpt").exists()
    assert "<img" in (folder / "report.html").read_text()

    forget()
    assert train(str(folder / "config.yaml"), "--runs", "again") == 0  # the saved configuration runs
    assert json.loads((tmp_path / "again/config/1/results.json").read_text())["AP"] == results["AP"]
    forget()
    assert train(*QUICK) == 0
    assert (tmp_path / "runs/shapes/2/results.json").exists()


def test_resume_goes_on_in_the_same_folder(tmp_path, forget):
    assert train(*QUICK) == 0
    forget()
    assert train("--resume", "runs/shapes", "--trainer.max_epochs", "2") == 0
    with (tmp_path / "runs/shapes/1/metrics.csv").open() as file:
        epochs = {row["epoch"] for row in csv.DictReader(file) if row["epoch"]}
    assert epochs == {"0", "1"}
    assert not (tmp_path / "runs/shapes/2").exists()
    config = tmp_path / "runs/shapes/1/config.yaml"
    assert "max_epochs: 2\n" in config.read_text()  # stopped and resumed once more, it would go as far

    before = config.read_text()
    forget()
    assert train("--resume", "runs/shapes", "--trainer.max_epochs", "1", "--data.batch_size", "3") == 0
    assert config.read_text() == before  # nothing was trained with that


@pytest.mark.slow
def test_stopped_in_the_last_epochs_and_resumed_it_is_an_uninterrupted_run(tmp_path, forget, monkeypatch):
    """With a moving average, mixed pictures before the last epoch, and a loss that is added in it."""
    monkeypatch.setattr(DetectionCLI, "finish", lambda *_: None)
    run = [
        "yolox_nano", *QUICK, "--data.plain_epochs", "1", "--trainer.max_epochs", "2", "--run.ema", "0.9",
        "--trainer.check_val_every_n_epoch", "1",
    ]  # fmt: skip
    assert train(*run) == 0
    forget()
    step = DetectionTraining.training_step

    def interrupted(self, batch, index):
        if self.global_step == 5:  # of 8
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(DetectionTraining, "training_step", interrupted)
        with pytest.raises(SystemExit):
            train(*run)
    forget()
    assert train("--resume", "runs/yolox_nano/2") == 0
    runs = [torch.load(f"runs/yolox_nano/{i}/checkpoints/last.ckpt", weights_only=True) for i in (1, 2)]
    for state in ("state_dict", "current_model_state"):
        whole, resumed = (run[state] for run in runs)
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


LENET = [
    "lenet", "--data.shapes.train_images", "48", "--data.shapes.val_images", "8", "--data.shapes.size", "32",
    "--data.num_workers", "0", "--data.batch_size", "8", "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu",
    "--trainer.enable_progress_bar", "false",
]  # fmt: skip


def test_overfits_one_batch(tmp_path, capsys, forget):
    adam = ["--model.optimizer", "Adam", "--model.optimizer.lr"]
    assert train(*LENET, "--run.overfit", "true", *adam, "0.005") == 0
    assert "the model can learn this batch" in capsys.readouterr().out
    forget()
    assert train(*LENET, "--run.overfit", "true", *adam, "1e-9", "--trainer.max_steps", "12") == 1
    assert "cannot learn this batch. The loss hardly fell: look at the rate" in capsys.readouterr().out
    assert len((tmp_path / "runs/lenet/2/overfit.csv").read_text().splitlines()) == 13
    assert not list(tmp_path.rglob("*.ckpt"))


def test_one_batch_is_overfitted_at_a_constant_rate_without_validation(forget, monkeypatch):
    rates, step = [], DetectionTraining.training_step

    def watched(self, batch, index):
        rates.append(self.trainer.optimizers[0].param_groups[-1]["lr"])
        return step(self, batch, index)

    monkeypatch.setattr(DetectionTraining, "training_step", watched)
    monkeypatch.setattr(DetectionTraining, "validation_step", lambda *_: pytest.fail("validated"))
    assert train(*LENET, "--run.overfit", "true", "--model.optimizer.lr", "1e-9", "--trainer.max_steps", "20") == 1
    assert rates == pytest.approx([5e-10, *[1e-9] * 19])  # after a warm-up of a tenth


def test_finds_a_rate(tmp_path, capsys):
    assert train(*LENET, "--run.find_rate", "true") == 0
    folder = tmp_path / "runs/lenet/1"
    printed = capsys.readouterr().out
    suggested = float(re.search(r"--model\.optimizer\.lr (\S+),", printed)[1])
    assert 1e-4 < suggested < 1
    assert {path.name for path in folder.iterdir()} == {"rate_curve.csv", "rate_curve.png"}


def test_fits_the_last_layer(tmp_path, capsys):
    assert train(*LENET, "--run.linear", "softmax") == 0
    printed = capsys.readouterr().out
    assert printed.count("right in cross-validation") == 5
    folder = tmp_path / "runs/lenet/1"
    errors = json.loads((folder / "results.json").read_text())
    assert 0 <= errors["top1_error"] <= 1
    model = load(folder / "checkpoints/best.ckpt")
    assert model.resize == (32, 32, True)
    assert model.categories == [row["category"] for row in errors["per_class"]]
    assert len(list((tmp_path / "runs/lenet/features").iterdir())) == 1
    assert (folder / "report.html").exists()


RCNN = """
trainer: {max_epochs: 1, accelerator: cpu, enable_progress_bar: false, enable_model_summary: false}
model:
  detector:
    class_path: sightline.detectors.rcnn
    init_args: {backbone: resnet10_narrow, norm: batch, proposer: sliding_window, proposals: 30, size: 32, context: 4}
data: {batch_size: 4, min_size: 64, max_size: 64, num_workers: 0, proposal_cache: proposals}
"""
PICTURES = ["--data.shapes.train_images", "8", "--data.shapes.val_images", "4", "--data.shapes.size", "64"]


@pytest.mark.slow
def test_fits_machines_after_training(tmp_path, capsys, forget):
    (tmp_path / "regions.yaml").write_text(RCNN)
    assert train("regions.yaml", *PICTURES, "--run.machines", "true") == 0
    folder = tmp_path / "runs/regions/1"
    assert "new hard negatives by round" in capsys.readouterr().out
    model = load(folder / "checkpoints/best.ckpt")
    assert model.roi_heads.machines
    assert not model.roi_heads.box_predictor.cls_score.weight[0].any()
    results = json.loads((folder / "results.json").read_text())
    assert {"AP", "train_seconds"} <= results.keys()
    assert not (folder / "features").exists()  # they may be large, and no other run has these weights

    forget()
    assert train("--resume", "runs/regions/1") == 0  # as after a stop while they were fitted
    assert json.loads((folder / "results.json").read_text())["AP"] == results["AP"]
    assert not (folder / "features").exists()  # they may be large, and no other run has these weights


def test_fits_machines_to_given_weights(tmp_path, forget):
    (tmp_path / "regions.yaml").write_text(RCNN)
    assert train("regions.yaml", *PICTURES, "--run.machines", "true", "--trainer.max_epochs", "0") == 0
    folder = tmp_path / "runs/regions/1"
    assert load(folder / "checkpoints/best.ckpt").roi_heads.machines
    assert (folder / "report.html").exists()
    assert not (folder / "checkpoints/last.ckpt").exists()


def test_thaws_on_a_plateau_and_logs_ratios(tmp_path):
    assert train(*LENET, "--run.unfreeze", "plateau", "--run.unfreeze_patience", "1", "--run.ratios", "true") == 0
    with (tmp_path / "runs/lenet/1/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["update_ratio/all"]]
    assert len(rows) == 1  # once an epoch
    assert float(rows[0]["update_ratio/c1"]) == 0 < float(rows[0]["update_ratio/rest"]) < 1


@pytest.mark.parametrize("sampler", [pytest.param("random", marks=pytest.mark.slow), "tpe"])
def test_search(tmp_path, capsys, sampler):
    if sampler == "tpe":
        pytest.importorskip("optuna")
    ranges = ["--search.range", "model.optimizer.lr=1e-4:1e-3", "--search.range=data.batch_size=4:16"]
    assert train(*LENET, "--search", "3", *ranges, f"--search.sampler={sampler}") == 0
    folder = tmp_path / "runs/lenet_search/1"
    with (folder / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["round"] for row in rows] == (["tpe"] * 3 if sampler == "tpe" else ["coarse", "coarse", "fine"])
    for number, row in enumerate(rows, 1):
        run = folder / str(number)
        assert row["run"] == str(run.relative_to(tmp_path))
        config = yaml.safe_load((run / "config.yaml").read_text())
        assert config["model"]["optimizer"]["init_args"]["lr"] == float(row["model.optimizer.lr"])
        assert config["data"]["batch_size"] == int(row["data.batch_size"])
        assert json.loads((run / "results.json").read_text())["top1_error"] == pytest.approx(float(row["top1_error"]))
    assert "top1_error" in capsys.readouterr().out


def test_a_search_whose_runs_all_fail(capsys):
    assert train(*QUICK, "--search", "2", "--search.range", "model.optimizer.lr=1e20:1e30") == 1
    printed = capsys.readouterr()
    assert printed.out.count("failed") == 2
    assert printed.err.count("this run failed: the loss became") == 2


def test_an_interrupted_search_shows_what_it_found(tmp_path, capsys):
    values = iter([0.25, None])

    def run(options, parent):
        try:
            return Outcome("AP", "max", next(values), str(parent() / "1"))
        except StopIteration:
            raise KeyboardInterrupt from None

    plan = take_plan(["--search", "9", "--search.range=lr=0.1:10"])
    with pytest.raises(KeyboardInterrupt):
        search(plan, str(tmp_path), "x", run)
    lines = (tmp_path / "x_search/1/results.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == ["AP", "0.25", ""]
    assert "failed" in capsys.readouterr().out


def test_options_of_a_search_are_taken_out():
    argv = [
        "lenet",
        "--search",
        "6",
        "--data",
        "x",
        "--search.range",
        "a=1:2",
        "--search.range=b=1:3",
        "--search.seed",
        "4",
    ]
    plan = take_plan(argv)
    assert argv == ["lenet", "--data", "x"]
    assert (plan.trials, list(plan.space), plan.sampler, plan.seed) == (6, ["a", "b"], "random", 4)
    assert take_plan(argv) is None
    assert set(take_plan(["--search=3"]).space) == {"model.optimizer.lr", "model.optimizer.weight_decay"}


MISTAKES = {
    "option": (["--trainer.max_epoch", "3"], "did you mean --trainer.max_epochs?"),
    "nested option": (["--data.batchsize", "3"], "did you mean --data.batch_size?"),
    "recipe": (["faster_rcn"], "did you mean 'faster_rcnn'?"),
    "data": (["--data", "nowhere/at/all"], "nowhere/at/all"),
    "no recipe": (["best.ckpt"], "no recipe 'best.ckpt'. There are alexnet"),
    "a file that is no recipe": ([__file__], "is no recipe: name one of `sightline train --list`"),
    "value": (["--trainer.max_epochs", "many"], "--trainer.max_epochs must be a whole number or null, got 'many'"),
    "value or word": (
        ["--run.unfreeze", "never"],
        "--run.unfreeze must be a list of whole numbers such as [2,4] or plateau or null, got 'never'",
    ),
    "optimiser": (["--model.optimizer", "Adamm"], "--model.optimizer knows no 'Adamm'; did you mean 'Adam'?"),
    "optimiser's option": (
        ["--model.optimizer.lrr", "1"],
        "--model.optimizer is built with no 'lrr'; did you mean 'lr'?",
    ),
    "schedule": (["--model.schedule", "Cosine"], "--model.schedule knows no 'Cosine'; did you mean 'CosineDecay'?"),
    "schedule's option": (
        ["--model.schedule.warmup", "1"],
        "--model.schedule is built with no 'warmup'; did you mean 'warmup_steps'?",
    ),
    "a device that there is not": ([*QUICK, "--trainer.accelerator", "tpu"], "--trainer options that cannot be met"),
    "a strategy that there is not": ([*QUICK, "--trainer.strategy", "dpp"], "--trainer options that cannot be met"),
    "class": (["--model.detector", "sightline.detectors.faster_rcn"], "faster_rcn"),
    "builder's option": (["--model.detector.init_args.backbon", "resnet18_fpn"], "backbon"),
    "backbone": (
        ["--model.detector.init_args.backbone", "resnet19_fpn"],
        "did you mean 'resnet10_narrow_fpn'?|resnet18_fpn",
    ),
    "resume": (["--resume", "runs/nothing"], "no run folder"),
    "value that a class refuses": (
        ["yolox_nano", "--data.mixing.mosaic", "2"],
        "mixing.mosaic must lie in [0, 1], got 2",
    ),
    "part of an option": (
        ["yolox_nano", "--data.mixing.mosiac", "1"],
        "--data.mixing has no 'mosiac'; did you mean 'mosaic'?; it has mosaic, mixup",
    ),
    "part of an option in braces": (
        ["yolox_nano", "--data.augment", "{flipp: 1}"],
        "--data.augment has no 'flipp'; did you mean 'flip'?; it has flip",
    ),
    "a word among few": (
        ["--run.linear", "svn"],
        "--run.linear must be one of svm, softmax, null, got 'svn'; did you mean 'svm'?",
    ),
    "a number of classes that the data do not have": (
        [*QUICK, "--model.detector.init_args.num_classes", "20"],
        "--model.detector.init_args.num_classes 20: the data have 6 categories",
    ),
    "two in place of training": (["--run.overfit", "true", "--run.find_rate", "true"], "ask for one of them"),
    "linear model of a detector": ([*QUICK, "--run.linear", "svm"], "last layer of a classifier; FasterRCNN is none"),
    "machines of a detector": ([*QUICK, "--run.machines", "true"], "for R-CNN, which looks at one region at a time"),
    "machines in place of training": (["--run.machines", "true", "--run.overfit", "true"], "comes after training"),
    "search without a number": (["--search.sampler", "tpe"], "--search 12"),
    "search of no number": (["--search", "many"], "--search needs a whole number"),
    "search of no runs": (["--search", "0"], "at least 1 trial, got 0"),
    "range": (["--search", "2", "--search.range", "model.optimizer.lr=0:1"], "must have 0 < low < high"),
    "range's option": ([*QUICK, "--search", "2", "--search.range", "model.optimizer.lrr=1e-3:1"], "lrr"),
    "sampler": (["--search", "2", "--search.sampler", "grid"], "no sampler 'grid'; there are random, tpe"),
    "search of no training": ([*QUICK, "--search", "2", "--run.overfit", "true"], "leave out"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes_end_in_one_message(arguments, message, capsys, tmp_path):
    assert train(*arguments) == 2
    error = capsys.readouterr().err
    assert any(part in error for part in message.split("|")), error
    assert "Traceback" not in error
    assert not list(tmp_path.rglob("*.ckpt"))


def test_every_recipe_is_listed_and_parses(capsys):
    assert train("--list") == 0
    listed = capsys.readouterr().out.splitlines()
    for name, text in recipes().items():
        (line,) = (line for line in listed if line.startswith(f"{name} "))
        assert line.index(text) == listed[0].index("AlexNet")  # all descriptions stand in one column
        assert len(text) > 20
        with pytest.raises(SystemExit) as end:
            train(name, "--print_config")
        assert end.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        rooms = {
            "detector": ("detectors", "segmentation"),
            "captioner": ("captioning",),
            "segmenter": ("segmentation",),
        }
        (network,) = config["model"].keys() & rooms.keys()
        _, room, _ = config["model"][network]["class_path"].split(".")
        assert room in rooms[network]


def test_help_is_short(capsys):
    assert train("--help") == 0
    assert len(capsys.readouterr().out.splitlines()) < 30
