"""`sightline evaluate`: a checkpoint on data, and predictions against truth."""

import json
from dataclasses import replace

import pytest
import torch

from sightline.datasets.coco import write_coco
from sightline.datasets.detection import read_picture
from sightline.datasets.images import write_image
from sightline.datasets.shapes import CATEGORIES, shapes_table
from sightline.detectors import (
    autoencoder,
    average_weights,
    classifier,
    fast_rcnn,
    faster_rcnn,
    load,
    localization,
    save,
)
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


@pytest.fixture
def localizer(tmp_path):
    torch.manual_seed(0)
    model = localization("resnet10_narrow", 6, norm="batch", landmarks=4, head_width=16)
    model.categories, model.resize = ["circle", "square", "triangle", "star", "cross", "ring"], (64, 64, True)
    save(model, tmp_path / "localizer.ckpt")
    return str(tmp_path / "localizer.ckpt")


def test_a_localizer_with_its_own_table_and_report(localizer, tmp_path, capsys):
    numbers, report = tmp_path / "numbers.json", tmp_path / "report"
    options = ["--largest", "1", "--json", str(numbers), "--report", str(report)]
    assert main(["evaluate", localizer, "--data", "shapes", *options]) == 0
    out = capsys.readouterr().out
    assert "class or box (IoU 0.5) wrong, best answer" in out
    assert "PCK" in out
    header = next(line for line in out.splitlines() if line.startswith("category"))
    assert header.split() == ["category", "objects", "top1_error", "localization_error", "IoU"]
    content = json.loads(numbers.read_text())
    assert content.keys() >= {"localization_error", "IoU", "landmark_error", "PCK", "per_class", "seconds"}
    assert sum(row["truths"] for row in content["per_class"]) == 200
    assert "localization error" in (report / "report.html").read_text(encoding="utf-8")


def test_a_localizer_has_no_voc_scores(localizer, capsys):
    assert main(["evaluate", localizer, "--voc"]) == 2
    assert "made for localization: leave --voc out" in capsys.readouterr().err


@pytest.fixture
def classifiers(tmp_path):
    """Two untrained classifiers of the shapes' categories and 32 pixels."""
    paths = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = classifier("lenet", 6)
        model.categories, model.resize = list(CATEGORIES), (32, 32, True)
        paths.append(str(tmp_path / f"classifier{seed}.ckpt"))
        save(model, paths[-1])
    return paths


