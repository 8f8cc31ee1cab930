"""Charts and the report: that they are drawn for any set, say the right numbers and escape names."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.evaluation import (
    Detections,
    ReportInputs,
    Truth,
    confidence_curves,
    draw_comparison,
    evaluate_coco,
    image_errors,
    plot_confidence,
    plot_confusion,
    plot_precision_recall,
    plot_training,
    write_report,
)
from sightline.evaluation.plots import clean
from sightline.evaluation.training_curves import read_metrics

NAMES = ["<b>bold</b>", "_under $x$ and a name that goes on and on and on"]


@pytest.fixture
def scored():
    """Image 1: one found, one missed, one wrong; image 2: one found."""
    truth = Truth(
        [1, 2], [0, 0, 1], [[0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 10]], [0, 1, 1], [100] * 3, [0] * 3, [0] * 3
    )
    found = Detections(
        [0, 0, 1], [[0, 0, 10, 10], [40, 0, 50, 10], [0, 0, 10, 10]], [0, 0, 1], np.float32([0.9, 0.6, 0.8])
    )
    return truth, found, evaluate_coco(truth, found, NAMES)


def test_confidence_curves(scored):
    _, found, result = scored
    curves = confidence_curves(result, found)

    def at(score):
        return int(np.searchsorted(curves.scores, score))

    assert curves.precision[0, at(0.5)] == 0.5
    assert curves.precision[0, at(0.7)] == 1
    assert np.isnan(curves.precision[0, at(0.95)])
    assert curves.recall[:, at(0.0)].tolist() == [1, 0.5]
    assert curves.f1[1, at(0.5)] == pytest.approx(2 / 3)
    # Above 0.6 the wrong one is gone, and up to 0.8 nothing right is lost; scores are floats of 32 bits.
    assert curves.best_score == pytest.approx(0.8)


def test_image_errors(scored):
    truth, found, result = scored
    errors = image_errors(truth, found, result, 0.5)
    assert errors.wrong.tolist() == [False, True, False]
    assert errors.missed.tolist() == [False, True, False]
    assert errors.per_image.tolist() == [2, 0]
    assert image_errors(truth, found, result, 0.85).per_image.tolist() == [1, 1]


def size(path):
    with Image.open(path) as image:
        image.load()
        return image.size


def coloured(path):
    """Share of pixels that are neither white nor grey."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    return ((pixels.max(-1) - pixels.min(-1)) > 40).mean()


@pytest.mark.parametrize("categories", [2, 40])
def test_charts(tmp_path, random_case, categories):
    case = random_case(0, images=30, objects=120, count=400, num_classes=categories)
    names = [NAMES[c % 2] + str(c) for c in range(categories)]
    result = evaluate_coco(case.truth, case.detections, names)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    plot_precision_recall(result, paths[0])
    plot_confidence(confidence_curves(result, case.detections), paths[1])
    matrix = np.random.default_rng(0).integers(0, 20, (categories + 1, categories + 1))
    plot_confusion(matrix, names, paths[2])
    assert all(min(size(path)) > 300 and coloured(path) > 0.001 for path in paths)


def test_charts_of_nothing(tmp_path, no_truth, no_detections):
    result = evaluate_coco(no_truth(0), no_detections, [])
    plot_precision_recall(result, tmp_path / "a.png")
    plot_confidence(confidence_curves(result, no_detections), tmp_path / "b.png")
    plot_confusion(np.zeros((1, 1), int), [], tmp_path / "c.png")
    assert all(size(tmp_path / f"{name}.png") for name in "abc")


def test_names_are_shown_as_they_are():
    assert clean("a\nb") == "a b"
    assert clean("$x$") == r"\$x\$"
    assert clean("_x") == " _x"
    assert clean("x" * 50, 10) == "x" * 9 + "…"


METRICS = "epoch,step,train/loss,val/loss,val/AP\n0,0,2.0,,\n0,10,nan,,\n0,19,1.0,1.5,0.25\n"


def test_training_curves(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text(METRICS)
    series = read_metrics(path)
    assert sorted(series) == ["train/loss", "val/AP", "val/loss"]
    assert [column.tolist() for column in series["train/loss"]] == [[0, 19], [2, 1]]
    plot_training(path, tmp_path / "training.png")
    assert coloured(tmp_path / "training.png") > 0.001
    path.write_text("epoch,step\n")
    plot_training(path, tmp_path / "training.png")


@pytest.mark.parametrize(("text", "message"), [(None, "cannot be read"), ("", "no column 'step'"), ("a,b\n", "step")])
def test_training_curves_refuse(tmp_path, text, message):
    path = tmp_path / "metrics.csv"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError, match=message):
        plot_training(path, tmp_path / "training.png")


@pytest.mark.parametrize("count", [0, 3, 40])
@pytest.mark.parametrize("shape", [(60, 200), (300, 20)], ids=str)
def test_drawing(tmp_path, shape, count):
    generator = torch.Generator().manual_seed(count)
    corner = torch.rand(count, 2, generator=generator) * 20
    boxes = torch.cat([corner, corner + 15], 1)
    instances = Instances(boxes, torch.arange(count), torch.rand(count, generator=generator))
    image = np.full((*shape, 3), 128, np.uint8)
    path = tmp_path / "picture.png"
    dashed = np.arange(count) % 2 == 0
    draw_comparison(image, instances, instances, NAMES, path, missed=dashed, wrong=dashed)
    assert (coloured(path) > 0) == (count > 0)


def test_drawing_refuses_floats(tmp_path):
    empty = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long))
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) uint8, got \(4, 4, 3\) float64"):
        draw_comparison(np.zeros((4, 4, 3)), empty, empty, [], tmp_path / "a.png")


def test_report(tmp_path, scored):
    truth, found, result = scored
    (tmp_path / "metrics.csv").write_text(METRICS)
    inputs = ReportInputs(
        title="A & B",
        details={"data": "<here>"},
        load_image=lambda row: np.full((60, 60, 3), 200, np.uint8),
        image_names=["a<b>.jpg", "c.jpg"],
        metrics=tmp_path / "metrics.csv",
    )
    path = write_report(tmp_path / "run", truth, found, result, inputs)
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "run" / "report.html"
    assert "<title>A &amp; B</title>" in page
    assert "&lt;here&gt;" in page
    assert "&lt;b&gt;bold&lt;/b&gt;" in page
    assert "<b>bold" not in page
    assert "a&lt;b&gt;.jpg" in page
    assert f"<b>{100 * result.summary()['AP']:.1f}</b>" in page
    assert page.count("<img ") == 6  # four charts and two pictures
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from elsewhere
    assert {p.name for p in (tmp_path / "run" / "report").iterdir()} >= {"confusion.png", "image_1.jpg", "training.png"}


def test_report_says_what_cannot_be_read(tmp_path, scored):
    def load_image(row):
        raise OSError("truncated <file>")

    page = write_report(tmp_path, *scored, ReportInputs(load_image=load_image)).read_text(encoding="utf-8")
    assert page.count("cannot be read: truncated &lt;file&gt;") == 2


def test_report_of_nothing(tmp_path, no_truth, no_detections):
    result = evaluate_coco(no_truth(0), no_detections, ["a"])
    page = write_report(tmp_path, no_truth(0), no_detections, result).read_text(encoding="utf-8")
    assert "No mistake in any image." in page
