"""Classifiers and autoencoders through `sightline train`: run folders, and pre-trained weights that go on to other runs."""

import csv
import json

import pytest
import torch

from sightline.detectors import load
from sightline.tools.main import main
from sightline.tools.train import recipes

QUICK = [
    "--data.path", "shapes", "--data.shapes.train_images", "16", "--data.shapes.val_images", "6",
    "--data.shapes.size", "32", "--data.batch_size", "4", "--data.num_workers", "0", "--trainer.max_epochs", "1",
    "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
]  # fmt: skip


@pytest.fixture
def train(tmp_path, monkeypatch):
    """A function that runs the command in a folder of its own, as if in a process of its own."""
    monkeypatch.chdir(tmp_path)

    def command(*arguments):
        monkeypatch.delenv("SIGHTLINE_RUN_FOLDER", raising=False)
        return main(["train", *arguments, *QUICK])

    return command


def test_a_classifiers_run_folder(train, tmp_path, capsys):
    assert train("lenet") == 0
    folder = tmp_path / "runs/lenet/1"
    results = json.loads((folder / "results.json").read_text())
    assert {"top1_error", "top5_error", "per_class"} <= results.keys()
    assert "top1_error" in capsys.readouterr().out
    with (folder / "metrics.csv").open() as file:
        assert {"top1_error", "train/loss_cls", "val/loss_cls"} <= set(next(csv.reader(file)))
    model = load(folder / "checkpoints/best.ckpt", device="cpu")
    assert (model.task, tuple(model.resize), len(model.categories)) == ("classification", (32, 32, True), 6)
    assert (folder / "report.html").exists()


@pytest.mark.slow
def test_a_classifiers_run_goes_on(train, tmp_path):
    """The configuration in the run folder runs again, the crops of training pictures too."""
    assert train("lenet", "--data.crop.scale", "[33, 35]") == 0
    assert train("--resume", "runs/lenet/1", "--trainer.max_epochs", "2") == 0
    config = (tmp_path / "runs/lenet/1/config.yaml").read_text()
    assert "scale:\n    - 33\n" in config.replace("      -", "    -")
    assert train("runs/lenet/1/config.yaml") == 0
    assert (tmp_path / "runs/config/1/results.json").exists()


def test_crops_of_another_size_than_the_network_sees_are_refused(train, capsys):
    assert train("lenet", "--data.min_size", "48", "--data.max_size", "48") == 2
    assert "--data.crop.size [48,48]" in capsys.readouterr().err


def test_from_an_autoencoder_to_a_classifier_and_a_detector(train, tmp_path, capsys):
    assert train("autoencoder") == 0
    best = tmp_path / "runs/autoencoder/1/checkpoints/best.ckpt"
    assert str(best.relative_to(tmp_path)) in capsys.readouterr().out
    learnt = load(best, device="cpu").backbone.state_dict()
    frozen = ["--model.detector.init_args.trainable_stages", "0"]
    assert train("lenet", "--model.detector.init_args.weights", str(best), *frozen) == 0
    heir = load(tmp_path / "runs/lenet/1/checkpoints/best.ckpt", device="cpu")
    for name, value in learnt.items():
        assert torch.equal(heir.backbone.state_dict()[name], value)
    detector = ["--model.detector.init_args.backbone", "lenet", "--model.detector.init_args.bins", "1"]
    assert train("localization", "--model.detector.init_args.backbone_weights", str(best), *detector) == 0


def test_the_papers_networks_have_recipes():
    wanted = {"lenet", "alexnet", "zfnet", "vgg16", "googlenet", "resnet18", "resnet50", "mobilenet", "autoencoder"}
    assert wanted <= recipes().keys()