def numbers_of(*arguments, folder):
    """What `evaluate` writes of the largest shapes."""
    out = folder / "numbers.json"
    assert main(["evaluate", *arguments, "--largest", "1", "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_a_classifier_by_its_crops(classifiers, tmp_path, capsys):
    whole = numbers_of(classifiers[0], folder=tmp_path)
    same = numbers_of(classifiers[0], "--crops", "1", "--scales", "32", folder=tmp_path)
    ten = numbers_of(classifiers[0], "--crops", "10", "--scales", "36", "40", "--batch", "64", folder=tmp_path)
    assert 0 < whole["top5_error"] < whole["top1_error"] < 1
    assert same["top1_error"] == whole["top1_error"]  # a square picture's one crop is the picture
    assert ten.keys() == whole.keys()
    assert "top1_error" in capsys.readouterr().out


def test_several_checkpoints_as_one(classifiers, tmp_path):
    alone = numbers_of(classifiers[0], folder=tmp_path)
    again = numbers_of(classifiers[0], "--ensemble", classifiers[0], folder=tmp_path)
    assert again["top1_error"] == alone["top1_error"]
    mean = average_weights(classifiers, device="cpu")
    save(mean, tmp_path / "mean.ckpt")
    expected = numbers_of(str(tmp_path / "mean.ckpt"), folder=tmp_path)
    found = numbers_of(classifiers[0], "--average", classifiers[1], folder=tmp_path)
    assert found["per_class"] == expected["per_class"]


def test_an_autoencoder_has_no_scores(tmp_path, capsys):
    model = autoencoder("lenet")
    model.categories, model.resize = list(CATEGORIES), (32, 32, True)
    save(model, tmp_path / "autoencoder.ckpt")
    assert main(["evaluate", str(tmp_path / "autoencoder.ckpt")]) == 2
    assert "finds nothing to show or to score" in capsys.readouterr().err


@pytest.fixture
def few(tmp_path):
    """Six pictures of shapes, as files."""
    table = shapes_table("val", 6, 128)
    table.paths = [str(tmp_path / "few" / f"{i}.png") for i in range(6)]
    for i, path in enumerate(table.paths):
        write_image(path, read_picture(shapes_table("val", 6, 128).paths[i]))
    write_coco(replace(table, segmentations=None, captions=None), tmp_path / "few" / "instances_few.json")
    return ["--data", str(tmp_path / "few"), "--split", "instances_few"]


def test_several_looks(checkpoint, few, tmp_path):
    """Through tiles as large as the pictures the scores are the plain ones, else not."""
    scores = []
    for options in ("", "--tiles 128", "--tiles 64", "--flip --multiscale 1 1.5"):
        out = tmp_path / "numbers.json"
        assert main(["evaluate", checkpoint, *few, "--json", str(out), *options.split()]) == 0
        numbers = json.loads(out.read_text())
        scores.append({name: numbers[name] for name in ("AP", "AP50", "AR100", "ARs")})
    plain, one_tile, *others = scores
    assert plain["AR100"] > 0
    assert one_tile == pytest.approx(plain)
    assert all(other != pytest.approx(plain) for other in others)


MISTAKES = {
    "nothing": ([], "name either a checkpoint"),
    "no truth": (["--predictions", "results.json"], "needs --truth"),
    "no such checkpoint": (["nowhere.ckpt"], "no checkpoint at nowhere.ckpt"),
    "no such data": (["CHECKPOINT", "--data", "nowhere"], "nowhere"),
    "no such split": (["CHECKPOINT", "--split", "vall"], "no part 'vall'"),
    "scales of nothing": (["CHECKPOINT", "--scales", "256"], "--crops 1 or --crops 10"),
    "crops of a detector": (["CHECKPOINT", "--crops", "10"], "this model's task is detection"),
    "crops and flips": (["CHECKPOINT", "--crops", "10", "--flip"], "leave out --multiscale, --flip and --upturn"),
    "overlap of nothing": (["CHECKPOINT", "--overlap", "0.5"], "say how large they are, too: --tiles 640"),
    "tiles too small": (["CHECKPOINT", "--tiles", "8"], "at least 32 pixels a side, got 8"),
    "no such scale": (["CHECKPOINT", "--multiscale", "-1"], "cannot look several times: scales must be"),
    "different sizes": (
        ["CHECKPOINT", "--ensemble", "OTHER"],
        "cannot answer together: model 2 of the ensemble has resize",
    ),
    "not the same": (["CHECKPOINT", "--average", "OTHER"], "its resize is [96, 96], there it is [64, 64]"),
}


@pytest.mark.parametrize(("arguments", "message"), MISTAKES.values(), ids=MISTAKES.keys())
def test_mistakes(arguments, message, checkpoint, tmp_path, capsys):
    files = {"CHECKPOINT": checkpoint, "OTHER": str(tmp_path / "other.ckpt")}
    if "OTHER" in arguments:
        other = load(checkpoint, device="cpu")
        other.resize = (96, 96)
        save(other, files["OTHER"])
    assert main(["evaluate", *(files.get(argument, argument) for argument in arguments)]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def regional(tmp_path, monkeypatch):
    """An untrained Fast R-CNN of the shapes' categories, which looks at a sliding window's boxes."""
    monkeypatch.setenv("SIGHTLINE_CACHE", str(tmp_path / "elsewhere"))
    torch.manual_seed(0)
    small = {"norm": "batch", "proposer": "sliding_window", "proposals": 10, "head_width": 16}
    model = fast_rcnn("resnet10_narrow", 6, **small)
    model.categories, model.resize = list(CATEGORIES), (64, 64)
    save(model, tmp_path / "regional.ckpt")
    return str(tmp_path / "regional.ckpt")


def test_a_model_s_proposer_and_its_cache(regional, tmp_path):
    assert main(["evaluate", regional, "--proposal-cache", str(tmp_path / "cache")]) == 0
    (kept,) = (tmp_path / "cache").iterdir()
    assert len(list(kept.iterdir())) == 200
    assert not (tmp_path / "elsewhere").exists()


def test_proposals_from_a_file(regional, tmp_path):
    """All a model may look at is one box of one picture: what it finds is there."""
    boxes, found = tmp_path / "boxes.json", tmp_path / "found.json"
    boxes.write_text(json.dumps([{"image_id": 7, "bbox": [20, 30, 40, 50], "score": 1.0}]))
    assert main(["evaluate", regional, "--proposals", str(boxes), "--save-predictions", str(found)]) == 0
    assert not (tmp_path / "elsewhere").exists(), "the proposer worked although a file was given"
    rows = json.loads(found.read_text())
    assert {row["image_id"] for row in rows} == {7}
    assert all(row["bbox"] == pytest.approx([20, 30, 40, 50], abs=10) for row in rows)


def test_tiles_are_proposed_anew(regional, tmp_path, capsys):
    assert main(["evaluate", regional, "--tiles", "64", "--proposal-cache", str(tmp_path / "cache")]) == 2
    assert "leave out --proposals and --proposal-cache" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--proposals", "--proposal-cache"])
def test_models_that_propose_take_no_proposals(checkpoint, option, capsys):
    assert main(["evaluate", checkpoint, option, "somewhere"]) == 2
    assert "takes no proposals (it finds its own): leave out --proposals" in capsys.readouterr().err
