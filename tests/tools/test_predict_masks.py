"""`sightline predict` of models that find objects with masks, and what it writes of these."""

import csv
import json

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.images import read_image, write_image
from sightline.datasets.instance_files import read_ids
from sightline.datasets.mask_encoding import from_coco
from sightline.datasets.shapes import CATEGORIES, draw
from sightline.datasets.sources import Frame, frames
from sightline.datasets.structures import Instances
from sightline.datasets.table import DataError
from sightline.datasets.transforms import from_hwc
from sightline.detectors import Detector, classifier, fast_rcnn, save
from sightline.detectors.inference import find
from sightline.evaluation.mask_drawing import masks_of
from sightline.segmentation import load
from sightline.tools.main import run
from sightline.tools.picture_files import PictureFiles
from sightline.tools.predict import main
from sightline.tools.prediction_files import AnnotatedPictures, CocoResults, NumberedPictures


@pytest.fixture
def folder(tmp_path):
    """A picture, and a clip of 6 frames at 10 a second."""
    write_image(tmp_path / "in" / "x.jpg", draw(0, 0, 80).image)
    writer = cv2.VideoWriter(str(tmp_path / "in" / "clip.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (96, 64))
    for _ in range(6):
        writer.write(np.ascontiguousarray(draw(0, 2, 96).image[:64]))
    writer.release()
    return tmp_path / "in"


def found_in(checkpoint, path):
    """What the library finds in a picture, and the masks at its size."""
    image = read_image(path)
    found = find(load(checkpoint, device="cpu"), from_hwc(image), score=0.0)
    return found, masks_of(found, image.shape[:2])


@pytest.mark.parametrize("polygons", [[], ["--polygons"]], ids=["run lengths", "polygons"])
def test_masks_in_the_json(mask_detector, folder, tmp_path, polygons):
    options = ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "x.json"), "--score", "0", "--device", "cpu"]
    assert main([mask_detector, str(folder / "x.jpg"), *options, *polygons]) == 0
    records = json.loads((tmp_path / "x.json").read_text())
    found, expected = found_in(mask_detector, folder / "x.jpg")
    assert len(records) == len(found) > 3
    assert {type(record["segmentation"]) for record in records} == {list if polygons else dict}
    masks = from_coco([record["segmentation"] for record in records], np.tile([80, 80], (len(records), 1)))
    assert expected.areas.any()
    for k in range(len(records)):
        np.testing.assert_array_equal(masks.pixels(k), expected.pixels(k))
    assert records[0]["category"] == CATEGORIES[found.labels[0]]
    assert not np.array_equal(read_image(tmp_path / "out" / "x.jpg"), read_image(folder / "x.jpg"))


def test_numbered_pictures_number_the_records(mask_detector, folder, tmp_path, capsys):
    options = ["--no-pictures", "--masks", str(tmp_path / "ids"), "--score", "0", "--device", "cpu"]
    assert main([mask_detector, str(folder / "x.jpg"), *options]) == 0
    ids = read_ids(tmp_path / "ids" / "x.png")
    _, masks = found_in(mask_detector, folder / "x.jpg")
    expected = np.zeros((80, 80), int)
    for k in reversed(range(len(masks))):
        expected[masks.pixels(k) > 0] = k + 1
    np.testing.assert_array_equal(ids, expected)
    with Image.open(tmp_path / "ids" / "x.png") as written:
        assert written.mode == "I;16"
    assert capsys.readouterr().out.strip().endswith(f"written: {tmp_path / 'ids'}")


@pytest.mark.parametrize(
    "looks",
    [["--flip"], ["--multiscale", "1", "1.5", "--upturn"], ["--ensemble", "{masks}"], ["--tiles", "48", "--flip"]],
    ids=lambda looks: looks[0],
)
def test_several_looks(mask_detector, folder, tmp_path, looks):
    looks = [option.format(masks=mask_detector) for option in looks]
    options = ["--no-pictures", "--json", str(tmp_path / "x.json"), "--score", "0", "--device", "cpu"]
    assert main([mask_detector, str(folder / "x.jpg"), *looks, *options]) == 0
    records = json.loads((tmp_path / "x.json").read_text())
    masks = from_coco([record["segmentation"] for record in records], np.tile([80, 80], (len(records), 1)))
    shown = masks.areas > 0
    assert shown.any()
    boxes = np.array([record["bbox"] for record in records])
    low, high = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    assert (masks.boxes[shown, :2] >= low[shown] - 1).all()
    assert (masks.boxes[shown, 2:] <= high[shown] + 1).all()


