"""`sightline evaluate` of objects with masks: models and results files."""

import json
from functools import partial

import pytest

from sightline.datasets.coco import write_coco
from sightline.datasets.images import write_image
from sightline.datasets.shapes import read_shapes, shapes_table
from sightline.datasets.table import Table
from sightline.detectors import augmented, classifier, save
from sightline.detectors.tiling import Tiling
from sightline.evaluation import Truth, evaluate_instances, evaluate_regions, read_results
from sightline.segmentation import load
from sightline.tools.main import main
from sightline.training import score, score_tiled


@pytest.fixture
def data(tmp_path) -> Table:
    """Four pictures with masks, in COCO's form at data/."""
    table = shapes_table("val", 4, 64, masks=True)
    for i, path in enumerate(table.paths):
        write_image(tmp_path / "data" / f"{i}.png", read_shapes(path))
    table.paths = [str(tmp_path / "data" / f"{i}.png") for i in range(4)]
    for split in ("train", "val"):
        write_coco(table, tmp_path / "data" / f"instances_{split}.json")
    return table


def evaluate(tmp_path, *arguments):
    assert main(["evaluate", *map(str, arguments), "--json", str(tmp_path / "numbers.json")]) == 0
    return json.loads((tmp_path / "numbers.json").read_text())


def test_a_model_on_data(mask_detector, data, tmp_path, capsys):
    files = ["--save-predictions", tmp_path / "found.json", "--report", tmp_path / "report"]
    numbers = evaluate(tmp_path, mask_detector, "--data", tmp_path / "data", "--device", "cpu", "--voc", *files)
    scored = score(load(mask_detector, device="cpu"), data, progress=False)
    summary = scored.result.summary()
    assert {name: numbers[name] for name in summary} == pytest.approx(summary)
    regions = evaluate_regions(scored.truth, scored.detections, data.categories).summary()
    assert {name: numbers["voc"][name] for name in regions} == pytest.approx(regions)
    out = capsys.readouterr().out
    assert out.index("Boxes\n") < out.index("Masks\n")
    assert "mask_AP50" in out
    assert "Pascal VOC   mAP " in out
    assert "APr50 " in out
    page = (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "By masks" in page
    truth = Truth.from_table(data, masks=True)
    again = read_results(tmp_path / "found.json", truth, data.category_ids, masks=True)
    assert evaluate_instances(truth, again, data.categories).summary() == pytest.approx(summary)


@pytest.mark.parametrize("looks", [["--flip"], ["--tiles", 48]], ids=["flip", "tiles"])
def test_several_looks(mask_detector, data, tmp_path, looks):
    numbers = evaluate(tmp_path, mask_detector, "--data", tmp_path / "data", "--device", "cpu", *looks)
    model, options = load(mask_detector, device="cpu"), {"progress": False}
    if "--tiles" in looks:
        scored = score_tiled(model, data, Tiling(48), **options)
    else:
        scored = score(augmented(model, flip=True), data, **options)
    summary = scored.result.summary()
    assert "mask_AP" in summary
    assert {name: numbers[name] for name in summary} == pytest.approx(summary)
    assert scored.detections.masks.areas.any()


def test_shapes_have_masks_where_they_are_scored(mask_detector, monkeypatch, tmp_path):
    few = partial(shapes_table, count=2)
    monkeypatch.setattr(
        "sightline.datasets.picture_data.shapes_table", lambda split, _, **options: few(split, **options)
    )
    numbers = evaluate(tmp_path, mask_detector, "--device", "cpu")
    expected = score(load(mask_detector, device="cpu"), shapes_table("val", 2, 128, masks=True), progress=False)
    assert numbers["mask_AP"] == expected.result.summary()["mask_AP"]


@pytest.fixture
def perfect(data, tmp_path):
    """All masks found, and boxes that are a pixel too wide: results and truth in COCO's form."""
    content = json.loads((tmp_path / "data" / "instances_val.json").read_text())
    records = []
    for one in content["annotations"]:
        x, y, width, height = one["bbox"]
        records.append(
            {key: one[key] for key in ("image_id", "category_id", "segmentation")}
            | {"score": 0.5, "bbox": [x, y, width + 1, height]}
        )
    (tmp_path / "found.json").write_text(json.dumps(records))
    return ["--predictions", tmp_path / "found.json", "--truth", tmp_path / "data" / "instances_val.json"]


def test_results_with_masks(perfect, tmp_path, capsys):
    numbers = evaluate(tmp_path, *perfect, "--masks", "--report", tmp_path / "report", "--voc")
    assert numbers["mask_AP"] == pytest.approx(1)
    assert numbers["voc"]["APr70"] == pytest.approx(1)
    assert numbers["AP"] < 1
    assert all(row["mask_AP"] == pytest.approx(1) for row in numbers["per_class"] if row["truths"])
    assert "mask_AP" not in evaluate(tmp_path, *perfect)
    assert "By masks" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert "Masks\n" in capsys.readouterr().out


def test_results_of_masks_alone(perfect, tmp_path):
    records = json.loads((tmp_path / "found.json").read_text())
    (tmp_path / "found.json").write_text(json.dumps([{k: v for k, v in r.items() if k != "bbox"} for r in records]))
    assert evaluate(tmp_path, *perfect, "--masks")["AP"] == pytest.approx(1)


def test_mistakes(mask_detector, perfect, tmp_path, capsys):
    save(classifier("lenet", 2), tmp_path / "classifier.ckpt")
    records = json.loads((tmp_path / "found.json").read_text())
    (tmp_path / "boxes.json").write_text(
        json.dumps([{k: v for k, v in r.items() if k != "segmentation"} for r in records])
    )
    truth = ["--truth", str(tmp_path / "data" / "instances_val.json"), "--masks"]
    for arguments, message in (
        ([mask_detector, "--masks"], "--masks is for --predictions"),
        ([str(tmp_path / "classifier.ckpt"), "--masks"], "--masks is for --predictions"),
        ([mask_detector, "--void-wrong"], "--void-wrong is for label maps"),
        (["--predictions", str(tmp_path / "boxes.json"), *truth], "segmentation"),
    ):
        assert main(["evaluate", *arguments]) == 2
        assert message in capsys.readouterr().err
