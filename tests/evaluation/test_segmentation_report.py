"""The report on label maps: that it says the right numbers and its rule, escapes names, and shows the worst pictures."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.structures import LabelMaps
from sightline.evaluation import ReportInputs, SegmentationCollector, write_segmentation_report

NAMES = ["<sky>", "road & co", "never"]


def maps_of(row):
    """True and predicted labels of a picture: the more wrong, the higher its row; (24, 32)."""
    truth = np.repeat([[0] * 16 + [1] * 14 + [-1] * 2], 24, axis=0).astype(np.int16)
    found = np.abs(truth)
    found[: 4 * row, :16] = 1
    return truth, found


@pytest.fixture
def result():
    truth, found = (torch.from_numpy(np.stack(maps)) for maps in zip(*map(maps_of, range(6)), strict=True))
    collector = SegmentationCollector(3, boundary=True)
    collector.update(LabelMaps(found), LabelMaps(truth), range(1, 7))
    return collector.result(NAMES)


def inputs_of(tmp_path, **changes):
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/mean_IoU\n0,5,2.0,\n0,9,,0.1\n")
    arguments = {
        "title": "A & B",
        "details": {"data": "<here>"},
        "load_image": lambda row: np.full((24, 32, 3), 40 * row, np.uint8),
        "image_names": [f"{i}<x>.jpg" for i in range(6)],
        "metrics": tmp_path / "metrics.csv",
        "pictures": 2,
    }
    return ReportInputs(**(arguments | changes))


def test_report(tmp_path, result):
    path = write_segmentation_report(tmp_path / "run", result, inputs_of(tmp_path), maps=maps_of)
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "run" / "report.html"
    assert "<title>A &amp; B</title>" in page
    assert "&lt;here&gt;" in page
    assert "6 images, 4,320 pixels with a truth, 3 categories" in page
    summary = result.summary()
    for name, title in (
        ("mean_IoU", "mean IoU"),
        ("boundary_IoU", "Boundary IoU"),
        ("pixel_accuracy", "pixel accuracy"),
    ):
        assert f"<b>{100 * summary[name]:.1f}</b><span>{title}" in page
    assert "Void pixels are not counted." in page
    wrong = int(result.matrix[0, 1])
    assert f"&lt;sky&gt; taken for road &amp; co</td><td>{wrong:,}</td><td>{100 * wrong / (6 * 24 * 16):.1f}" in page
    iou = result.per_class()[1]["IoU"]
    assert f'road &amp; co</td><td>46.7</td><td style="--share:{100 * iou:.1f}%"' in page
    assert "<td>never</td><td>0.0</td><td>–" in page  # noqa: RUF001
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from elsewhere
    assert page.count("<img ") == 2 + 3  # charts and pictures
    names = {p.name for p in (tmp_path / "run" / "report").iterdir()}
    assert names == {"confusion.png", "training.png", "image_6.jpg", "image_5.jpg", "image_1.jpg"}
    with Image.open(tmp_path / "run" / "report" / "image_6.jpg") as image:
        assert min(image.size) > 900


def test_the_worst_first(tmp_path, result):
    page = write_segmentation_report(tmp_path, result, inputs_of(tmp_path), maps=maps_of).read_text("utf-8")
    worst, others = page.split("<h2>Pictures from all over the set</h2>")
    listed = re.findall(r"<td>(\d)&lt;x&gt;.jpg</td>", worst)
    assert listed == ["5", "4", "3", "2", "1", "0"]
    assert re.findall(r"<figcaption>(\d)", worst) == ["5", "4"]
    assert re.findall(r"<figcaption>(\d)", others) == ["0"]  # the last of all over the set is among the worst
    assert "0&lt;x&gt;.jpg: mean IoU 100.0, pixel accuracy 100.0" in others


@pytest.mark.parametrize("left_out", ["maps", "load_image"])
def test_without_pictures(tmp_path, result, left_out):
    inputs = ReportInputs(load_image=None if left_out == "load_image" else lambda row: np.zeros((24, 32, 3), np.uint8))
    maps = None if left_out == "maps" else maps_of
    page = write_segmentation_report(tmp_path, result, inputs, maps=maps).read_text("utf-8")
    assert page.count("<img ") == 1
    assert "<h2>Training</h2>" not in page
    assert "<h2>The worst pictures</h2>" in page


def test_says_what_cannot_be_read(tmp_path, result):
    def load_image(row):
        raise OSError("truncated <file>")

    inputs = ReportInputs(load_image=load_image)
    page = write_segmentation_report(tmp_path, result, inputs, maps=maps_of).read_text("utf-8")
    assert page.count("cannot be shown: truncated &lt;file&gt;") == 6


@pytest.mark.parametrize("label", [-1, 0])
def test_of_one_picture(tmp_path, label):
    """Whole void, or whole a pixel that was given no category: still a page."""
    collector = SegmentationCollector(1)
    maps = torch.full((1, 5, 6), label)
    collector.update(LabelMaps(torch.full_like(maps, -1)), LabelMaps(maps), [4])
    result = collector.result(["a"])
    inputs = ReportInputs(load_image=lambda row: np.zeros((5, 6, 3), np.uint8))
    both = maps[0].numpy(), np.full((5, 6), -1)
    page = write_segmentation_report(tmp_path, result, inputs, maps=lambda row: both).read_text("utf-8")
    assert ("<h2>The worst pictures</h2>" in page) == (label == 0)
    assert "<th>IoU</th>" in page
    assert "<th>Boundary IoU</th>" not in page
