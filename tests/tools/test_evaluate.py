"""`sightline evaluate`: a checkpoint on data, and predictions against truth."""

import json

import pytest
import torch

from sightline.detectors import faster_rcnn, save
from sightline.tools.main import main


@pytest.fixture
def checkpoint(tmp_path):
    """An untrained detector of the shapes' categories: its scores are poor, but they are scores."""
    torch.manual_seed(0)
    model = faster_rcnn(
        "resnet10_narrow_fpn", 6, norm="batch", anchor_sizes=((16,), (32,), (64,), (96,)), proposals=20, head_width=16
    )
    model.categories, model.resize = ["circle", "square", "triangle", "star", "cross", "ring"], (64, 64)
    save(model, tmp_path / "model.ckpt")
    return str(tmp_path / "model.ckpt")


def test_coco_oracle(real_data, tmp_path, capsys):
    """The published numbers of the COCO api's example, through the command."""
    folder = real_data("map-oracles")
    expected = json.loads((folder / "EXPECTED.json").read_text())["coco-fake100"]
    out = tmp_path / "numbers.json"
    files = {"--predictions": folder / expected["dt_bbox"], "--truth": folder / expected["gt"], "--json": out}
    assert main(["evaluate", *(str(part) for pair in files.items() for part in pair)]) == 0
    numbers = json.loads(out.read_text())
    assert [numbers[key] for key in expected["keys"]] == pytest.approx(expected["bbox"], abs=1e-9)
    assert "0.505" in capsys.readouterr().out


def test_data_of_other_categories(checkpoint, real_data, capsys):
    data = real_data("raccoon")
    assert main(["evaluate", checkpoint, "--data", str(data)]) == 2
    assert "does not know raccoon" in capsys.readouterr().err


def test_on_shapes_with_report_and_predictions(checkpoint, tmp_path, capsys):
    report, numbers, found = tmp_path / "report", tmp_path / "numbers.json", tmp_path / "found.json"
    files = ["--report", str(report), "--json", str(numbers), "--save-predictions", str(found)]
    assert main(["evaluate", checkpoint, "--data", "shapes", "--voc", *files]) == 0
    assert (report / "report.html").exists()
    assert json.loads(numbers.read_text()).keys() >= {"AP", "AP50", "per_class", "seconds", "voc"}
    assert "Pascal VOC" in capsys.readouterr().out
    rows = json.loads(found.read_text())
    assert {row["category_id"] for row in rows} <= set(range(1, 7))
    assert {row["image_id"] for row in rows} <= set(range(1, 201))
    assert len(rows) > 0


MISTAKES = {
    "nothing": ([], "name either a checkpoint"),
    "no truth": (["--predictions", "results.json"], "needs --truth"),
    "no such checkpoint": (["nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    "no such data": (["CHECKPOINT", "--data", "nowhere"], "nowhere"),
    "no such split": (["CHECKPOINT", "--split", "vall"], "no part 'vall'"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(arguments, message, checkpoint, capsys):
    assert main(["evaluate", *(checkpoint if a == "CHECKPOINT" else a for a in arguments)]) == 2
    assert message in capsys.readouterr().err
