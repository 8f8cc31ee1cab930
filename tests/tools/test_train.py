"""`sightline train` from the command to the run folder, its mistakes and its resumption."""

import csv
import json

import pytest
import yaml

from sightline.detectors import load
from sightline.tools.main import main
from sightline.tools.train import recipes

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


MISTAKES = {
    "option": (["--trainer.max_epoch", "3"], "did you mean --trainer.max_epochs?"),
    "nested option": (["--data.batchsize", "3"], "did you mean --data.batch_size?"),
    "recipe": (["faster_rcn"], "did you mean 'faster_rcnn'?"),
    "data": (["--data", "nowhere/at/all"], "nowhere/at/all"),
    "value": (["--trainer.max_epochs", "many"], "max_epochs"),
    "class": (["--model.detector", "sightline.detectors.faster_rcn"], "faster_rcn"),
    "builder's option": (["--model.detector.init_args.backbon", "resnet18_fpn"], "backbon"),
    "backbone": (
        ["--model.detector.init_args.backbone", "resnet19_fpn"],
        "did you mean 'resnet10_narrow_fpn'?|resnet18_fpn",
    ),
    "resume": (["--resume", "runs/nothing"], "no run folder"),
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
    listed = capsys.readouterr().out
    for name, text in recipes().items():
        assert name in listed
        assert len(text) > 20
        with pytest.raises(SystemExit) as end:
            train(name, "--print_config")
        assert end.value.code == 0
        config = yaml.safe_load(capsys.readouterr().out)
        assert config["model"]["detector"]["class_path"].startswith("sightline.detectors.")


def test_help_is_short(capsys):
    assert train("--help") == 0
    assert len(capsys.readouterr().out.splitlines()) < 30
