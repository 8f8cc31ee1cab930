"""The command that trains and times R-CNN, Fast R-CNN and Faster R-CNN side by side."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from sightline.datasets.coco import write_coco
from sightline.datasets.detection import read_picture
from sightline.datasets.images import write_image
from sightline.datasets.shapes import shapes_table
from sightline.detectors import load
from sightline.tools.benchmark_lineage import PAPER, Row, _arguments, about, main, text_table
from sightline.tools.main import main as sightline

TINY = [
    *("--backbone", "resnet10_narrow", "--proposer", "sliding_window", "--proposals", "30", "--size", "64"),
    *(
        "--max-size",
        "64",
        "--crop",
        "32",
        "--head-width",
        "32",
        "--svd",
        "8",
        "4",
        "--anchors",
        "16",
        "32",
        "--epochs",
        "1",
    ),
    *("--rcnn-epochs", "1", "--workers", "0", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A COCO data set of ten built-in pictures to train on and four to test on."""
    folder = tmp_path_factory.mktemp("data")
    for split, count in (("train", 10), ("val", 4)):
        table = shapes_table(split, count, 64, 0)
        paths = [str(folder / split / f"{i}.png") for i in range(count)]
        (folder / split).mkdir()
        for path, source in zip(paths, table.paths, strict=True):
            write_image(path, read_picture(source))
        write_coco(replace(table, paths=paths), folder / f"instances_{split}.json")
    return folder


def test_trains_all_and_goes_on_where_it_stopped(pictures, tmp_path, capsys):
    arguments = ["benchmark", "lineage", "--data", str(pictures), *TINY, "--output", str(tmp_path)]
    assert sightline(arguments) == 0
    shown = capsys.readouterr().out
    assert all(f"\n{name}" in shown for name in PAPER)
    assert "10 pictures to train on, 4 to test on" in shown
    rows = {row["name"]: Row(**row) for row in json.loads((tmp_path / "lineage.json").read_text())["rows"]}
    assert rows["R-CNN"].propose == rows["Fast R-CNN"].propose > 0 == rows["Faster R-CNN"].propose
    assert rows["Fast R-CNN"].gflops > rows["Fast R-CNN, truncated SVD"].gflops > 0
    assert all(row.train > 0 and row.test > 0 for name, row in rows.items() if "SVD" not in name)
    assert load(tmp_path / "R-CNN.ckpt").roi_heads.machines

    (tmp_path / "Faster R-CNN.json").unlink()  # measured again, not trained again
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.ckpt")}
    assert sightline(arguments) == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.ckpt")} == before
    again = {row["name"]: Row(**row) for row in json.loads((tmp_path / "lineage.json").read_text())["rows"]}
    assert again["R-CNN"] == rows["R-CNN"]
    assert again["Faster R-CNN"].AP == rows["Faster R-CNN"].AP

    assert sightline([*arguments, "--rate", "0.1"]) == 2
    assert "other options (rate)" in capsys.readouterr().err


def test_the_table():
    rows = [Row("R-CNN", 880.0, 14.6, 2.0, 300.0, 0.3, 0.66), Row("Fast R-CNN", 100.0, 0.1, 2.0, 3.0, 0.31, 0.67)]
    _, first, second = text_table(rows).splitlines()
    assert " ".join(first.split()) == "R-CNN 880 1.0 (1) 14.600 1.0 (1) 16.600 1.0 (1) 300.0 1.0 66.0 (66.0) 30.0"
    expected = "Fast R-CNN 100 8.8 (8.8) 0.100 146.0 (146) 2.100 7.9 (25) 3.0 100.0 67.0 (66.9) 31.0"
    assert " ".join(second.split()) == expected


def test_about_one_picture():
    options = _arguments(["--data", "few/", "--epochs", "1"])
    study = SimpleNamespace(arguments=options, train=["a"], val=["b"], device=torch.device("cpu"))
    assert about(study).startswith("few/: 1 picture to train on, 1 to test on, short side 600; mobilenet_v2 (random")
    assert "crops 224 pixels; 1 epoch, R-CNN 12, rate 0.005.\n" in about(study)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--backbone", "mobilenet_v9", "--data", "nowhere"],
            "no backbone 'mobilenet_v9'; did you mean 'mobilenet_v2'?",
        ),
        (["--trainable-stages", "9", "--data", "nowhere"], "stages"),
        (["--proposer", "selective", "--data", "nowhere"], "no proposer 'selective'"),
        (["--val-split", "nothing"], "nothing"),
    ],
)
def test_mistakes(pictures, tmp_path, capsys, options, message):
    assert sightline(["benchmark", "lineage", "--data", str(pictures), *TINY, *options, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "options.json").exists()  # the same folder is free for what was meant


@pytest.mark.parametrize(("option", "least"), [("--epochs", 1), ("--crop", 1), ("--svd", 1), ("--workers", 0)])
def test_numbers_too_small(capsys, option, least):
    with pytest.raises(SystemExit) as end:
        main([option, *[str(least - 1)] * (2 if option == "--svd" else 1)])
    assert end.value.code == 2
    assert f"must be a whole number from {least}, got '{least - 1}'" in capsys.readouterr().err


def test_help(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    assert "Girshick" in capsys.readouterr().out
