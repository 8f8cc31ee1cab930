"""`sightline train` of models that give masks: run folders, resumption, stages, class weights, and mistakes."""

import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image

from sightline.datasets.shapes import CATEGORIES
from sightline.datasets.table import DataError
from sightline.segmentation import load
from sightline.tools.train import main as train_main
from sightline.tools.train_segmentation import SegmentationCLI
from sightline.training.segmentation import SegmentationTraining

DATA = [
    "--data.shapes.train_images", "32", "--data.shapes.val_images", "4", "--data.shapes.size", "48",
    "--data.batch_size", "8", "--data.min_size", "48", "--data.max_size", "48", "--data.num_workers", "0",
    "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false",
]  # fmt: skip
QUICK = ["fcn8s_lite", *DATA]
BUILDER = "--model.segmenter.init_args"


def train(*arguments):
    os.environ.pop("SIGHTLINE_RUN_FOLDER", None)  # each command is a process of its own; here they share one
    return train_main(list(arguments))


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SIGHTLINE_RUN_FOLDER", "")


@pytest.fixture
def unscored(monkeypatch):
    monkeypatch.setattr(SegmentationCLI, "finish", lambda *_: None)


def test_a_run_folder(capsys):
    assert train(*QUICK) == 0
    assert "mean_IoU" in capsys.readouterr().out
    run = Path("runs/fcn8s_lite/1")
    model = load(run / "checkpoints" / "best.ckpt", device="cpu")
    assert model.categories == ["background", *CATEGORIES]
    numbers = json.loads((run / "results.json").read_text())
    assert 0 < numbers["mean_IoU"] < numbers["pixel_accuracy"] <= 1
    assert (run / "report.html").stat().st_size > 10_000
    with (run / "metrics.csv").open() as file:
        scores = [row["mean_IoU"] for row in csv.DictReader(file) if row.get("mean_IoU")]
    assert len(scores) == 2


@pytest.mark.slow
def test_stopped_and_resumed_it_is_an_uninterrupted_run(unscored, monkeypatch):
    run = [*QUICK, "--run.ema", "0.9", "--model.class_weights", "median_frequency", f"{BUILDER}.auxiliary", "true"]
    assert train(*run) == 0
    step = SegmentationTraining.training_step

    def interrupted(self, batch, index):
        if self.global_step == 6:  # of 8
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(SegmentationTraining, "training_step", interrupted)
        with pytest.raises(SystemExit):
            train(*run)
    assert train("--resume", "runs/fcn8s_lite/2") == 0
    runs = [torch.load(f"runs/fcn8s_lite/{i}/checkpoints/last.ckpt", weights_only=True) for i in (1, 2)]
    for state in ("state_dict", "current_model_state"):
        whole, resumed = (run[state] for run in runs)
        assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_rare_categories_count_more(unscored, monkeypatch):
    weights = []
    monkeypatch.setattr(
        SegmentationTraining, "on_train_start", lambda self: weights.append(self.segmenter.loss.weights.clone())
    )
    assert train(*QUICK, "--model.class_weights", "median_frequency", "--trainer.max_epochs", "1") == 0
    assert weights[0].argmin() == 0  # the background
    assert weights[0].median() == 1


def test_the_paper_s_stages(unscored):
    """FCN-16s begins where FCN-32s ended."""
    stages = [*DATA, f"{BUILDER}.backbone", "resnet10_narrow", f"{BUILDER}.backbone_weights", "null"]
    stages += [f"{BUILDER}.head_width", "16", "--trainer.max_epochs", "1", "--data.augment.crop", "[48,48]"]
    assert train("fcn32s", *stages) == 0
    coarse = load("runs/fcn32s/1/checkpoints/best.ckpt", device="cpu")
    weights = ["--model.segmenter.init_args.weights", "runs/fcn32s/1/checkpoints/best.ckpt"]
    assert train("fcn16s", *stages, *weights, "--model.optimizer.lr", "0") == 0
    finer = load("runs/fcn16s/1/checkpoints/best.ckpt", device="cpu").state_dict()
    learnt = {name: value for name, value in coarse.state_dict().items() if "score" in name}
    assert learnt
    assert all(torch.equal(finer[name], value) for name, value in learnt.items())


