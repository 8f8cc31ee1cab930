"""`sightline evaluate` of segmenters, and of folders of label maps."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from sightline.datasets.images import read_image
from sightline.datasets.label_categories import write_categories
from sightline.datasets.label_files import write_label_map
from sightline.datasets.label_maps import read_label_maps
from sightline.datasets.shapes import CATEGORIES
from sightline.datasets.transforms import from_hwc
from sightline.segmentation import augmented, load, windowed
from sightline.segmentation.inference import segment
from sightline.tools.evaluate_segmentation import labelled
from sightline.tools.main import main
from sightline.training.segmentation_scoring import score_segmenter

NAMES = ["background", *CATEGORIES]


def evaluate(tmp_path, *arguments):
    """The numbers that the command writes."""
    assert main(["evaluate", *map(str, arguments), "--json", str(tmp_path / "numbers.json")]) == 0
    return json.loads((tmp_path / "numbers.json").read_text())


def test_a_segmenter_on_data(segmenter, label_data, tmp_path, capsys):
    options = [
        "--data",
        label_data,
        "--split",
        "test",
        "--batch",
        "2",
        "--device",
        "cpu",
        "--report",
        tmp_path / "report",
    ]
    numbers = evaluate(tmp_path, segmenter, *options)
    expected = score_segmenter(load(segmenter, device="cpu"), read_label_maps(label_data)["test"], progress=False)
    summary = expected.result.summary()
    assert {name: numbers[name] for name in summary} == summary
    assert numbers["void"] == "ignored"
    assert sum(row["truths"] for row in numbers["per_class"]) == 3 * 60 * 64
    out = capsys.readouterr().out
    assert f"{summary['mean_IoU']:6.3f}" in out
    assert "3 pictures, 11,520 pixels with a truth, 768 void." in out
    rows = {line.split()[0]: line.split()[1:] for line in out.splitlines() if line.startswith(("background", "circle"))}
    background = numbers["per_class"][0]
    assert rows["background"][:2] == [f"{background['truths']:,}", f"{background['IoU']:.3f}"]
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert page.count("<figure") == 3
    assert f"{label_data}, test" in page
    assert "labelled/images/test/2.png" in page


def test_options_reach_the_scorer(segmenter, label_data, tmp_path):
    model, table = load(segmenter, device="cpu"), read_label_maps(label_data)["test"]
    data = ["--data", label_data, "--split", "test", "--device", "cpu"]
    wrong = score_segmenter(model, table, void_is_wrong=True, progress=False).result.summary()
    plain = evaluate(tmp_path, segmenter, *data)
    strict = evaluate(tmp_path, segmenter, *data, "--void-wrong")
    assert strict["mean_IoU"] == wrong["mean_IoU"] < plain["mean_IoU"]
    assert strict["void"] == "wrong"
    looks = augmented(model, scales=(1, 1.5), flip=True)
    expected = score_segmenter(looks, table, progress=False).result.summary()["mean_IoU"]
    assert evaluate(tmp_path, segmenter, *data, "--multiscale", 1, 1.5, "--flip")["mean_IoU"] == pytest.approx(expected)
    assert expected != plain["mean_IoU"]
    assert evaluate(tmp_path, segmenter, *data, "--tiles", 40)["mean_IoU"] != plain["mean_IoU"]
    whole = evaluate(tmp_path, segmenter, *data, "--tiles", 64)  # the model is made for pictures of this size
    assert whole["mean_IoU"] == pytest.approx(plain["mean_IoU"])


def test_tiles_see_pictures_of_several_sizes_as_they_are(segmenter, tmp_path):
    for name, size in {"a": (40, 70), "b": (64, 50), "c": (72, 72)}.items():
        write_label_map(tmp_path / "in" / "masks" / f"{name}.png", np.zeros(size, np.int16))
        write_label_map(tmp_path / "in" / "images" / f"{name}.png", np.arange(np.prod(size)).reshape(size) % 250)
    write_categories(tmp_path / "in", ["background"])
    options = ["--data", tmp_path / "in", "--split", "train", "--batch", 2, "--tiles", 32, "--device", "cpu"]
    numbers = evaluate(tmp_path, segmenter, *options)
    table = read_label_maps(tmp_path / "in")["train"]
    assert sum(row["truths"] for row in numbers["per_class"]) == table.sizes.prod(1).sum()
    model, right = windowed(load(segmenter, device="cpu"), 32), 0
    for path, size in zip(table.paths, table.sizes.tolist(), strict=True):
        model.resize = (*size, True)
        right += (segment(model, from_hwc(read_image(path))).labels == 0).sum().item()
    assert numbers["pixel_accuracy"] == pytest.approx(right / table.sizes.prod(1).sum(), abs=1e-3)


def test_the_data_set_s_own_name_for_a_part(label_data, tmp_path):
    for split, own in (("train", "train"), ("test", "trainval")):
        shutil.copytree(label_data / "images" / split, tmp_path / "camvid" / own)
        shutil.copytree(label_data / "masks" / split, tmp_path / "camvid" / f"{own}annot")
    write_categories(tmp_path / "camvid", NAMES)
    assert len(labelled(str(tmp_path / "camvid"), "trainval")) == 3


# -- Folders of label maps --


@pytest.fixture
def predictions(tmp_path, labels_of) -> Path:
    """Label maps that are right but for one picture, half of which is taken for background."""
    for number in (2, 3, 4):
        labels = labels_of(number).clip(0)
        if number == 3:
            labels[:, 32:] = 0
        write_label_map(tmp_path / "found" / f"{number}.png", labels)
    return tmp_path / "found"


def test_label_maps_of_a_folder(predictions, label_data, labels_of, tmp_path, capsys):
    options = ["--data", label_data, "--split", "test", "--report", tmp_path / "report"]
    numbers = evaluate(tmp_path, "--predictions", predictions, *options)
    wrong = (labels_of(3)[4:, 32:] > 0).sum()
    assert wrong > 0
    assert numbers["pixel_accuracy"] == pytest.approx(1 - wrong / (3 * 60 * 64))
    assert numbers["per_image"][0]["image_id"] == 2  # the second of the three
    assert str(predictions) in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    strict = evaluate(tmp_path, "--predictions", predictions, "--data", label_data, "--split", "test", "--void-wrong")
    assert strict["pixel_accuracy"] == numbers["pixel_accuracy"]
    assert strict["mean_IoU"] < numbers["mean_IoU"]


def test_what_predict_writes_scores_as_the_model_does(segmenter, label_data, tmp_path):
    pictures = str(label_data / "images" / "test")
    assert (
        main(["predict", segmenter, pictures, "--no-pictures", "--masks", str(tmp_path / "m"), "--device", "cpu"]) == 0
    )
    data = ["--data", label_data, "--split", "test"]
    found = evaluate(tmp_path, "--predictions", tmp_path / "m", *data)
    again = evaluate(tmp_path, segmenter, *data, "--device", "cpu")
    assert found["mean_IoU"] == pytest.approx(again["mean_IoU"])


MISTAKES = {
    "boxes' scores": (["{model}", "--voc"], "names every pixel: leave out --voc"),
    "several models": (["{model}", "--ensemble", "x.ckpt", "--upturn"], "leave out --ensemble, --upturn"),
    "a beam": (["{model}", "--beam", "3"], "leave out --beam"),
    "crops": (["{model}", "--crops", "10"], "leave out --crops"),
    "proposals": (["{model}", "--proposals", "x.json"], "leave out --proposals"),
    "limits": (["{model}", "--max-dets", "10"], "leave out --max-dets"),
    "masks": (["{model}", "--masks"], "leave out --masks"),
    "a results json": (
        ["{model}", "--save-predictions", "x.json"],
        "sightline predict writes them with --masks FOLDER",
    ),
    "no such part": (["{model}", "--data", "{data}", "--split", "tests"], "no split 'tests'"),
    "no such shapes": (
        ["{model}", "--split", "tests"],
        "have no part 'tests'; there are train, val, test; did you mean",
    ),
    "no label maps": (["{model}", "--data", "{data}/images/test"], "Label maps are known as"),
    "scores of a folder": (
        ["--predictions", "{data}", "--data", "{data}", "--flip"],
        "folder of label maps: leave out --flip",
    ),
    "truth of a folder": (["--predictions", "{data}", "--truth", "x.json"], "leave out --truth"),
    "against nothing": (["--predictions", "{data}"], "say with --data what they are scored against"),
    "void of boxes": (
        ["--predictions", "x.json", "--truth", "y.json", "--void-wrong"],
        "--void-wrong is for label maps",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(segmenter, label_data, capsys, name):
    arguments, message = MISTAKES[name]
    arguments = [argument.format(model=segmenter, data=label_data) for argument in arguments]
    assert main(["evaluate", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_categories_that_the_model_does_not_know(segmenter, label_data, capsys):
    text = (label_data / "categories.csv").read_text().replace("star", "comet")
    (label_data / "categories.csv").write_text(text)
    assert main(["evaluate", segmenter, "--data", str(label_data), "--split", "test", "--device", "cpu"]) == 2
    assert "does not know comet" in capsys.readouterr().err