def test_tracked_through_a_video(mask_detector, folder, tmp_path):
    """The pixels of an object have its track's id in every frame."""
    files = {"--out": "out", "--masks": "ids", "--json": "x.json", "--csv": "x.csv", "--mot": "x.txt"}
    options = [part for name, file in files.items() for part in (name, str(tmp_path / file))]
    assert (
        main([mask_detector, str(folder / "clip.mp4"), "--track", "--score", "0.05", *options, "--device", "cpu"]) == 0
    )
    assert len(list(frames(tmp_path / "out" / "clip.mp4"))) == 6
    records = json.loads((tmp_path / "x.json").read_text())
    with open(tmp_path / "x.csv", newline="", encoding="utf-8") as file:
        assert [int(row["track"]) for row in csv.DictReader(file)] == [record["track_id"] for record in records]
    for index in range(6):
        mine = [record for record in records if record["frame"] == index]
        masks = from_coco([record["segmentation"] for record in mine], np.tile([64, 96], (len(mine), 1)))
        ids = read_ids(tmp_path / "ids" / "clip" / f"{index:06}.png")
        known = {0} | {record["track_id"] for record in mine}
        assert set(np.unique(ids).tolist()) <= known
        for k, record in enumerate(mine):
            assert ((ids == record["track_id"]) <= (masks.pixels(k) > 0)).all()
    assert records


def test_the_better_object_is_in_front(tmp_path):
    boxes = torch.tensor([[0.0, 0, 4, 4], [2, 0, 6, 4], [4, 0, 8, 4]])
    found = Instances(boxes, torch.zeros(3).long(), torch.tensor([0.5, 0.9, 0.5]), torch.ones(3, 2, 2))
    frame = Frame("x.jpg", 0, np.zeros((4, 8, 3), np.uint8), None)
    for name, ids, expected in (
        ("ranks", None, [1, 1, 2, 2, 2, 2, 3, 3]),
        ("tracks", torch.tensor([300, 70, 5]), [300, 300, 70, 70, 70, 70, 5, 5]),
    ):
        found.ids = ids
        with NumberedPictures(PictureFiles(tmp_path / name, [], suffix=".png")) as pictures:
            pictures.write(1, frame, found)
        assert read_ids(tmp_path / name / "x.png").tolist() == [expected] * 4
    found.ids = torch.tensor([1, 2, 2**16])
    with pytest.raises(DataError, match="object 65536 does not fit"):
        NumberedPictures(PictureFiles(tmp_path, [], suffix=".png")).write(1, frame, found)


def test_nothing_found(tmp_path):
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0).long(), torch.zeros(0), torch.zeros(0, 28, 28))
    frame = Frame("x.jpg", 0, np.zeros((4, 8, 3), np.uint8), None)
    with (
        NumberedPictures(PictureFiles(tmp_path / "ids", [], suffix=".png")) as ids,
        CocoResults(tmp_path / "x.json", CATEGORIES) as results,
        AnnotatedPictures(tmp_path / "out", CATEGORIES, []) as drawn,
    ):
        for writer in (ids, results, drawn):
            writer.write(1, frame, nothing)
    assert not read_ids(tmp_path / "ids" / "x.png").any()
    assert json.loads((tmp_path / "x.json").read_text()) == []


def test_names_of_very_many_objects_are_left_out(tmp_path):
    """So that something is seen of the masks."""
    count = AnnotatedPictures.NAMED + 1
    boxes = torch.tensor([[20.0, 60, 40, 80]]).repeat(count, 1)
    frame, painted = Frame("x.png", 0, np.zeros((100, 100, 3), np.uint8), None), []
    for number in (count - 1, count):
        found = Instances(boxes, torch.zeros(count).long(), torch.ones(count))[:number]
        with AnnotatedPictures(tmp_path / str(number), CATEGORIES, []) as drawn:
            drawn.write(1, frame, found)
        painted.append((read_image(tmp_path / str(number) / "x.png")[:55] > 0).sum())
    assert painted[0] > painted[1] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--beam", "2"], "writes no sentences: leave out --beam"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_what_masks_do_not_go_with(mask_detector, folder, capsys, options, message):
    assert run("predict", [mask_detector, str(folder), *options, "--device", "cpu"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("options", [["--masks", "ids"], ["--polygons", "--json", "x.json"]], ids=["masks", "polygons"])
def test_models_without_masks(folder, tmp_path, capsys, options):
    small: dict[str, Detector] = {
        "detection": fast_rcnn("resnet10_narrow", 2, norm="batch", head_width=16, proposer="sliding_window"),
        "classification": classifier("lenet", 2),
    }
    for task, model in small.items():
        save(model, tmp_path / "model.ckpt")
        assert run("predict", [str(tmp_path / "model.ckpt"), str(folder), *options, "--device", "cpu"]) == 2
        assert f"finds no masks, it is made for {task}: leave out {options[0]}\n" in capsys.readouterr().err


def test_the_mean_of_two(mask_detector, folder, tmp_path):
    options = ["--no-pictures", "--score", "0", "--device", "cpu", "--json"]
    assert main([mask_detector, str(folder / "x.jpg"), *options, str(tmp_path / "one.json")]) == 0
    assert (
        main([mask_detector, str(folder / "x.jpg"), "--average", mask_detector, *options, str(tmp_path / "two.json")])
        == 0
    )
    assert (tmp_path / "one.json").read_text() == (tmp_path / "two.json").read_text()


def test_polygons_need_a_json(mask_detector, folder, capsys):
    with pytest.raises(SystemExit):
        main([mask_detector, str(folder), "--polygons"])
    assert "add --json FILE" in capsys.readouterr().err