def test_a_segmenter_s_backbone_serves_another_model(unscored):
    assert train(*QUICK, "--trainer.max_epochs", "1") == 0
    weights = "runs/fcn8s_lite/1/checkpoints/best.ckpt"
    assert (
        train(*QUICK, f"{BUILDER}.backbone_weights", weights, "--trainer.max_epochs", "1", "--model.optimizer.lr", "0")
        == 0
    )
    first, second = (load(f"runs/fcn8s_lite/{i}/checkpoints/best.ckpt", device="cpu").state_dict() for i in (1, 2))
    convolutions = [name for name in first if name.startswith("backbone.") and name.endswith("conv1.weight")]
    assert convolutions
    assert all(torch.equal(first[name], second[name]) for name in convolutions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--run.linear", "svm"], "--run.linear is for detectors and classifiers, not for label maps: leave it out"),
        ([f"{BUILDER}.head_widht", "16"], "'head_widht'; did you mean 'head_width'"),
        ([f"{BUILDER}.loss", "lovas"], "no loss 'lovas' of label maps; did you mean 'lovasz'"),
        (
            ["--model.class_weights", "median_frequenzy"],
            "--model.class_weights must be one of median_frequency, null, got 'median_frequenzy'; "
            "did you mean 'median_frequency'?",
        ),
        ([f"{BUILDER}.num_classes", "21"], f"{BUILDER}.num_classes 21: the data have 7 categories, for which"),
        (["--model.segmenter.num_classes=5"], "--model.segmenter.num_classes 5: the data have 7 categories"),
        (["--alternating"], "makes another kind of model: leave --alternating out"),
        (["--data.augment.scale", "[2,1]"], "0 < low <= high"),
    ],
)
def test_mistakes_stop_before_a_folder_is_made(options, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 (held against the message below)
        train(*QUICK, *options)
    assert message in str(caught.value)
    assert not Path("runs").exists()


def test_a_configuration_s_number_of_classes_is_that_of_its_own_data(unscored, capsys):
    """A run's configuration serves other data; and the data's own number may be said."""
    with pytest.raises(SystemExit):
        train(*QUICK, "--print_config")
    Path("other.yaml").write_text(capsys.readouterr().out.replace("num_classes: 21", "num_classes: 3"))
    assert "num_classes: 3\n" in Path("other.yaml").read_text()
    assert train("other.yaml", f"{BUILDER}.num_classes", "7", "--trainer.max_epochs", "0") == 0
    assert train("other.yaml", "--trainer.max_epochs", "0") == 0
    assert len(load("runs/other/2/checkpoints/best.ckpt", device="cpu").categories) == 7


def test_masks_are_not_learnt_from_boxes(tmp_path):
    (tmp_path / "data").mkdir()
    boxes = [{"id": i, "image_id": i, "category_id": 1, "bbox": [4, 4, 20, 20], "area": 400} for i in range(1, 9)]
    images = [{"id": i, "file_name": f"{i}.png", "height": 48, "width": 48} for i in range(1, 9)]
    for image in images:
        Image.new("RGB", (48, 48)).save(tmp_path / "data" / image["file_name"])
    truth = {"images": images, "annotations": boxes, "categories": [{"id": 1, "name": "thing"}]}
    (tmp_path / "data" / "instances.json").write_text(json.dumps(truth))
    with pytest.raises(DataError, match="no object has a mask, from which masks could be learnt"):
        train("mask_rcnn_lite", "--data", str(tmp_path / "data/instances.json"), *DATA)
    assert not Path("runs").exists()


def test_objects_with_masks(capsys):
    assert train("mask_rcnn_lite", *DATA, "--trainer.max_epochs", "1") == 0
    assert "mask" in capsys.readouterr().out
    numbers = json.loads(Path("runs/mask_rcnn_lite/1/results.json").read_text())
    assert {"AP", "mask_AP"} <= numbers.keys()
    assert load("runs/mask_rcnn_lite/1/checkpoints/best.ckpt", device="cpu").categories == list(CATEGORIES)
