"""The report on captions: that it says the right numbers, escapes names, and shows the best, the middle and the worst."""

import re

import numpy as np
import pytest
from PIL import Image

from sightline.evaluation import ReportInputs, evaluate_captions, write_caption_report
from sightline.evaluation.caption_plots import plot_caption_scores, plot_caption_words


@pytest.fixture
def result():
    """Six pictures: three right, two partly, one wrong with letters that HTML knows."""
    truth = {
        1: ["a dog runs on grass", "the dog <runs> fast"], 2: ["two cats sleep on a mat"], 3: ["a red car stands still"],
        4: ["a man rides a horse"], 5: ["children play in the park"], 6: ["a plane flies over a city"],
    }  # fmt: skip
    said = {
        1: "a dog runs on grass", 2: "two cats sleep on a mat", 3: "a red car stands still",
        4: "a man rides a bike", 5: "children in the snow", 6: "<b>nothing</b>",
    }  # fmt: skip
    return evaluate_captions(truth, said)


def inputs_of(tmp_path, **changes):
    (tmp_path / "metrics.csv").write_text("epoch,step,train/loss,val/BLEU-4\n0,5,2.0,\n0,9,,0.1\n")
    arguments = {
        "title": "A & B",
        "details": {"data": "<here>"},
        "load_image": lambda row: np.full((300, 900, 3), 40 * row, np.uint8),
        "image_names": [f"{i}<x>.jpg" for i in range(6)],
        "metrics": tmp_path / "metrics.csv",
        "pictures": 2,
    }
    return ReportInputs(**(arguments | changes))


def test_report(tmp_path, result):
    path = write_caption_report(tmp_path / "run", result, inputs_of(tmp_path))
    page = path.read_text(encoding="utf-8")
    assert path == tmp_path / "run" / "report.html"
    assert "<title>A &amp; B</title>" in page
    assert "&lt;here&gt;" in page
    assert "6 images, 7 references, 6 different captions" in page
    summary = result.summary()
    assert f"<b>{100 * summary['BLEU-4']:.1f}</b>" in page
    assert f"<b>{summary['CIDEr-D']:.3f}</b>" in page
    assert "<b>50.0</b><span>captions that are a reference" in page
    assert f"<td>{100 * result.unpenalised()['BLEU-2']:.1f}</td>" in page
    assert not re.search(r'(src|href)="(?!data:)', page)  # nothing from elsewhere
    assert page.count("<img ") == 3 + 6  # charts and pictures
    assert "&lt;b&gt;nothing&lt;/b&gt;" in page
    assert "<b>nothing" not in page
    assert "the dog &lt;runs&gt; fast" in page
    names = {p.name for p in (tmp_path / "run" / "report").iterdir()}
    assert names >= {"caption_scores.png", "caption_words.png", "training.png", "image_6.jpg"}
    with Image.open(tmp_path / "run" / "report" / "image_6.jpg") as image:
        assert image.size == (512, 171)


def test_the_best_the_middle_and_the_worst(tmp_path, result):
    page = write_caption_report(tmp_path, result, inputs_of(tmp_path)).read_text(encoding="utf-8")
    parts = re.split(r"<h2>(The best captions|Captions of the middle|The worst captions)</h2>", page)
    shown = {title: re.findall(r"<figcaption>(\d)", text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    # Rows 0 to 5 are pictures 1 to 6. The first has two references, of which it is one: its CIDEr-D is a mean.
    assert shown == {
        "The best captions": ["1", "2"],
        "Captions of the middle": ["3", "0"],
        "The worst captions": ["5", "4"],
    }
    assert result.cider_d[[1, 2, 3, 0, 4, 5]].tolist() == sorted(result.cider_d, reverse=True)


def test_few_pictures_are_shown_once(tmp_path, result):
    inputs = inputs_of(tmp_path, pictures=8)
    page = write_caption_report(tmp_path, result, inputs).read_text(encoding="utf-8")
    assert page.count("<figcaption>") == 6
    assert "The worst captions" not in page


def test_without_pictures(tmp_path, result):
    page = write_caption_report(tmp_path, result).read_text(encoding="utf-8")
    assert page.count("<img ") == 2
    assert "children play in the park" in page
    assert "<h2>Training</h2>" not in page


def test_says_what_cannot_be_read(tmp_path, result):
    def load_image(row):
        raise OSError("truncated <file>")

    page = write_caption_report(tmp_path, result, ReportInputs(load_image=load_image)).read_text(encoding="utf-8")
    assert page.count("cannot be read: truncated &lt;file&gt;") == 6


@pytest.mark.parametrize("caption", ["", "a dog", "word " * 300])
def test_charts_of_one_caption(tmp_path, caption):
    result = evaluate_captions({1: ["a dog"]}, {1: caption})
    for draw in (plot_caption_scores, plot_caption_words):
        draw(result, tmp_path / "chart.png")
        with Image.open(tmp_path / "chart.png") as image:
            pixels = np.asarray(image.convert("RGB")).astype(int)
        assert min(image.size) > 300
        assert ((pixels.max(-1) - pixels.min(-1)) > 40).mean() > 0.001  # something in colour
